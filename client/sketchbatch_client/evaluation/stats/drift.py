"""Holds what a model measures here against the figures stored in it when it was trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from .intervals import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One metric, as stored and as measured."""

    stored: float
    measured: Measured
    stretch: float
    """How much further than the interval a figure as good may lie, as the stored one has chance in it, too; >= 1."""

    @property
    def is_within(self) -> bool:
        """Whether the stored figure lies in the measured interval."""
        return self.measured.low <= self.stored <= self.measured.high

    @property
    def is_chance(self) -> bool:
        """Whether chance, here and where the stored figure was measured, explains the difference."""
        value = self.measured.value
        lowest = value - self.stretch * (value - self.measured.low)
        highest = value + self.stretch * (self.measured.high - value)
        return lowest <= self.stored <= highest

    def __str__(self) -> str:
        if self.is_within:
            return "within the interval"
        return "outside the interval, but within chance" if self.is_chance else "outside the interval, beyond chance"


def stored_rows(stored: Mapping[str, Any]) -> int:
    """The drawings that the stored figures were measured on; 0 = not said."""
    rows = stored.get("rows")
    return int(rows) if _is_number(rows) and rows > 0 else 0


def drift(stored: Mapping[str, Any], measured: Mapping[str, Measured], rows: int) -> dict[str, Drift]:
    """By metric, those that are stored.

    A figure as good, of other drawings, strays sqrt(rows / their number) times as far; the two add up as squares.

    Args:
        stored: As `ModelInfo.metrics`; its `rows` are the drawings it was measured on.
        measured: By metric.
        rows: The drawings that those were measured on.
    """
    others = stored_rows(stored)
    stretch = math.sqrt(1 + rows / others) if others else 1.0
    return {
        name: Drift(stored=float(stored[name]), measured=here, stretch=stretch)
        for name, here in measured.items()
        if _is_number(stored.get(name))
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
