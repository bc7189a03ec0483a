"""Fit rejection thresholds, and measure what a model gains if drawings with low scores are rejected.

A threshold is a number for the highest score of a drawing: a drawing below it is rejected, because it probably shows
none of the model's classes. `RejectionThreshold` describes what a threshold did to the drawings of the fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sketchbatch.rejection import KEY, Rejection, RejectionThreshold, decode, encode

__all__ = [
    "COVERAGES",
    "KEY",
    "Rejection",
    "RejectionThreshold",
    "RiskCoverage",
    "auroc",
    "curve_of",
    "decode",
    "encode",
    "fit",
    "risk_coverage",
]

COVERAGES = (0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Coverages for which `fit` finds thresholds, unless others are given."""


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The accuracy of the kept rows for each score threshold; the risk is 1 - accuracy (El-Yaniv and Wiener 2010)."""

    score: NDArray[np.float64]
    """(points,), thresholds, falling; a row is kept if its score is at least the threshold."""
    coverage: NDArray[np.float64]
    """(points,), share of the rows that are kept, rising to 1."""
    accuracy: NDArray[np.float64]
    """(points,), share of the kept rows that are correct."""
    area: float
    """Area under the risk-coverage curve (AURC), 0 = perfect: the mean over all rows of the risk that the row's own
    score has as the threshold (Geifman and El-Yaniv 2017)."""

    def index_at(self, coverage: float) -> int:
        """Return the index of the point with the highest threshold that keeps at least `coverage` of the rows."""
        return min(int(np.searchsorted(self.coverage, coverage - 1e-12)), len(self.coverage) - 1)

    def points(self, count: int) -> NDArray[np.int64]:
        """Return the indices of at most `count` points at equal distances of coverage, the last one included."""
        return np.unique([self.index_at(number / count) for number in range(1, count + 1)])


def fit(
    best_scores_known: ArrayLike,
    is_correct: ArrayLike,
    best_scores_unknown: ArrayLike,
    coverages: Sequence[float] = COVERAGES,
) -> Rejection:
    """Return the threshold of each coverage, and what it does to the drawings of the model's and of other classes.

    The threshold of a coverage is the highest one that keeps at least this share of the drawings of the model's
    classes. The values describe other drawings correctly only if the model was not trained on these drawings: pass
    scores that were computed out of fold. A threshold does not depend on the number of unknown drawings.

    Args:
        best_scores_known: (rows,), the highest score of each drawing of the model's classes.
        is_correct: (rows,) of bool, whether the class with this score is the true one.
        best_scores_unknown: (unknown rows,), the highest score of each drawing of other classes.
        coverages: Each above 0 and at most 1, in any order.

    Raises:
        ValueError: An array is empty, has another shape or a score that is not finite; or a coverage is out of range.
    """
    known, unknown = _scores(best_scores_known, "known"), _scores(best_scores_unknown, "unknown")
    correct = _flags(is_correct, len(known))
    bad = [each for each in coverages if not 0 < each <= 1]
    if bad or not coverages:
        raise ValueError(f"coverages must be above 0 and at most 1, got {bad or 'none'}")
    falling = np.sort(known)[::-1]
    thresholds = []
    for coverage in sorted(set(coverages), reverse=True):
        kept_rows = max(1, math.ceil(coverage * len(known) - 1e-9))  # 0.55 * 100 is above 55 in floating point
        score = float(falling[kept_rows - 1])
        thresholds.append(
            RejectionThreshold(
                coverage=float(coverage),
                score=score,
                accuracy=float(correct[known >= score].mean()),
                unknown_rejected=float((unknown < score).mean()),
            )
        )
    return Rejection(
        rows=len(known), unknown_rows=len(unknown), auroc=auroc(known, unknown), thresholds=tuple(thresholds)
    )


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Return the area under the ROC curve of a score that separates known from unknown drawings.

    The area is the share of the pairs of a known and an unknown drawing in which the known one has the higher score; a
    pair with equal scores counts half (Mann-Whitney). 1 = perfect, 0.5 = the score says nothing.

    Args:
        known: (rows,), scores of known drawings.
        unknown: (unknown rows,), scores of unknown drawings.

    Raises:
        ValueError: An array is empty, has another shape or a score that is not finite.
    """
    scores, others = _scores(known, "known"), np.sort(_scores(unknown, "unknown"))
    below, up_to = (np.searchsorted(others, scores, side).mean() for side in ("left", "right"))
    return float((below + up_to) / (2 * len(others)))


def risk_coverage(best_scores: ArrayLike, is_correct: ArrayLike) -> RiskCoverage:
    """Return the accuracy against the coverage, with one point per different score; rows with equal scores are one.

    Args:
        best_scores: (rows,), the highest score of each row.
        is_correct: (rows,) of bool, whether the class with this score is the true one.

    Raises:
        ValueError: An array is empty, has another shape or a score that is not finite.
    """
    scores = _scores(best_scores, "best")
    correct = _flags(is_correct, len(scores))
    values, group = np.unique(scores, return_inverse=True)
    rows = np.bincount(group, minlength=len(values))
    hits = np.bincount(group[correct], minlength=len(values))
    return curve_of(values, rows, hits)


def curve_of(scores: NDArray[np.float64], rows: NDArray[np.int64], correct: NDArray[np.int64]) -> RiskCoverage:
    """Return the curve of rows that are counted by score.

    Args:
        scores: (points,), different scores, rising.
        rows: (points,), number of rows with this score, at least 1.
        correct: (points,), number of these rows that are correct.
    """
    kept, hits = np.cumsum(rows[::-1]), np.cumsum(correct[::-1])
    accuracy = hits / kept
    return RiskCoverage(
        score=scores[::-1].astype(np.float64),
        coverage=kept / kept[-1],
        accuracy=accuracy,
        area=float(((1 - accuracy) * rows[::-1]).sum() / kept[-1]),
    )


def _scores(values: ArrayLike, kind: str) -> NDArray[np.float64]:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{kind} scores must have the shape (rows,) with at least one row, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{kind} scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    return scores


def _flags(values: ArrayLike, rows: int) -> NDArray[np.bool_]:
    flags: NDArray[Any] = np.asarray(values)
    if flags.shape != (rows,) or flags.dtype != np.bool_:
        raise ValueError(f"is_correct must be bool of shape ({rows},), got {flags.dtype} of shape {flags.shape}")
    return flags
