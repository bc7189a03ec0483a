"""Render strokes as 28x28 bitmaps like those that Quick, Draw! publishes.

Flow: strokes -> `geometry` centres them in the square -> `cairo` or `coverage` renders them. If libcairo is installed,
`cairo` renders bitmaps that are byte-identical to Google's; else `coverage` renders similar ones. `backend` names the
renderer in use.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .rendering import cairo, coverage
from .rendering.geometry import SIDE, Strokes, lay_out

# Units. The largest coordinate of a simplified drawing lies between this number and 255. In a sample of 8,600
# simplified drawings, the largest coordinate was never below 241.
_MIN_SIMPLIFIED = 240


class StrokeWarning(UserWarning):
    """Category of the warning about strokes that `rasterize` gets in other units than 0 to 255."""


def rasterize(strokes: Strokes) -> NDArray[np.uint8]:
    """Render one drawing.

    Args:
        strokes: As in a line of a simplified .ndjson file: each stroke is `[[x, ...], [y, ...]]` in units of 0 to 255,
            y downwards; a third list (times) is ignored. Call `simplify` first for strokes of any other size, else
            `rasterize` issues a `StrokeWarning`.

    Returns:
        uint8, (28, 28), 0 = paper, 255 = ink. With cairo it equals Google's bitmap; without cairo, the mean absolute
        difference is below 0.3 grey levels (tests/client/test_rasterize.py).

    Raises:
        ValueError: There is no stroke (an empty canvas), a stroke has no point, its lists differ in length, or a
            coordinate is not a number or exceeds a million units. Strokes that are lists of points, `[[x, y], ...]`,
            are refused if one of them has more than three points; `list(zip(*stroke))` converts such a stroke.
    """
    bitmap = render(strokes)
    if not is_simplified(strokes):
        text = "expected strokes in units of 0 to 255, as in simplified drawings; call simplify(strokes) first"
        warnings.warn(text, StrokeWarning, stacklevel=2)
    return bitmap


def render(strokes: Strokes) -> NDArray[np.uint8]:
    """Render strokes as `rasterize` does, without its warning about units."""
    layout = lay_out(strokes)
    return cairo.draw(layout) if cairo.library() else coverage.draw(layout)


def rasterize_all(drawings: Sequence[Strokes]) -> NDArray[np.uint8]:
    """Render many drawings with `rasterize`, in order: uint8, (drawings, 28, 28)."""
    bitmaps = np.empty((len(drawings), SIDE, SIDE), np.uint8)
    for row, strokes in enumerate(drawings):
        bitmaps[row] = rasterize(strokes)
    return bitmaps


def is_simplified(strokes: Strokes) -> bool:
    """Return whether strokes can be a simplified drawing: coordinates from 0 to about 255, or only a dot."""
    lists = [values for stroke in strokes for values in stroke[:2]]
    low, high = min(map(min, lists)), max(map(max, lists))
    return bool(low >= 0 and (high == 0 or _MIN_SIMPLIFIED <= high <= 255))


def backend() -> str:
    """Name the renderer of this system: `cairo` and its version (exact bitmaps), or `numpy`."""
    library = cairo.library()
    return f"cairo {library.cairo_version_string().decode()}" if library else "numpy"
