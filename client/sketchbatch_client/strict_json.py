"""Encode JSON that every program can read: JSON has no NaN and no infinity, although Python's encoder writes them."""

import json
import math
from collections.abc import Iterable

from .errors import SketchbatchError


def encode(contents: object, *, indent: int | None = None) -> str:
    """Return `contents` as JSON text, in Unicode.

    Raises SketchbatchError with the place of the first number that is not finite.
    """
    try:
        return json.dumps(contents, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as exc:
        if found := _not_finite(contents, "the value"):
            raise SketchbatchError("{} must be a finite number, got {}".format(*found)) from exc
        raise


def _not_finite(value: object, place: str) -> tuple[str, float] | None:
    """Return the first number in `value` that is not finite, and its place, such as "a.b[1]"; None if there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, value)
    inner: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        inner = ((f"{place}.{key}", each) for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        inner = ((f"{place}[{index}]", each) for index, each in enumerate(value))
    return next((found for name, each in inner if (found := _not_finite(each, name))), None)
