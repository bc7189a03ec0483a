"""Compute reference scores on the CPU, with which the scores of another device are compared."""

import json
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..arrays import ROW_SHAPE, Bitmaps, Scores
from .cpu import predict_checked
from .tensor_names import OUR_NAMES, TensorNames

# Largest allowed difference between a score on another device and the score on the CPU:
FLOAT32_TOLERANCE = 1e-3  # in float32 only the order of sums differs
COARSE_TOLERANCE = 1e-2  # float16 (docs/decisions/0006-int8-on-the-cpu.md), TF32 and files of unknown number format
_ROWS_PER_CALL = 256  # bounds the memory of a comparison


@dataclass(frozen=True, slots=True)
class Reference:
    """A model on the CPU; the scores of the same model on another device are compared with its scores."""

    session: ort.InferenceSession  # on the CPU
    classes: int  # columns of its scores
    names: TensorNames = OUR_NAMES

    def scores(self, drawings: Bitmaps) -> Scores:
        """Return float32 (rows, classes) for any number of rows; raise ModelRefused as `predict_checked` does."""
        parts = (drawings[start : start + _ROWS_PER_CALL] for start in range(0, len(drawings), _ROWS_PER_CALL))
        return np.concatenate([predict_checked(self._predict, part, self.classes) for part in parts])

    @property
    def variant(self) -> str:
        """Return the file's number format ("float32", "float16"); empty if its metadata does not name one."""
        metrics = json.loads(self.session.get_modelmeta().custom_metadata_map.get("sketchbatch.metrics", "{}"))
        return str(metrics.get("variant", ""))

    def tolerance(self, *, tf32: bool) -> float:
        """Return the largest allowed difference of a score: strict only if the metadata names float32."""
        return FLOAT32_TOLERANCE if self.variant == "float32" and not tf32 else COARSE_TOLERANCE

    def _predict(self, bitmaps: Bitmaps) -> Scores:
        scores: Scores = self.session.run([self.names.scores], {self.names.input: bitmaps})[0]
        return scores


def random_drawings(rows: int) -> Bitmaps:
    """Return drawings of random curved lines; equal `rows` give equal drawings.

    The drawings have different scores. Noise is unsuitable, because a model gives all noise nearly the same scores.
    """
    random = np.random.default_rng(rows)
    turns = random.normal(0, 0.4, (rows, 150)).cumsum(axis=1) + random.uniform(0, 2 * np.pi, (rows, 1))
    steps = np.minimum(np.arange(150), random.integers(20, 150, (rows, 1)))  # shorter lines repeat their last point
    across, down = (
        np.take_along_axis(_reflect(random.uniform(8, 20, (rows, 1)) + wave(turns).cumsum(axis=1)), steps, axis=1)
        for wave in (np.cos, np.sin)
    )
    drawings = np.zeros((rows, *ROW_SHAPE), np.uint8)
    drawings[np.arange(rows)[:, None], down, across] = random.integers(128, 256, (rows, 1))
    return np.maximum(drawings, np.roll(drawings, 1, axis=2))  # two pixels wide


def _reflect(coordinates: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return pixel coordinates in 0..27, reflected at the borders of the bitmap."""
    last = ROW_SHAPE[0] - 1
    return np.asarray(np.abs((coordinates + last) % (2 * last) - last), int)
