"""Places strokes in the square that Quick, Draw! draws its 28x28 bitmaps from.

The rules are Google's (quickdraw-dataset#19, confirmed in #27): a 256-unit square with 16 units of padding around it, a
pen 16 units wide that may reach over the padding by half its width, and centring by the maxima of the strokes alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 28  # pixels
SQUARE = 256.0  # units the strokes span
PEN = 16.0  # units wide
MARGIN = 24.0  # units: 16 of padding and half a pen
SCALE = SIDE / (SQUARE + 2 * MARGIN)  # pixels a unit: 28 / 304
FARTHEST = 1e6  # units; cairo's 24.8 fixed point overflows at 90 times this

Floats = NDArray[np.float64]
Strokes = Sequence[Sequence[Sequence[float]]]
"""Each stroke is `[[x, ...], [y, ...]]`, y downwards; a third list (times) is ignored."""


class Layout(NamedTuple):
    """Strokes in their place."""

    points: Floats
    """(points, 2), x and y of all strokes, one stroke after the other, in units; MARGIN is still to be added."""
    lengths: list[int]
    """Points in each stroke, two or more."""


def lay_out(strokes: Strokes) -> Layout:
    """Centres one drawing, whose units are those of a simplified .ndjson file (0 to 255).

    Raises:
        ValueError: There is no stroke, a stroke has no point, its x and y differ in number, or a point is no number
            or farther off than FARTHEST.
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
        if len(x) == 1:  # a line to itself, or cairo would draw nothing
            x, y = (*x, *x), (*y, *y)
        xs.extend(x)  # not +=, which would add NumPy arrays up
        ys.extend(y)
        lengths.append(len(x))
    if not lengths:
        raise ValueError("a drawing must have at least one stroke, got none")
    points = np.array((xs, ys), np.float64).T
    if not np.abs(points).max() <= FARTHEST:
        raise ValueError(f"points must be numbers within {FARTHEST:g} units, got {np.abs(points).max():g}")
    return Layout(points + (SQUARE - points.max(axis=0)) / 2, lengths)
