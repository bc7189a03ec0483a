"""Render strokes with NumPy alone, for systems without cairo.

The mean difference from Google's bitmaps is below 0.3 grey levels. Coverage is computed as in cairo: each pixel row
consists of 15 sub-scanlines, and the covered length of each sub-scanline is exact.
"""

import numpy as np
from numpy.typing import NDArray

from .geometry import MARGIN, PEN, SCALE, SIDE, Floats, Layout

_LINES = 15  # sub-scanlines per pixel row: GRID_Y of cairo-tor-scan-converter.c
_RADIUS = PEN / 2 * SCALE  # pixels

_LINE_Y = (np.arange(SIDE * _LINES) + 0.5) / _LINES  # pixels; the middle of each sub-scanline


def draw(layout: Layout) -> NDArray[np.uint8]:
    """Render one drawing: uint8, (28, 28), 0 = paper, 255 = ink."""
    points = (layout.points + MARGIN) * SCALE
    ink = np.zeros((SIDE, SIDE), np.uint32)
    for path in np.split(points, np.cumsum(layout.lengths[:-1])):
        alpha = np.rint(_coverage(path) * 255).astype(np.uint32)
        ink = alpha + _multiply(ink, 255 - alpha)  # cairo's operator OVER, in 8 bits
    return ink.astype(np.uint8)


def _coverage(path: Floats) -> Floats:
    """Return the share of each pixel that a stroke along `path` (points, 2; pixels) covers: (28, 28), 0 to 1."""
    first = max(0, int((np.min(path[:, 1]) - _RADIUS) * _LINES))
    last = min(len(_LINE_Y), int((np.max(path[:, 1]) + _RADIUS) * _LINES) + 2)
    lines = np.arange(first, last)
    start, stop = path[:-1], path[1:]
    left, right = _spans(start, stop, _LINE_Y[lines])  # (segments, lines)
    left, right = _disjoint(left, right)
    row = np.broadcast_to(lines // _LINES, left.shape)
    covered = _ramp(right, row) - _ramp(left, row)
    return covered / _LINES


def _spans(start: Floats, stop: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the span that each segment with round ends covers of each line `y`: left and right, (segments, lines).

    A segment with round ends is convex, so it covers at most one span of a line. The span reaches from the leftmost to
    the rightmost point that the segment's two end discs and two long sides have on the line. `left` and `right` are 0
    where a segment does not reach the line.
    """
    along = stop - start
    length = np.hypot(along[:, 0], along[:, 1])
    unit = along / np.where(length, length, 1.0)[:, None]
    side = np.column_stack([-unit[:, 1], unit[:, 0]]) * _RADIUS
    left = np.full((len(start), len(y)), np.inf)
    right = -left
    for centre in (start, stop):
        half = np.sqrt(np.maximum(_RADIUS**2 - (y - centre[:, 1:]) ** 2, 0.0))
        inside = half > 0
        np.minimum(left, centre[:, :1] - half, out=left, where=inside)
        np.maximum(right, centre[:, :1] + half, out=right, where=inside)
    for edge in (start + side, start - side):
        rise = np.where(along[:, 1:] == 0, np.inf, along[:, 1:])
        t = (y - edge[:, 1:]) / rise
        x = edge[:, :1] + t * along[:, :1]
        inside = (t >= 0) & (t <= 1) & np.isfinite(rise)
        np.minimum(left, x, out=left, where=inside)
        np.maximum(right, x, out=right, where=inside)
    empty = left > right
    left[empty] = right[empty] = 0.0
    return left.clip(0, SIDE), right.clip(0, SIDE)


def _disjoint(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Shorten the spans of each line so that they do not overlap; a column of the arrays has the spans of one line."""
    order = left.argsort(axis=0)
    left = np.take_along_axis(left, order, axis=0)
    right = np.take_along_axis(right, order, axis=0)
    reached = np.maximum.accumulate(right, axis=0)
    left[1:] = np.maximum(left[1:], reached[:-1])
    return left, np.maximum(left, right)


def _ramp(x: Floats, row: NDArray[np.int64]) -> Floats:
    """Sum clip(x - p, 0, 1) for each pixel p, over all `x` in the pixel row of p: (28, 28)."""
    whole = x.astype(np.int64)
    cell = (row * (SIDE + 1) + whole).ravel()
    size = SIDE * (SIDE + 1)
    part = np.bincount(cell, (x - whole).ravel(), size).reshape(SIDE, -1)
    ends = np.bincount(cell, minlength=size).reshape(SIDE, -1).astype(np.float64)
    # How many `x` lie to the right of each pixel p: for each of them, clip(x - p, 0, 1) is 1.
    beyond = ends[:, ::-1].cumsum(axis=1)[:, ::-1] - ends
    total: Floats = (part + beyond)[:, :SIDE]
    return total


def _multiply(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return a * b / 255 in 8 bits, rounded as in pixman."""
    t = a * b + np.uint32(128)
    return (t + (t >> np.uint32(8))) >> np.uint32(8)
