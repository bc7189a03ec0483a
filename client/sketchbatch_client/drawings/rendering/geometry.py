"""Place strokes in the square from which Quick, Draw! renders its 28x28 bitmaps.

Google's rules (quickdraw-dataset#19, confirmed in #27): the strokes lie in a square of 256 units, and the
pen is 16 units wide. The square has a margin of 24 units: half the pen's width, and a padding of 16 units. The largest
x and y alone decide how a drawing is centred.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 28  # pixels
SQUARE = 256.0  # units; the square that the strokes lie in
PEN = 16.0  # units; width of the pen
MARGIN = 24.0  # units; the padding and half the pen's width
SCALE = SIDE / (SQUARE + 2 * MARGIN)  # pixels per unit: 28 / 304
_STROKE = "stroke {} must be [xs, ys] or [xs, ys, ts]"
_DRAWINGS_REMEDY = "call rasterize_all for a list of drawings, and simplify for each of them"
_POINT_REMEDY = "if it is a point, put the points of each stroke into a list of their own"
MAX_COORDINATE = 1e6  # units; cairo's 24.8 fixed point overflows at 90 times this limit

Floats = NDArray[np.float64]
Strokes = Sequence[Sequence[Sequence[float]]]
"""Each stroke is `[[x, ...], [y, ...]]`, y downwards; a third list (times) is ignored."""


class Layout(NamedTuple):
    """The centred strokes of one drawing."""

    points: Floats  # (points, 2): x and y of all strokes in order, in units, without MARGIN
    lengths: list[int]  # number of points of each stroke, two or more


def lay_out(strokes: Strokes) -> Layout:
    """Centre one drawing, in the units of a simplified .ndjson file (0 to 255).

    Raises ValueError as `check_stroke` and `coordinates` do, and if there is no stroke.
    """
    check_has_strokes(strokes)
    xs: list[float] = []
    ys: list[float] = []
    lengths = []
    for number, stroke in enumerate(strokes):
        check_stroke(stroke, number)
        x, y = stroke[0], stroke[1]
        if len(x) == 1:  # cairo draws a line from a point to itself, but no single point
            x, y = (*x, *x), (*y, *y)
        xs.extend(x)  # not +=, which adds NumPy arrays element by element
        ys.extend(y)
        lengths.append(len(x))
    points = coordinates((xs, ys)).T
    return Layout(points + (SQUARE - points.max(axis=0)) / 2, lengths)


def check_has_strokes(strokes: Strokes) -> None:
    """Raise ValueError for something else than a list of strokes, and for one without strokes: an empty canvas."""
    given: object = strokes
    if not hasattr(given, "__len__") or isinstance(given, (str, bytes, dict)):
        way = "; pass the value of its key drawing" if isinstance(given, dict) and "drawing" in given else ""
        raise ValueError(f"a drawing must be a list of strokes, got {type(given).__name__}{way}")
    if not len(strokes):
        raise ValueError("a drawing must have at least one stroke, got none")


def check_stroke(stroke: object, number: int) -> None:
    """Raise ValueError unless a stroke is [xs, ys] or [xs, ys, ts], lists of one length, which is at least 1."""
    try:
        lengths = [len(each) for each in stroke]  # type: ignore[attr-defined]  # the TypeError is handled
    except TypeError:
        way = f"; {_POINT_REMEDY}" if _is_point(stroke) else ""
        raise ValueError(f"{_STROKE.format(number)}, got {stroke!r:.60}{way}") from None
    if isinstance(stroke, dict):
        keys = ", ".join(map(str, stroke))
        raise ValueError(f"{_STROKE.format(number)}, got a dict with the keys {keys}; {_dict_remedy(stroke)}")
    if _has_strokes(stroke):
        raise ValueError(f"{_STROKE.format(number)}, got a list of strokes; {_DRAWINGS_REMEDY}")
    if not 2 <= len(lengths) <= 3 or any(isinstance(each, (dict, str)) for each in stroke):  # type: ignore[attr-defined]
        raise ValueError(f"{_STROKE.format(number)}, got {points_in(stroke) or f'{len(lengths)} entries'}")
    if not lengths[0] or len(set(lengths)) > 1:
        given = " and ".join(map(str, lengths))
        raise ValueError(f"stroke {number} must have as many x as y and at least one, got {given}")


def _dict_remedy(stroke: dict[Any, Any]) -> str:
    """Return how to convert a stroke, or a point, that is an object of JSON."""
    lists = {key: value for key, value in stroke.items() if hasattr(value, "__len__") and not isinstance(value, str)}
    axes = [key for key, value in lists.items() if len(value) and not hasattr(value[0], "__len__")]
    if len(axes) == 2 and len(lists[axes[0]]) == len(lists[axes[1]]):
        return f"convert it with [stroke[{axes[0]!r}], stroke[{axes[1]!r}]], then call simplify"
    points = [key for key, value in lists.items() if len(value) and hasattr(value[0], "__len__")]
    return f"take its list stroke[{points[0]!r}]" if len(points) == 1 else _POINT_REMEDY


def _has_strokes(stroke: Any) -> bool:
    """Return whether the first entry of a stroke is a stroke itself, so that it is a drawing."""
    try:
        xs, ys = stroke[0][:2]
        return len(xs) == len(ys) > 0 and not hasattr(xs[0], "__len__") and not isinstance(xs, str)
    except (IndexError, KeyError, TypeError, ValueError):
        return False


def _is_point(stroke: object) -> bool:
    return isinstance(stroke, (list, tuple)) and 2 <= len(stroke) <= 3


def points_in(stroke: Any) -> str:
    """Describe a stroke that is a list of points, and how to convert it; return "" if its entries are no points."""
    if len(stroke) and all(isinstance(each, dict) for each in stroke):
        way = "[[p['x'] for p in stroke], [p['y'] for p in stroke]]"
    elif len(stroke) > 3 and all(hasattr(each, "__len__") and 2 <= len(each) <= 3 for each in stroke):
        way = "list(zip(*stroke))"
    else:
        return ""
    return f"{len(stroke)} points; convert with {way}, then call simplify"


def coordinates(values: Any) -> Floats:
    """Return coordinates as an array. Raises ValueError if one is not a number or exceeds MAX_COORDINATE."""
    try:
        given = np.array(values)
        points = given.astype(np.float64)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"points must be numbers: {exc}") from exc
    if given.dtype.kind in "SUb":
        first = given.flat[0].item()
        raise ValueError(f"points must be numbers, got {type(first).__name__} {first!r}")
    if not np.abs(points).max() <= MAX_COORDINATE:
        raise ValueError(f"points must be numbers within {MAX_COORDINATE:g} units, got {np.abs(points).max():g}")
    return points
