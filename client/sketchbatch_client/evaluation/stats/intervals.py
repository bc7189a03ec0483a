"""Says how far figures may be off by chance: what holds them with 95 %, were other drawings of this kind taken.

Works on counts, not on rows, so that 50 million rows cost no more than their confusion matrix.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import Confusion, measure

RESAMPLES = 1000
"""Of the bootstrap; the ends of an interval then move by about a twentieth of its width."""

SEED = 0
"""Of the bootstrap, so that the same counts give the same interval."""

_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and the interval that holds it with 95 %, were other drawings of this kind taken."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """Its two ends."""
        return self.low, self.high


def with_intervals(confusion: Confusion) -> dict[str, Measured]:
    """The five metrics by name (`Metrics`), with bootstrap percentiles, of a matrix with at least one row counted.

    Not stratified: how many drawings of each class there are counts as chance, too. Where that was fixed beforehand the
    intervals are a little too wide (docs/decisions/0013). Without a single mistake they have no width at all.
    """
    found: dict[str, list[float]] = {}
    for resampled in _resamples(confusion):
        for name, value in asdict(measure(resampled)).items():
            found.setdefault(name, []).append(value)
    return {name: _measured(value, found[name]) for name, value in asdict(measure(confusion)).items()}


def difference(table: Confusion) -> Measured:
    """How much more often the first of two models is right, with bootstrap percentiles.

    Args:
        table: (2, 2), rows = is the first right, columns = is the second; 0 = wrong, 1 = right.
    """
    found = [_difference(resampled) for resampled in _resamples(table)]
    return _measured(_difference(table), found)


def wilson(share: NDArray[np.float64], number: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % interval of shares of that many drawings, low and high (Wilson 1927, doi:10.2307/2276774); 0, 1 of none.

    For recall and precision of a class: a bootstrap of 25 drawings, all named right, would know no doubt.
    """
    z = 1.96
    number = np.maximum(number, 1e-9)
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2)) / (1 + z**2 / number)
    return np.minimum(middle - half, share), np.maximum(middle + half, share)  # of none or all, rounding would pass it


def _resamples(counts: Confusion) -> Iterator[Confusion]:
    """Drawing rows with replacement is drawing their counts from a multinomial.

    One at a time: 1,000 matrices of 345 classes would take a gigabyte.
    """
    random = np.random.default_rng(SEED)
    cells, rows = counts.ravel(), int(counts.sum())
    taken = np.flatnonzero(cells)
    for _ in range(RESAMPLES):
        resampled = np.zeros_like(cells)
        resampled[taken] = random.multinomial(rows, cells[taken] / rows)
        yield resampled.reshape(counts.shape)


def _difference(table: Confusion) -> float:
    return float((table[1, 0] - table[0, 1]) / table.sum())


def _measured(value: float, resampled: list[float]) -> Measured:
    low, high = np.percentile(resampled, _PERCENTILES)
    return Measured(value, float(low), float(high))
