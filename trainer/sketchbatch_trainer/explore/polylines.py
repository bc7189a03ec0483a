"""Convert strokes into the polylines of a small SVG, in one colour or coloured by time.

The exploration page has hundreds of drawings, and a visitor can play how they were drawn. A browser can animate SVG
elements, but not pictures.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from sketchbatch_client.drawings.drawing import Drawing

from .drawing_statistics import has_times

SIDE = 255
"""Side of the square that every drawing is scaled to, in SVG units."""

TIME_COLOURS = tuple(to_hex(each) for each in mpl.colormaps["plasma"](np.linspace(0.02, 0.82, 12)))
"""Colours from the first point of a drawing to the last point."""

SPEED = 4
"""Factor by which a drawing is played faster than it was drawn."""

_UNTIMED_PLAY_S = 3.0  # seconds for playing a drawing without times

Floats = NDArray[np.float64]


def plain(drawing: Drawing) -> list[str]:
    """Return the points of one polyline per stroke, as SVG text."""
    return [_points(stroke) for stroke in _scaled(drawing)]


def timed(drawing: Drawing) -> list[dict[str, Any]]:
    """Return a drawing as polylines of one colour; `start_s` and `lasts_s` are the seconds of their playback."""
    moments, plays_s = _moments(drawing)
    return [
        {
            "points": _points(stroke[first : last + 1]),
            "colour": TIME_COLOURS[int(times[first] * (len(TIME_COLOURS) - 1))],
            "start_s": round(float(times[first]) * plays_s, 2),
            "lasts_s": round(float(times[last] - times[first]) * plays_s + 0.02, 2),
        }
        for stroke, times in zip(_scaled(drawing), moments, strict=True)
        for first, last in _one_coloured(times)
    ]


def _scaled(drawing: Drawing) -> list[Floats]:
    """Return each stroke as (points, 2), scaled to the square and centred."""
    strokes = [np.column_stack(stroke[:2]).astype(np.float64) for stroke in drawing.strokes]
    points = np.concatenate(strokes)
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scale = SIDE / max(1.0, span.max())
    return [(stroke - low) * scale + (SIDE - span * scale) / 2 for stroke in strokes]


def _moments(drawing: Drawing) -> tuple[list[Floats], float]:
    """Return for each stroke the times of its points, 0 to 1, and then the seconds of playback.

    If the drawing has no times, the times of its points are evenly spaced.
    """
    lengths = [len(stroke[0]) for stroke in drawing.strokes]
    is_timed = has_times(drawing)
    times = np.concatenate([stroke[2] for stroke in drawing.strokes]) if is_timed else np.arange(sum(lengths))
    lasts_ms = max(1.0, float(np.ptp(times)))
    moments = np.split((times - times.min()) / lasts_ms, np.cumsum(lengths)[:-1])
    return moments, lasts_ms / 1000 / SPEED if is_timed else _UNTIMED_PLAY_S


def _one_coloured(times: Floats) -> list[tuple[int, int]]:
    """Divide a stroke into sections of one colour; return the indices of the first and last point of each section.

    A section ends at the first point of the next section.
    """
    colour = (times[:-1] * (len(TIME_COLOURS) - 1)).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(colour)) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(times) - 1], strict=True))


def _points(stroke: Floats) -> str:
    """Return points as SVG text; a single point is repeated, because a polyline of one point is invisible."""
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in (np.repeat(stroke, 2, axis=0) if len(stroke) == 1 else stroke))
