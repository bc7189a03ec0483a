"""Says whether a model is as often right as its scores say: bins of confidence, ECE, log loss, Brier score.

Counts, so that what was counted of two sets of rows adds up, and rows need not be kept.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]  # (rows, classes), each row sums to 1

BINS = 15
"""Of equal width, by the best label's score (Guo et al. 2017, arXiv 1706.04599)."""

_LEAST = float(np.finfo(np.float32).eps)  # a score of 0 for the true label would be an infinite loss; as scikit-learn
_SUM_OFF = 1e-2  # far more than rounding, far less than scores without a softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How sure a model was, and how often it was right, of at least one row."""

    bin_rows: NDArray[np.int64]
    """(BINS,), rows by the score of the label named."""
    bin_score: NDArray[np.float64]
    """(BINS,), sum of those scores."""
    bin_right: NDArray[np.int64]
    """(BINS,), rows where that label is right."""
    loss: float
    """Sum over rows of: -log(score of the true label)."""
    squared_error: float
    """Sum over rows of: sum over classes of (score - (1 if it is the true one else 0))^2."""

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            bin_rows=self.bin_rows + other.bin_rows,
            bin_score=self.bin_score + other.bin_score,
            bin_right=self.bin_right + other.bin_right,
            loss=self.loss + other.loss,
            squared_error=self.squared_error + other.squared_error,
        )

    @property
    def rows(self) -> NDArray[np.int64]:
        """Of each bin that holds any, as are `confidence` and `accuracy`."""
        return self.bin_rows[self.bin_rows > 0]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean score of the label named."""
        return self.bin_score[self.bin_rows > 0] / self.rows

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of rows where that label is right."""
        return self.bin_right[self.bin_rows > 0] / self.rows

    @property
    def mean_confidence(self) -> float:
        """Of all rows; the accuracy that the scores promise."""
        return float(self.bin_score.sum() / self.bin_rows.sum())

    @property
    def expected_error(self) -> float:
        """ECE: mean distance of confidence and accuracy, over rows. 0 = it is as often right as it says."""
        return float((np.abs(self.confidence - self.accuracy) * self.rows).sum() / self.rows.sum())

    @property
    def log_loss(self) -> float:
        """Mean -log(score of the true label), natural; 0 = sure and right, log(classes) = knows nothing."""
        return self.loss / int(self.bin_rows.sum())

    @property
    def brier(self) -> float:
        """Mean squared distance of the scores from the truth, summed over classes: 0 to 2 (Brier 1950)."""
        return self.squared_error / int(self.bin_rows.sum())


def calibrate(scores: Scores, class_index: NDArray[np.integer]) -> Calibration:
    """Counts some rows, at least one, by their true class, (rows,)."""
    sure = scores.max(axis=1).astype(np.float64)
    true_score = scores[np.arange(len(scores)), class_index].astype(np.float64)
    place = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    is_right = scores.argmax(axis=1) == class_index
    return Calibration(
        bin_rows=np.bincount(place, minlength=BINS),
        bin_score=np.bincount(place, sure, BINS).astype(np.float64),  # which it is, but its types say int
        bin_right=np.bincount(place[is_right], minlength=BINS),
        loss=float(-np.log(np.maximum(true_score, _LEAST)).sum()),
        squared_error=float(np.square(scores, dtype=np.float64).sum() - 2 * true_score.sum() + len(scores)),
    )


def are_shares(scores: Scores) -> bool:
    """Whether every row is 0 or more and sums to 1; a model of somebody's own may lack the softmax."""
    sums = scores.sum(axis=1, dtype=np.float64)
    return bool((scores >= 0).all() and (np.abs(sums - 1) <= _SUM_OFF).all())
