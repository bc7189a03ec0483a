"""Find the temperature that makes scores agree with the share of correct predictions (arXiv 1706.04599).

The logits are divided by the temperature before the softmax. The order of the scores of a row stays the same, so the
predicted labels do, too.
"""

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]  # (rows, classes)

LEAST_ROWS = 200
"""Fewest drawings from which a temperature is estimated. With fewer drawings, the estimate is too uncertain."""

_LIMIT = 4.0  # the temperature is between 1 / _LIMIT and _LIMIT
_HALVINGS = 40


def fit(logits: Logits, class_index: NDArray[np.integer], *, least_rows: int = LEAST_ROWS) -> float:
    """Return the temperature with the lowest mean loss, -log(score of the true class), of some rows.

    With fewer rows than `least_rows`, return 1.
    """
    if len(logits) < least_rows:
        return 1.0
    rows = np.arange(len(logits))
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    own = shifted[rows, class_index].mean()
    lowest, highest = 1 / _LIMIT, _LIMIT  # of the inverse of the temperature, in which the loss is convex
    for _ in range(_HALVINGS):
        inverse = (lowest + highest) / 2
        scores = softmax(shifted * inverse)
        if (scores * shifted).sum(axis=1).mean() > own:  # the slope of the loss is positive
            highest = inverse
        else:
            lowest = inverse
    return 2 / (lowest + highest)


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Return the scores of each row, (rows, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores
