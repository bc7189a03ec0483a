"""Measure how well scores agree with the share of correct predictions: bins of scores, ECE, log loss, Brier score.

A `Calibration` holds counts and sums only, so the calibrations of two sets of rows can be added.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]  # (rows, classes), each row sums to 1

BINS = 15
"""Number of bins of equal width; the highest score of a row selects its bin (Guo et al. 2017, arXiv 1706.04599)."""

_MIN_SCORE = float(np.finfo(np.float32).eps)  # scikit-learn's bound: a score of 0 would make the log loss infinite
_SUM_TOLERANCE = 1e-2  # far above rounding errors, far below the error of a model without a softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Compares the scores of at least one row with the share of correct predictions."""

    bin_rows: NDArray[np.int64]
    """(BINS,), number of rows; the score of the predicted label selects the bin of a row."""
    bin_score: NDArray[np.float64]
    """(BINS,), sum of the scores of the predicted labels."""
    bin_correct: NDArray[np.int64]
    """(BINS,), number of rows whose predicted label is correct."""
    loss: float
    """Sum over rows of: -log(score of the true label)."""
    squared_error: float
    """Sum over rows and classes of: (score - truth)^2, where truth is 1 for the true class and 0 otherwise."""

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    @property
    def rows(self) -> NDArray[np.int64]:
        """Number of rows in each bin that is not empty; `confidence` and `accuracy` leave out empty bins, too."""
        return self.bin_rows[self.bin_rows > 0]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean score of the predicted label, by bin."""
        return self.bin_score[self.bin_rows > 0] / self.rows

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of rows whose predicted label is correct, by bin."""
        return self.bin_correct[self.bin_rows > 0] / self.rows

    @property
    def mean_confidence(self) -> float:
        """Mean score of the predicted label over all rows; for a calibrated model it equals the accuracy."""
        return float(self.bin_score.sum() / self.bin_rows.sum())

    @property
    def expected_error(self) -> float:
        """Expected calibration error (ECE): mean over rows of |confidence - accuracy| of the row's bin; 0 = best."""
        return float((np.abs(self.confidence - self.accuracy) * self.rows).sum() / self.rows.sum())

    @property
    def log_loss(self) -> float:
        """Mean -log(score of the true label), natural logarithm; 0 = perfect, log(classes) = equal scores."""
        return self.loss / int(self.bin_rows.sum())

    @property
    def brier(self) -> float:
        """Brier score: `squared_error` divided by the number of rows, 0 = perfect, 2 = worst (Brier 1950)."""
        return self.squared_error / int(self.bin_rows.sum())


def calibrate(scores: Scores, class_index: NDArray[np.integer]) -> Calibration:
    """Return the calibration of one or more rows of scores; `class_index` (rows,) holds the true classes."""
    best_score = scores.max(axis=1).astype(np.float64)
    true_score = scores[np.arange(len(scores)), class_index].astype(np.float64)
    bin_index = np.minimum((best_score * BINS).astype(np.int64), BINS - 1)
    is_correct = scores.argmax(axis=1) == class_index
    return Calibration(
        bin_rows=np.bincount(bin_index, minlength=BINS),
        bin_score=np.bincount(bin_index, best_score, BINS).astype(np.float64),  # NumPy's type stub declares int
        bin_correct=np.bincount(bin_index[is_correct], minlength=BINS),
        loss=float(-np.log(np.maximum(true_score, _MIN_SCORE)).sum()),
        squared_error=float(np.square(scores, dtype=np.float64).sum() - 2 * true_score.sum() + len(scores)),
    )


def are_probabilities(scores: Scores) -> bool:
    """Return whether each row is non-negative and sums to 1; a model without a softmax fails this check."""
    sums = scores.sum(axis=1, dtype=np.float64)
    return bool((scores >= 0).all() and (np.abs(sums - 1) <= _SUM_TOLERANCE).all())
