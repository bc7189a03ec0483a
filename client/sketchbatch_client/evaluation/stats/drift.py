"""Compare measured metrics with the metrics that training stored in the model file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from .intervals import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Compares the stored value of one metric with its measured value."""

    stored: float
    measured: Measured
    interval_factor: float
    """Factor >= 1 by which `is_chance` widens the measured interval, because chance varies the stored value, too."""

    @property
    def is_within(self) -> bool | None:
        """Whether the stored value lies in the measured interval; None = the measured value has no interval."""
        return self.measured.low <= self.stored <= self.measured.high if self.measured.interval else None

    @property
    def is_chance(self) -> bool | None:
        """Whether chance in both measurements explains the difference; None = the measured value has no interval."""
        if self.measured.interval is None:
            return None
        value = self.measured.value
        lowest = value - self.interval_factor * (value - self.measured.low)
        highest = value + self.interval_factor * (self.measured.high - value)
        return lowest <= self.stored <= highest

    def __str__(self) -> str:
        if self.is_within is None:
            return "not compared: the measured value has no interval"
        if self.is_within:
            return "within the interval"
        return "outside the interval, but within chance" if self.is_chance else "outside the interval, beyond chance"


LIKELY_REASONS = (
    "other drawings or classes than those of the stored figures, training drawings of the model, or another model"
)
"""Why a metric may differ beyond chance from the stored one, for people."""


def stored_rows(stored: Mapping[str, Any]) -> int:
    """Return the number of drawings on which the stored metrics were measured; 0 = the number is not stored."""
    rows = stored.get("rows")
    return int(rows) if _is_number(rows) and rows > 0 else 0


def drift(stored: Mapping[str, Any], measured: Mapping[str, Measured], rows: int) -> dict[str, Drift]:
    """Return the drift of each stored metric by name.

    `stored` is `ModelInfo.metrics`; `measured` was measured on `rows` drawings. Both values vary by chance, and the
    variance of their difference is the sum of both variances. So the interval is multiplied by
    sqrt(1 + rows / stored rows). A metric that is not defined on the measured drawings has no drift.
    """
    rows_of_stored = stored_rows(stored)
    factor = math.sqrt(1 + rows / rows_of_stored) if rows_of_stored else 1.0
    return {
        name: Drift(stored=float(stored[name]), measured=value, interval_factor=factor)
        for name, value in measured.items()
        if value.is_defined and _is_number(stored.get(name))
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
