"""Compute 95 % confidence intervals of metrics from counts.

Only the counts are kept, so 50 million drawings take no more memory than their confusion matrix. If the counts give no
interval, the reason replaces it: an interval of width 0 would suggest certainty.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import Confusion, measure, reasons

RESAMPLES = 1000  # bootstrap resamples; another seed moves the ends of an interval by about a twentieth of its width

SEED = 0  # bootstrap seed: equal counts give equal intervals

_PERCENTILES = (2.5, 97.5)
_Z = 1.96  # quantile of the normal distribution for 95 %
_MOST_UNDEFINED = 0.05  # largest share of resamples without a value; with more, the percentiles describe other drawings
_NO_WIDTH = 1e-9  # narrower intervals come from rounding
_MOST_DIGITS = 10  # enough to tell the ends of the interval of a billion drawings apart


@dataclass(frozen=True, slots=True)
class Measured:
    """The value of a metric and its 95 % confidence interval; `note` is the reason if one of them is missing."""

    value: float
    """NaN = not defined."""
    low: float = math.nan
    """NaN = no interval."""
    high: float = math.nan
    note: str = ""

    @property
    def is_defined(self) -> bool:
        """Whether the metric has a value."""
        return not math.isnan(self.value)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None = no interval."""
        return None if math.isnan(self.low) else (self.low, self.high)

    def __str__(self) -> str:
        return self.text()

    def text(self, spec: str = ".4f") -> str:
        """Return the value and the interval, or the reason why they are missing."""
        if not self.is_defined:
            return f"not defined: {self.note}"
        return f"{self.value:{spec}}   {self.interval_text(spec)}"

    def interval_text(self, spec: str = ".4f") -> str:
        """Return "LOW to HIGH" with enough digits to distinguish both ends, or the reason why there is no interval."""
        if self.interval is None:
            return f"no interval: {self.note}"
        flags, digits = spec.removesuffix("f").split(".")
        shown = {
            each: (f"{self.low:{flags}.{each}f}", f"{self.high:{flags}.{each}f}") for each in range(int(digits), 12)
        }
        low, high = next((ends for ends in shown.values() if len(set(ends)) == 2), shown[11])
        return f"{low} to {high}"


def with_intervals(confusion: Confusion) -> dict[str, Measured]:
    """Return the five metrics of `Metrics` by name, with intervals; the matrix counts at least one row.

    The accuracy has Wilson's interval, which has a width even if no prediction is wrong. The other metrics have
    bootstrap percentiles. The bootstrap is not stratified: in its resamples the number of drawings per class varies by
    chance, too. If the test set has a fixed number per class, the intervals are slightly too wide
    (docs/decisions/0013).
    """
    metrics, why = measure(confusion), reasons(confusion)
    low, high = wilson(np.array([metrics.accuracy]), confusion.sum(keepdims=True).ravel().astype(np.float64))
    measured = {
        name: Measured(value, note=why[name]) if name in why else _with_percentiles(value, resampled)
        for (name, value), resampled in zip(asdict(metrics).items(), _bootstrap(confusion).T, strict=True)
    }
    return measured | {"accuracy": Measured(metrics.accuracy, float(low[0]), float(high[0]))}


def difference(table: Confusion) -> Measured:
    """Return the accuracy of the first model minus the accuracy of the second, with Bonett's and Price's interval.

    `table` is `Paired.table`. The interval counts one more drawing in each of the two cells in which the models differ
    (Bonett and Price 2012, doi:10.3102/1076998611411915), so that it has a width even if the models never differ.
    """
    rows, only_first, only_second = int(table.sum()), int(table[1, 0]), int(table[0, 1])
    first, second = (only_first + 1) / (rows + 2), (only_second + 1) / (rows + 2)
    middle = first - second
    half = _Z * math.sqrt((first + second - middle**2) / (rows + 2))
    return Measured((only_first - only_second) / rows, max(middle - half, -1.0), min(middle + half, 1.0))


def wilson(share: NDArray[np.float64], number: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the low and high ends of Wilson's 95 % intervals (Wilson 1927, doi:10.2307/2276774).

    Each `share` was measured on `number` drawings; the interval is 0 to 1 if there is no drawing. Accuracy, and recall
    and precision of a class use this interval. If 25 drawings have no mistake, the bootstrap's would have width 0.
    """
    number = np.maximum(number, 1e-9)
    middle = (share + _Z**2 / (2 * number)) / (1 + _Z**2 / number)
    half = _Z * np.sqrt(share * (1 - share) / number + _Z**2 / (4 * number**2)) / (1 + _Z**2 / number)
    low, high = np.minimum(middle - half, share), np.maximum(middle + half, share)  # corrects rounding at 0 and 1
    return np.maximum(low, 0.0), np.minimum(high, 1.0)


def _bootstrap(counts: Confusion) -> NDArray[np.float64]:
    """Draw resamples of the rows with replacement, as multinomial draws of their counts; return (RESAMPLES, 5) metrics.

    Only one resample at a time is in memory: 1,000 matrices of 345 classes would take a gigabyte.
    """
    random = np.random.default_rng(SEED)
    cells, rows = counts.ravel(), int(counts.sum())
    filled = np.flatnonzero(cells)
    resampled: list[list[float]] = []
    for _ in range(RESAMPLES):
        drawn = np.zeros_like(cells)
        drawn[filled] = random.multinomial(rows, cells[filled] / rows)
        resampled.append(list(asdict(measure(drawn.reshape(counts.shape))).values()))
    return np.array(resampled)


def _with_percentiles(value: float, resampled: NDArray[np.float64]) -> Measured:
    """Return a metric with the percentiles of its resamples, if enough of them have a value and they differ."""
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(resampled):
        return Measured(value, note="too few drawings")
    low, high = np.percentile(defined, _PERCENTILES).tolist()
    if high - low < _NO_WIDTH:
        return Measured(value, note="all resamples of these drawings are equal")
    return Measured(value, low, high)
