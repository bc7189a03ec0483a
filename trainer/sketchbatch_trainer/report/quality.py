"""Says how good scores are: the five metrics with their uncertainty, and calibration."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.evaluation.metrics import Confusion, confuse, measure

from ..export.heldout import Scores

RESAMPLES = 1000
"""Of the bootstrap; the ends of an interval then move by about a twentieth of its width."""

BINS = 15
"""Of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric and the interval that holds it with 95 %, were other drawings of this kind held out."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often a model is right when it says how sure it is; one entry for each bin that holds rows."""

    confidence: NDArray[np.float64]
    """Mean score of the best label."""
    accuracy: NDArray[np.float64]
    """Share of rows where that label is right."""
    rows: NDArray[np.int64]

    @property
    def expected_error(self) -> float:
        """ECE: mean distance between the two, over rows. 0 = it is as often right as it says."""
        return float((np.abs(self.confidence - self.accuracy) * self.rows).sum() / self.rows.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good one model is on one set of drawings."""

    rows: int
    metrics: dict[str, Measured]
    """The five, by name (`sketchbatch_client.evaluation.metrics.Metrics`)."""
    top_3: float
    """Share of rows whose label is among the three best scores."""
    reliability: Reliability
    confusion: Confusion
    """(classes, classes): rows = true class, columns = predicted class."""


def judge(scores: Scores, class_index: NDArray[np.integer]) -> Quality:
    """Judges the scores of some rows, at least one, by their true class, (rows,)."""
    best = scores.argmax(axis=1)
    confusion = confuse(class_index, best, scores.shape[1])
    top_3 = np.argpartition(-scores, min(3, scores.shape[1]) - 1, axis=1)[:, :3]
    return Quality(
        rows=len(scores),
        metrics=_with_intervals(confusion),
        top_3=float((top_3 == class_index[:, None]).any(axis=1).mean()),
        reliability=_reliability(scores.max(axis=1).astype(np.float64), best == class_index),
        confusion=confusion,
    )


def _with_intervals(confusion: Confusion) -> dict[str, Measured]:
    """Bootstrap percentiles. Drawing rows with replacement is drawing the counts of the matrix from a multinomial."""
    random = np.random.default_rng(0)
    cells, rows = confusion.ravel(), int(confusion.sum())
    taken = np.flatnonzero(cells)
    found: dict[str, list[float]] = {}
    for counts in random.multinomial(rows, cells[taken] / rows, RESAMPLES):
        resampled = np.zeros_like(cells)
        resampled[taken] = counts
        for name, value in asdict(measure(resampled.reshape(confusion.shape))).items():
            found.setdefault(name, []).append(value)
    low_high = {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {
        name: Measured(value, float(low_high[name][0]), float(low_high[name][1]))
        for name, value in asdict(measure(confusion)).items()
    }


def _reliability(confidence: NDArray[np.float64], is_right: NDArray[np.bool_]) -> Reliability:
    """Bins of equal width by confidence."""
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    held = rows > 0
    return Reliability(
        confidence=np.bincount(place, confidence, BINS)[held] / rows[held],
        accuracy=np.bincount(place, is_right, BINS)[held] / rows[held],
        rows=rows[held],
    )
