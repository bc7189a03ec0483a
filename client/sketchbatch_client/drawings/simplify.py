"""Simplifies raw strokes as Google did: from a screen's pixels to the 0-to-255 square of the simplified files.

The four steps are those of https://github.com/googlecreativelab/quickdraw-dataset#simplified-drawing-files-ndjson: move
to the top left, scale to 255, resample at 1 unit, Ramer-Douglas-Peucker with an epsilon of 2. Of the 217 raw drawings
at hand whose simplified form is known, 205 come out the same (tests/client/test_simplify.py).
"""

import numpy as np

from .geometry import Floats, Strokes

_LARGEST = 255.0  # units
_LEAST = 1e-6  # pixels: what reaches no farther is a point; 255 over the least of numbers would be infinite
_STEP = 1.0  # units between resampled points
_EPSILON = 2.0  # units a point may lie off the line that replaces it


def simplify(strokes: Strokes) -> list[list[list[int]]]:
    """Simplifies one drawing of any size; times are dropped.

    Args:
        strokes: Each `[xs, ys]` or `[xs, ys, ts]`, all of a stroke's lists of one length, at least one point.

    Returns:
        As many strokes, `[xs, ys]` each with two points or more, whole numbers from 0 to 255, for `rasterize`.
    """
    paths = [np.array(stroke[:2], np.float64).T for stroke in strokes]
    least = np.min([path.min(axis=0) for path in paths], axis=0)
    extent = np.max([path.max(axis=0) for path in paths], axis=0) - least
    scale = _LARGEST / (extent.max() if extent.max() > _LEAST else 1.0)  # a drawing of one point has no extent
    simple = [_douglas_peucker(_resampled((path - least) * scale)) for path in paths]
    return [np.rint(path).astype(int).T.tolist() for path in simple]


def _resampled(path: Floats) -> Floats:
    """Points at every _STEP along `path` (points, 2), and its end: a dot becomes two."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    places = np.append(np.arange(0.0, along[-1] or _STEP, _STEP), along[-1])
    return np.column_stack([np.interp(places, along, path[:, axis]) for axis in (0, 1)])


def _douglas_peucker(path: Floats) -> Floats:
    """Keeps the ends, and of each stretch the point farthest from its chord if that is farther than _EPSILON."""
    kept = np.zeros(len(path), bool)
    kept[[0, -1]] = True
    stretches = [(0, len(path) - 1)]
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        distance = _from_chord(path[first + 1 : last] - path[first], path[last] - path[first])
        farthest = int(distance.argmax())
        if distance[farthest] > _EPSILON:
            middle = first + 1 + farthest
            kept[middle] = True
            stretches += [(first, middle), (middle, last)]
    return path[kept]


def _from_chord(points: Floats, chord: Floats) -> Floats:
    """How far `points` (points, 2) lie from the line through 0 along `chord` (2,); from 0 if it has no length."""
    length = np.hypot(*chord)
    if not length:
        return np.hypot(points[:, 0], points[:, 1])
    distance: Floats = np.abs(chord[0] * points[:, 1] - chord[1] * points[:, 0]) / length
    return distance
