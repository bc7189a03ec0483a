"""Rejection thresholds of a model file: below them a drawing probably shows none of the model's classes.

The trainer writes them as JSON into the metadata entry `KEY`, the service checks them, and clients receive them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

KEY = "sketchbatch.rejection"
"""Entry of the `metadata_props` of a model file."""

MAX_THRESHOLDS = 100
"""Most thresholds of a model: the descriptions of models must stay small."""

_MAX_ROWS = 1 << 53  # JSON's readers in other languages have no larger whole numbers
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class RejectionThreshold:
    """One score threshold, with what it did to drawings that did not train the model."""

    coverage: float
    """Share of the drawings of the model's classes that are kept, above 0 and at most 1: the target of the threshold.
    If many drawings have equal scores, the kept share is larger."""
    score: float
    """A drawing is kept if its highest score is at least this number, and rejected otherwise."""
    accuracy: float
    """Share of the kept drawings of the model's classes whose label is correct, 0 to 1."""
    unknown_rejected: float
    """Share of the drawings of other classes that are rejected, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """All thresholds of a model, and how well the highest score separates its classes from other drawings."""

    rows: int
    """Number of drawings of the model's classes on which the thresholds were fitted."""
    unknown_rows: int
    """Number of drawings of other classes."""
    auroc: float
    """Area under the ROC curve of the highest score, 0 to 1: probability that a drawing of the model's classes has a
    higher score than a drawing of another class. 0.5 = the score says nothing."""
    thresholds: tuple[RejectionThreshold, ...]
    """At least one, by falling coverage; a lower coverage has a higher or an equal score."""

    def at(self, coverage: float) -> RejectionThreshold:
        """Return the threshold of this coverage.

        Raises:
            ValueError: There is no threshold of this coverage; the message names the coverages.
        """
        found = next((each for each in self.thresholds if each.coverage == coverage), None)
        if found is None:
            stored = ", ".join(f"{each.coverage:.10g}" for each in self.thresholds)
            raise ValueError(f"must be one of the model's coverages {stored}, got {coverage:.10g}")
        return found


def encode(rejection: Rejection) -> str:
    """Return the JSON text of the metadata entry `KEY`.

    Raises:
        ValueError: A value is outside its range; the message names it.
    """
    text = json.dumps(asdict(rejection))
    decode(text)
    return text


def decode(text: str) -> Rejection:
    """Return the thresholds of the JSON text of `KEY`; unknown keys are ignored.

    Raises:
        ValueError: The text is not JSON, a value is missing or outside its range, or the thresholds are not in order;
            the message has the form "X must be Y, got Z".
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:  # ValueError: also a number of thousands of digits
        raise ValueError(f"must be JSON, got {_shown(text)}") from exc
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object, got {_shown(text)}")
    thresholds = found.get("thresholds")
    if not isinstance(thresholds, list) or not 1 <= len(thresholds) <= MAX_THRESHOLDS:
        got = f"{len(thresholds):,}" if isinstance(thresholds, list) else _shown(thresholds)
        raise ValueError(f"thresholds must be a list of 1 to {MAX_THRESHOLDS} thresholds, got {got}")
    rejection = Rejection(
        rows=_count(found, "rows"),
        unknown_rows=_count(found, "unknown_rows"),
        auroc=_share(found, "auroc"),
        thresholds=tuple(_threshold(each) for each in thresholds),
    )
    _check_order(rejection.thresholds)
    return rejection


def _threshold(found: object) -> RejectionThreshold:
    if not isinstance(found, dict):
        raise ValueError(f"a threshold must be a JSON object, got {_shown(found)}")
    coverage = _share(found, "coverage")
    if not coverage:
        raise ValueError("coverage must be above 0, got 0")
    return RejectionThreshold(
        coverage=coverage,
        score=_number(found, "score", "a finite number", -math.inf, math.inf),
        accuracy=_share(found, "accuracy"),
        unknown_rejected=_share(found, "unknown_rejected"),
    )


def _check_order(thresholds: Sequence[RejectionThreshold]) -> None:
    for before, after in pairwise(thresholds):
        if before.coverage <= after.coverage or before.score > after.score:
            first, second = (f"coverage {each.coverage:.10g} score {each.score:.10g}" for each in (before, after))
            raise ValueError(f"thresholds must have falling coverages and rising scores, got {first} before {second}")


def _share(found: dict[str, Any], key: str) -> float:
    return _number(found, key, "a number from 0 to 1", 0, 1)


def _number(found: dict[str, Any], key: str, expected: str, least: float, most: float) -> float:
    value: Any = found.get(key)
    # An integer is compared before it is converted, because it may have too many digits for a float.
    if type(value) not in (int, float) or not least <= value <= most or abs(value) > 1.7e308:
        raise ValueError(f"{key} must be {expected}, got {_shown(value)}")
    return float(value)


def _count(found: dict[str, Any], key: str) -> int:
    value = found.get(key)
    if type(value) is not int or not 1 <= value <= _MAX_ROWS:
        raise ValueError(f"{key} must be a whole number from 1, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if type(value) is int and abs(value) > _MAX_ROWS:  # Python refuses to print thousands of digits
        return "a larger number"
    if isinstance(value, list | dict):  # may be large and deep
        return "a list" if isinstance(value, list) else "an object"
    return f"{value!r:.{_SHOWN_CHARACTERS}}"
