"""Draws strokes as the 28x28 bitmaps that Quick, Draw! publishes.

Flow: strokes -> `geometry` (their place in the square) -> `cairo` where the machine has libcairo, byte for byte as
Google drew them, or else `coverage`, which is close. `backend` says which.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import cairo, coverage
from .geometry import SIDE, Strokes, lay_out


def rasterize(strokes: Strokes) -> NDArray[np.uint8]:
    """Draws one drawing.

    Args:
        strokes: As in a line of a simplified .ndjson file: each stroke is `[[x, ...], [y, ...]]` in units of 0 to 255,
            y downwards; a third list (times) is ignored. Strokes of any other size: `simplify` them first.

    Returns:
        uint8, (28, 28), 0 = paper, 255 = ink. With cairo, Google's own bitmap to the byte; without, mean |difference|
        from it < 0.3 levels (tests/client/test_rasterize.py).

    Raises:
        ValueError: There is no stroke, a stroke has no point, its x and y differ in number, or a point is no number
            or a million units away.
    """
    layout = lay_out(strokes)
    return cairo.draw(layout) if cairo.library() else coverage.draw(layout)


def rasterize_all(drawings: Sequence[Strokes]) -> NDArray[np.uint8]:
    """Draws many as `rasterize` does: uint8, (drawings, 28, 28), in their order."""
    bitmaps = np.empty((len(drawings), SIDE, SIDE), np.uint8)
    for row, strokes in enumerate(drawings):
        bitmaps[row] = rasterize(strokes)
    return bitmaps


def backend() -> str:
    """What draws on this machine: `cairo 1.16.0` (exact), or `numpy`."""
    library = cairo.library()
    return f"cairo {library.cairo_version_string().decode()}" if library else "numpy"
