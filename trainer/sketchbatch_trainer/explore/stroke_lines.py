"""Turns the strokes of a drawing into the polylines of a small SVG, plain or coloured by time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from sketchbatch_client.drawings.drawing import Drawing

from .figures import has_times

SIDE = 255
"""Units of the square that every drawing is fitted into, centred."""

TIME_COLOURS = tuple(to_hex(each) for each in mpl.colormaps["plasma"](np.linspace(0.02, 0.82, 12)))
"""From the first point of a drawing to its last."""

SPEED = 4
"""How many times as fast as in life a drawing plays."""

_WITHOUT_TIMES_S = 3.0  # how long a drawing without times plays


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a stroke, drawn in one go."""

    points: str
    """As a polyline has it: `x,y x,y`; two at least."""
    colour: str
    start_s: float
    """When it is drawn, played `SPEED` times as fast as in life."""
    lasts_s: float


def plain(drawing: Drawing) -> list[str]:
    """One polyline for each stroke."""
    return [_polyline(points) for points in _fitted(drawing)]


def timed(drawing: Drawing) -> list[Piece]:
    """Every stroke, cut where its colour changes."""
    times, lasts_s = _times(drawing)
    return [
        Piece(
            _polyline(points[first : last + 1]),
            TIME_COLOURS[int(moments[first] * (len(TIME_COLOURS) - 1))],
            round(float(moments[first]) * lasts_s, 2),
            round(float(moments[last] - moments[first]) * lasts_s + 0.02, 2),
        )
        for points, moments in zip(_fitted(drawing), times, strict=True)
        for first, last in _cuts(moments)
    ]


def _fitted(drawing: Drawing) -> list[NDArray[np.float64]]:
    """Each stroke as (points, 2)."""
    strokes = [np.column_stack(stroke[:2]).astype(np.float64) for stroke in drawing.strokes]
    low = np.min([stroke.min(axis=0) for stroke in strokes], axis=0)
    span = np.max([stroke.max(axis=0) for stroke in strokes], axis=0) - low
    scale = SIDE / max(1.0, span.max())
    return [(stroke - low) * scale + (SIDE - span * scale) / 2 for stroke in strokes]


def _times(drawing: Drawing) -> tuple[list[NDArray[np.float64]], float]:
    """When each point was drawn, 0 to 1 (evenly, if there are no times), and how long all of it plays, in seconds."""
    if has_times(drawing):
        moments = [np.nan_to_num(np.asarray(stroke[2], np.float64)) for stroke in drawing.strokes]
    else:
        lengths = [len(stroke[0]) for stroke in drawing.strokes]
        moments = np.split(np.arange(sum(lengths), dtype=np.float64), np.cumsum(lengths)[:-1])
    first = min(each.min() for each in moments)
    lasts = max(1.0, max(each.max() for each in moments) - first)
    plays_s = lasts / 1000 / SPEED if has_times(drawing) else _WITHOUT_TIMES_S
    return [((each - first) / lasts).clip(0, 1) for each in moments], float(plays_s)


def _cuts(moments: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """First and last point of each run of one colour; each run ends where the next begins."""
    colour = (moments[:-1] * (len(TIME_COLOURS) - 1)).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(colour)) + 1).tolist()]
    yield from zip(starts, [*starts[1:], len(moments) - 1], strict=True)


def _polyline(points: Sequence[Sequence[float]] | NDArray[np.float64]) -> str:
    """A single point is said twice, so that it is seen as a dot."""
    twice = np.vstack([points, points]) if len(points) == 1 else points
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in twice)
