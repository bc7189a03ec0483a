"""Says whether one of two models is better on the same drawings, or luck would explain it: McNemar's test."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .intervals import Measured, difference
from .metrics import Confusion, confuse

EXACT_UP_TO = 1000
"""Drawings that one model alone got right, up to which the test is exact; beyond it both agree to four digits."""

SIGNIFICANT = 0.05
"""Below it a difference is called one."""

Rights = NDArray[np.bool_]  # (rows,), whether a model named the row right


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two models on the same drawings, at least one."""

    table: Confusion
    """(2, 2), rows = is the first right, columns = is the second; 0 = wrong, 1 = right."""
    difference: Measured
    """Accuracy of the first less that of the second."""

    @property
    def only_first(self) -> int:
        """Drawings that the first alone named right."""
        return int(self.table[1, 0])

    @property
    def only_second(self) -> int:
        """Drawings that the second alone named right."""
        return int(self.table[0, 1])

    @property
    def is_exact(self) -> bool:
        """Whether `p_value` comes from the binomial distribution, and not from chi-square."""
        return self.only_first + self.only_second <= EXACT_UP_TO

    @property
    def p_value(self) -> float:
        """How often two equally good models would differ so much or more."""
        return mcnemar(self.only_first, self.only_second)

    def verdict(self, first: str, second: str) -> str:
        """A sentence, with the models' names."""
        if self.p_value >= SIGNIFICANT:
            return f"Chance explains the difference between {first} and {second}."
        better, worse = (first, second) if self.only_first > self.only_second else (second, first)
        return f"{better} names these drawings better than {worse}."


def pair(table: Confusion) -> Paired:
    """Judges what `count` counted."""
    return Paired(table=table, difference=difference(table))


def count(first: Rights, second: Rights) -> Confusion:
    """The (2, 2) table of some rows."""
    return confuse(first.astype(np.int64), second.astype(np.int64), 2)


def spoken(p_value: float) -> str:
    """Two digits of it, or below which it is."""
    return "less than 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's test by how many drawings one model alone named right.

    Exact (binomial) up to EXACT_UP_TO such drawings, else chi-square with Edwards' continuity correction.
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
