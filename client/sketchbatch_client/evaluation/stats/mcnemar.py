"""Test whether one of two models is better on the same drawings (McNemar's test)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .intervals import Measured, difference
from .metrics import Confusion, confuse

EXACT_UP_TO = 1000
"""The exact test is used if at most this many drawings are classified correctly by only one of the two models.

Above this number, the exact test and the chi-square test agree to four digits.
"""

SIGNIFICANT = 0.05  # level of significance: a difference with a lower p value is more than chance

Correct = NDArray[np.bool_]  # (rows,), whether a model classified the row correctly


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The result of McNemar's test of two models on the same drawings; there is at least one drawing."""

    table: Confusion
    """(2, 2), rows = is the first model correct, columns = is the second correct; 0 = no, 1 = yes."""
    difference: Measured
    """Accuracy of the first model minus accuracy of the second."""

    @property
    def only_first(self) -> int:
        """Drawings that only the first model classified correctly."""
        return int(self.table[1, 0])

    @property
    def only_second(self) -> int:
        """Drawings that only the second model classified correctly."""
        return int(self.table[0, 1])

    @property
    def is_exact(self) -> bool:
        """Whether `p_value` comes from the binomial distribution instead of chi-square."""
        return self.only_first + self.only_second <= EXACT_UP_TO

    @property
    def p_value(self) -> float:
        """Probability that two equally good models differ at least as much as these two."""
        return mcnemar(self.only_first, self.only_second)

    def verdict(self, first: str, second: str) -> str:
        """Return the result as a sentence; `first` and `second` are the names of the models."""
        if first == second:
            return f"{first} was compared with itself."
        if not self.only_first + self.only_second:
            return f"{first} and {second} are right about the same drawings."
        if self.p_value >= SIGNIFICANT:
            return f"Chance explains the difference between {first} and {second}."
        better, worse = (first, second) if self.only_first > self.only_second else (second, first)
        return f"{better} classifies these drawings better than {worse}."


def pair(table: Confusion) -> Paired:
    """Return the comparison for a table that `count_pairs` returned, or for the sum of several such tables."""
    return Paired(table=table, difference=difference(table))


def count_pairs(first: Correct, second: Correct) -> Confusion:
    """Return the `table` of `Paired` for some rows."""
    return confuse(first.astype(np.int64), second.astype(np.int64), 2)


def format_p_value(p_value: float) -> str:
    """Return a p value with two digits, or "less than 0.0001"."""
    return "less than 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value, given how many drawings only the first or only the second model got right.

    The test is exact (binomial) up to EXACT_UP_TO such drawings, else chi-square with Edwards' continuity correction.
    Q. McNemar, Psychometrika 12 (1947); A. L. Edwards, Psychometrika 13 (1948).
    """
    differing = only_first + only_second
    if not differing:
        return 1.0
    if differing > EXACT_UP_TO:
        gap = max(abs(only_first - only_second) - 1, 0)
        return math.erfc(gap / math.sqrt(2 * differing))
    fewer = min(only_first, only_second)
    tail = sum(math.comb(differing, hits) for hits in range(fewer + 1))
    return min(1.0, tail / (1 << differing - 1))
