"""Says what a model scores on the CPU, for another device to be compared with before it serves."""

import json
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..arrays import ROW_SHAPE, Bitmaps, Scores
from ..errors import ModelRefused

FLOAT32_TOLERANCE = 1e-3
"""Most that a score may differ from the CPU's where the device computes in float32: sums in another order, no more."""

COARSE_TOLERANCE = 1e-2
"""The same for float16 (docs/decisions/0006-int8-on-the-cpu.md), TF32, and files that do not say what they are."""

_ROWS_A_CALL = 256
"""Bounds the memory that a comparison takes."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model file on the CPU."""

    session: ort.InferenceSession
    """On the CPU."""

    classes: int
    """Columns of its scores."""

    def scores(self, drawings: Bitmaps) -> Scores:
        """float32 (rows, classes), for any number of rows.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
        """
        starts = range(0, len(drawings), _ROWS_A_CALL)
        return np.concatenate([self._call(drawings[start : start + _ROWS_A_CALL]) for start in starts])

    @property
    def variant(self) -> str:
        """What the file says it computes in ("float32", "float16"); empty where it does not say."""
        metrics = json.loads(self.session.get_modelmeta().custom_metadata_map.get("sketchbatch.metrics", "{}"))
        return str(metrics.get("variant", ""))

    def tolerance(self, *, tf32: bool) -> float:
        """Most that a score may differ. Only a file that says it is float32 is held to that."""
        return FLOAT32_TOLERANCE if self.variant == "float32" and not tf32 else COARSE_TOLERANCE

    def _call(self, drawings: Bitmaps) -> Scores:
        rows = len(drawings)
        try:
            scores: Scores = self.session.run(["scores"], {"bitmaps": drawings})[0]
        except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
            raise ModelRefused(f"the model breaks on {rows} rows: {str(exc).splitlines()[0]}") from exc
        if scores.shape != (rows, self.classes):
            raise ModelRefused(f"scores of {rows} rows must be {(rows, self.classes)}, got {scores.shape}")
        return scores


def random_drawings(rows: int) -> Bitmaps:
    """Wandering lines, the same for the same number: unlike noise, they do not all get about the same scores."""
    random = np.random.default_rng(rows)
    turns = random.normal(0, 0.4, (rows, 150)).cumsum(axis=1) + random.uniform(0, 2 * np.pi, (rows, 1))
    steps = np.minimum(np.arange(150), random.integers(20, 150, (rows, 1)))  # a shorter line ends early, and stays
    across, down = (
        np.take_along_axis(_within(random.uniform(8, 20, (rows, 1)) + wave(turns).cumsum(axis=1)), steps, axis=1)
        for wave in (np.cos, np.sin)
    )
    drawings = np.zeros((rows, *ROW_SHAPE), np.uint8)
    drawings[np.arange(rows)[:, None], down, across] = random.integers(128, 256, (rows, 1))
    return np.maximum(drawings, np.roll(drawings, 1, axis=2))  # two pixels wide


def _within(places: NDArray[np.float64]) -> NDArray[np.int_]:
    """Reflects at the bitmap's border: 0..27."""
    last = ROW_SHAPE[0] - 1
    return np.asarray(np.abs((places + last) % (2 * last) - last), int)
