"""Count rows by their highest score, for a risk-coverage curve of any number of rows in constant memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .rejection import RiskCoverage, curve_of

_BITS = 20  # of 32: sign, exponent and 11 bits of the fraction
_BINS = 1 << _BITS
_SIGN = np.uint32(1 << 31)


class ScoreHistogram:
    """Counts all and correct rows by score, and exactly those that each of some thresholds keeps.

    Scores of any kind have bins: 2,048 between a number and its double, so 2,048 from 0.5 to 1. Rows in one bin count
    as rows with equal scores. The counts of all possible bins are 16 MiB, of which the operating system provides only
    the pages with rows.
    """

    def __init__(self, thresholds: Sequence[float] = ()) -> None:
        self._thresholds = np.array(thresholds, np.float64)
        self._rows = np.zeros(_BINS, np.int64)
        self._correct = np.zeros(_BINS, np.int64)
        self._kept = np.zeros((2, len(thresholds)), np.int64)  # rows, correct rows

    def add(self, best_scores: NDArray[np.float32], is_correct: NDArray[np.bool_]) -> None:
        """Count some rows; both arguments: (rows,). The scores are finite."""
        bins = _bin_of(best_scores)
        np.add.at(self._rows, bins, 1)
        np.add.at(self._correct, bins[is_correct], 1)
        is_kept = best_scores.astype(np.float64)[:, None] >= self._thresholds
        self._kept += np.stack([is_kept.sum(axis=0), is_kept[is_correct].sum(axis=0)])

    @property
    def kept(self) -> list[tuple[int, int]]:
        """Number of rows that each threshold keeps, and of those among them that are correct."""
        return [(int(rows), int(correct)) for rows, correct in self._kept.T]

    def curve(self) -> RiskCoverage:
        """Return the curve of all rows that were added, at least one; a point per bin, at the lowest score of it."""
        occupied = np.flatnonzero(self._rows)
        return curve_of(_lowest_score(occupied), self._rows[occupied], self._correct[occupied])


def _bin_of(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the first bits of each score, changed so that a higher score never has a lower number."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0: -0.0 becomes 0.0
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> (32 - _BITS)).astype(np.int64)


def _lowest_score(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the lowest score of each bin."""
    ordered = bins.astype(np.uint32) << np.uint32(32 - _BITS)
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return bits.view(np.float32).astype(np.float64)
