"""Try a model on a few drawings before it serves, and find scores on which clients cannot rely.

A model that was exported in training mode, or that normalises over the batch, loads without an error. But its scores of
a drawing then depend on the drawings of other clients, because the batcher forms batches of any size from all requests.
The module compares scores; `models.loader` decides what follows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import ROW_SHAPE, Bitmaps, Scores
from .cpu import predict_checked
from .parity import COARSE_TOLERANCE, FLOAT32_TOLERANCE, random_drawings

ROWS = 17  # of the trial: random drawings, then a blank drawing, then a drawing of ink only
_BLANK, _INK = ROWS - 2, ROWS - 1
_SIZES = (2, 3, 5, 7, 16, ROWS)  # odd and even batch sizes; ROWS is also the largest

_TOLERANCES = {"float16": COARSE_TOLERANCE, "int8": 5e-2}
"""Largest allowed difference between two scores of a drawing, by number format. In a batch of another size, ONNX
Runtime may sum in another order. Measured with the shipped models on 400 drawings: noise of 1e-6 in the weights changes
a score by up to 5e-6 in float32, and by up to 0.023 in int8, where a value between two steps may take the other one."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of a trial."""

    scores: Scores  # (ROWS, classes): of each drawing alone
    faults: tuple[str, ...]  # one sentence each; empty = clients can rely on the scores


def tolerance_of(variant: str) -> float:
    """Return the largest allowed difference for a number format ("float16"); the strictest for an unknown one."""
    return _TOLERANCES.get(variant, FLOAT32_TOLERANCE)


def trial_drawings() -> Bitmaps:
    """Return the drawings of the trial: uint8, (ROWS, 28, 28)."""
    drawings = np.empty((ROWS, *ROW_SHAPE), np.uint8)
    drawings[:_BLANK] = random_drawings(_BLANK)
    drawings[_BLANK], drawings[_INK] = 0, 255
    return drawings


def try_out(
    predict: Callable[[Bitmaps], Scores], *, classes: int, batch_rows: int, tolerance: float = FLOAT32_TOLERANCE
) -> Trial:
    """Score the trial drawings alone, together, twice and in batches of several sizes, and compare the scores.

    No batch has more than `batch_rows` rows, and one has exactly so many. `tolerance` is relative to the largest score
    if that exceeds 1.

    Raises:
        ModelRefused: `predict` fails for one of the batch sizes, or returns scores of another shape.
    """
    drawings = trial_drawings()

    def score(rows: NDArray[np.intp]) -> Scores:
        return predict_checked(predict, drawings[rows], classes)

    alone = np.concatenate([score(np.array([row])) for row in range(ROWS)])
    limit = tolerance * max(1.0, float(np.abs(alone[np.isfinite(alone)]).max(initial=0)))
    together = np.arange(min(ROWS, batch_rows))
    between_calls = _difference(score(together), score(together))
    between_sizes = max(_differences(score, alone, batch_rows))
    faults = []
    if between_calls > limit:
        faults.append(
            f"the same drawings have other scores in a second call: they differ by up to {between_calls:.2g} "
            "(random numbers or dropout in training mode?)"
        )
    elif between_sizes > limit:
        faults.append(
            f"the scores of a drawing depend on the other rows of its batch: they differ by up to {between_sizes:.2g} "
            "(batch normalisation in training mode, dynamic quantisation, or a softmax over the wrong axis?)"
        )
    if which := _not_finite(alone):
        faults.append(f"the scores of {which}")
    return Trial(alone, tuple(faults))


def _differences(score: Callable[[NDArray[np.intp]], Scores], alone: Scores, batch_rows: int) -> Iterator[float]:
    """Yield the largest difference from the scores of the drawings alone, for each batch size."""
    for size in sorted({*(size for size in _SIZES if size <= batch_rows), batch_rows}):
        order = np.arange(size, 2 * size) % ROWS  # each drawing has other neighbours, and another place
        scores = score(order)
        for first in range(0, size, ROWS):  # in parts, because a batch may have thousands of rows and classes
            part = slice(first, first + ROWS)
            yield _difference(scores[part], alone[order[part]])


def _difference(scores: Scores, expected: Scores) -> float:
    """Return the largest difference in the rows that should be finite; infinity if one of these rows is not."""
    is_finite = np.isfinite(expected).all(axis=1)
    scores, expected = scores[is_finite], expected[is_finite]
    if not np.isfinite(scores).all():
        return float("inf")
    return float(np.abs(scores - expected).max(initial=0))


def _not_finite(alone: Scores) -> str:
    """Return which trial drawings have scores that are not finite, and the likely cause; empty = none."""
    rows = np.flatnonzero(~np.isfinite(alone).all(axis=1)).tolist()
    if any(row < _BLANK for row in rows):
        return f"{len(rows)} of {ROWS} trial drawings are not finite (NaN in the weights, or sums that are too large?)"
    names = {_BLANK: "a blank drawing", _INK: "a drawing of ink only"}
    which = " and ".join(names[row] for row in rows)
    return which and f"{which} are not finite (a division by the ink or the contrast of a drawing?)"
