"""Check the arguments of public functions; every error is one line: the argument, what it must be, and what it is."""

import math
from numbers import Real
from operator import index

import numpy as np


def whole_number(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int; accept integers of NumPy, but neither bool nor float.

    Raises:
        ValueError: `value` is not an integer, or is outside the range.
    """
    return _whole_number(name, value, minimum, maximum, "")


def optional_whole_number(name: str, value: object, minimum: int, maximum: int | None = None) -> int | None:
    """Return `value` as `whole_number` does, or None if it is None."""
    return None if value is None else _whole_number(name, value, minimum, maximum, ", or None")


def duration_s(name: str, value: object, *, allows_infinity: bool = False) -> float:
    """Return `value`, a number of seconds, as a float; accept numbers of NumPy, but not bool.

    Raises:
        ValueError: `value` is not a number, is negative or NaN, or is infinite and `allows_infinity` is False.
    """
    seconds = _as_float(value)
    if not seconds >= 0 or (math.isinf(seconds) and not allows_infinity):
        raise ValueError(f"{name} must be a number, 0 or more, got {value!r}")
    return seconds


def timeout_s(name: str, value: object) -> float:
    """Return `value`, a time limit in seconds, as a float; None becomes infinity.

    Raises:
        ValueError: `value` is neither None nor a number above 0.
    """
    seconds = math.inf if value is None else _as_float(value)
    if not seconds > 0:
        raise ValueError(f"{name} must be a number above 0, or None = no limit, got {value!r}")
    return seconds


def _whole_number(name: str, value: object, minimum: int, maximum: int | None, alternative: str) -> int:
    number = _as_int(value)
    if number is None:
        raise ValueError(f"{name} must be an integer, {minimum} or more{alternative}, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name} must be {minimum} or more{alternative}, got {value!r}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}{alternative}, got {value!r}")
    return number


def _as_int(value: object) -> int | None:
    """Return an integer of Python or NumPy as an int; None for all other values."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return index(value)  # type: ignore[arg-type]  # the TypeError is handled
    except TypeError:
        return None


def _as_float(value: object) -> float:
    """Return a real number of Python or NumPy as a float; NaN for all other values."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer above 1e308
        return math.inf
