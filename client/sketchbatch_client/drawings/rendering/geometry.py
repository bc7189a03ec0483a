"""Place strokes in the square from which Quick, Draw! renders its 28x28 bitmaps.

Google's rules (quickdraw-dataset#19, confirmed in #27): the strokes lie in a square of 256 units, and the
pen is 16 units wide. The square has a margin of 24 units: half the pen's width, and a padding of 16 units. The largest
x and y alone decide how a drawing is centred.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 28  # pixels
SQUARE = 256.0  # units; the square that the strokes lie in
PEN = 16.0  # units; width of the pen
MARGIN = 24.0  # units; the padding and half the pen's width
SCALE = SIDE / (SQUARE + 2 * MARGIN)  # pixels per unit: 28 / 304
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

    Raises ValueError if there is no stroke, if a stroke has no point, or if its lists of x and y differ in length. Also
    raises ValueError if a coordinate is not a number or exceeds MAX_COORDINATE.
    """
    xs: list[float] = []
    ys: list[float] = []
    lengths = []
    for number, stroke in enumerate(strokes):
        if len(stroke) < 2:
            raise ValueError(f"stroke {number} must be [xs, ys], got {len(stroke)} lists")
        x, y = stroke[0], stroke[1]
        if not len(x) or len(x) != len(y):
            raise ValueError(f"stroke {number} must have as many x as y and at least one, got {len(x)} and {len(y)}")
        if len(x) == 1:  # cairo draws a line from a point to itself, but no single point
            x, y = (*x, *x), (*y, *y)
        xs.extend(x)  # not +=, which adds NumPy arrays element by element
        ys.extend(y)
        lengths.append(len(x))
    if not lengths:
        raise ValueError("a drawing must have at least one stroke, got none")
    points = np.array((xs, ys), np.float64).T
    if not np.abs(points).max() <= MAX_COORDINATE:
        raise ValueError(f"points must be numbers within {MAX_COORDINATE:g} units, got {np.abs(points).max():g}")
    return Layout(points + (SQUARE - points.max(axis=0)) / 2, lengths)
