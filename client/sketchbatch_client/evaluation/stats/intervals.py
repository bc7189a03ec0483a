"""Compute 95 % confidence intervals of metrics from counts.

Only the counts are kept, so 50 million drawings take no more memory than their confusion matrix.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import Confusion, measure

RESAMPLES = 1000  # bootstrap resamples; another seed moves the ends of an interval by about a twentieth of its width

SEED = 0  # bootstrap seed: equal counts give equal intervals

_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Measured:
    """The value of a metric and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low, self.high


def with_intervals(confusion: Confusion) -> dict[str, Measured]:
    """Return the five metrics of `Metrics` by name, with bootstrap percentiles; the matrix counts at least one row.

    The bootstrap is not stratified: in its resamples the number of drawings per class varies by chance, too. If the
    test set has a fixed number per class, the intervals are slightly too wide (docs/decisions/0013). If a model makes
    no mistake, the intervals have width 0.
    """
    return _bootstrap(confusion, lambda counts: asdict(measure(counts)))


def difference(table: Confusion) -> Measured:
    """Return the accuracy of the first model minus the accuracy of the second, with bootstrap percentiles.

    `table` is `Paired.table`.
    """
    found = _bootstrap(table, lambda counts: {"difference": float((counts[1, 0] - counts[0, 1]) / counts.sum())})
    return found["difference"]


def wilson(share: NDArray[np.float64], number: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the low and high ends of Wilson's 95 % intervals (Wilson 1927, doi:10.2307/2276774).

    Each `share` was measured on `number` drawings; the interval is 0 to 1 if there is no drawing. Recall and precision
    of a class use this interval, since a class may have few drawings. If 25 drawings have no mistake, the bootstrap
    interval would have width 0.
    """
    z = 1.96
    number = np.maximum(number, 1e-9)
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2)) / (1 + z**2 / number)
    return np.minimum(middle - half, share), np.maximum(middle + half, share)  # corrects rounding at shares of 0 and 1


def _bootstrap(counts: Confusion, measures: Callable[[Confusion], dict[str, float]]) -> dict[str, Measured]:
    """Draw resamples of the rows with replacement, as multinomial draws of their counts, and measure each resample.

    Only one resample at a time is in memory: 1,000 matrices of 345 classes would take a gigabyte.
    """
    random = np.random.default_rng(SEED)
    cells, rows = counts.ravel(), int(counts.sum())
    filled = np.flatnonzero(cells)
    resampled: list[list[float]] = []
    for _ in range(RESAMPLES):
        drawn = np.zeros_like(cells)
        drawn[filled] = random.multinomial(rows, cells[filled] / rows)
        resampled.append(list(measures(drawn.reshape(counts.shape)).values()))
    low, high = np.percentile(resampled, _PERCENTILES, axis=0).tolist()
    return {
        name: Measured(value, low[index], high[index]) for index, (name, value) in enumerate(measures(counts).items())
    }
