"""Says how good scores are: the five metrics with their uncertainty, and calibration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.evaluation.stats.calibration import Calibration, calibrate
from sketchbatch_client.evaluation.stats.intervals import Measured, with_intervals
from sketchbatch_client.evaluation.stats.metrics import Confusion, confuse

from ..export.held_out import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good one model is on one set of drawings."""

    rows: int
    metrics: dict[str, Measured]
    """The five, by name (`sketchbatch_client.evaluation.stats.metrics.Metrics`)."""
    top_3: float
    """Share of rows whose label is among the three best scores."""
    reliability: Calibration
    confusion: Confusion
    """(classes, classes): rows = true class, columns = predicted class."""


def judge(scores: Scores, class_index: NDArray[np.integer]) -> Quality:
    """Judges the scores of some rows, at least one, by their true class, (rows,)."""
    best = scores.argmax(axis=1)
    confusion = confuse(class_index, best, scores.shape[1])
    top_3 = np.argpartition(-scores, min(3, scores.shape[1]) - 1, axis=1)[:, :3]
    return Quality(
        rows=len(scores),
        metrics=with_intervals(confusion),
        top_3=float((top_3 == class_index[:, None]).any(axis=1).mean()),
        reliability=calibrate(scores, class_index),
        confusion=confusion,
    )
