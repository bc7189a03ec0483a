"""Simplify raw strokes as Google did: from screen pixels to the units (0 to 255) of the simplified files.

The steps of https://github.com/googlecreativelab/quickdraw-dataset#simplified-drawing-files-ndjson: move to the top
left, scale to 255, resample at 1 unit, apply Ramer-Douglas-Peucker with an epsilon of 2. Of 217 raw drawings with a
published simplified form, 205 give exactly that form (tests/client/test_simplify.py).
"""

import numpy as np

from .rendering.geometry import Floats, Strokes, check_has_strokes, check_stroke, coordinates

_SIZE = 255.0  # units; the longer side of a simplified drawing
_MIN_SIZE = 1e-6  # pixels; a smaller drawing counts as one point, because scaling it up would overflow
_STEP = 1.0  # units between resampled points
_EPSILON = 2.0  # units; largest distance of a dropped point from the line that replaces it


def simplify(strokes: Strokes) -> list[list[list[int]]]:
    """Simplify one drawing of any size, for `rasterize`; drop times.

    Each stroke is `[xs, ys]` or `[xs, ys, ts]`; its lists have the same length, which is at least 1. Return the same
    number of strokes. Each is `[xs, ys]` with at least two points and whole numbers from 0 to 255.

    Raises ValueError for the same strokes as `rasterize`, also for an empty canvas, which has no stroke.
    """
    check_has_strokes(strokes)
    for number, stroke in enumerate(strokes):
        check_stroke(stroke, number)
    paths = [coordinates(stroke[:2]).T for stroke in strokes]
    least = np.min([path.min(axis=0) for path in paths], axis=0)
    extent = np.max([path.max(axis=0) for path in paths], axis=0) - least
    scale = _SIZE / (extent.max() if extent.max() > _MIN_SIZE else 1.0)
    simple = [_douglas_peucker(_resampled((path - least) * scale)) for path in paths]
    return [np.rint(path).astype(int).T.tolist() for path in simple]


def _resampled(path: Floats) -> Floats:
    """Return points along `path` (points, 2) at distances of _STEP, and its last point; a dot gives two points."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    positions = np.append(np.arange(0.0, along[-1] or _STEP, _STEP), along[-1])
    return np.column_stack([np.interp(positions, along, path[:, axis]) for axis in (0, 1)])


def _douglas_peucker(path: Floats) -> Floats:
    """Keep both ends of `path`, and the point farthest from the line between them if it is farther than _EPSILON.

    A kept point divides the path into two stretches, to which the same rule is applied.
    """
    kept = np.zeros(len(path), bool)
    kept[[0, -1]] = True
    stretches = [(0, len(path) - 1)]
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        distance = _chord_distance(path[first + 1 : last] - path[first], path[last] - path[first])
        farthest = int(distance.argmax())
        if distance[farthest] > _EPSILON:
            middle = first + 1 + farthest
            kept[middle] = True
            stretches += [(first, middle), (middle, last)]
    return path[kept]


def _chord_distance(points: Floats, chord: Floats) -> Floats:
    """Return the distance of `points` (points, 2) from the line through (0, 0) and `chord` (2,).

    If `chord` is (0, 0), return the distance from (0, 0).
    """
    length = np.hypot(*chord)
    if not length:
        return np.hypot(points[:, 0], points[:, 1])
    distance: Floats = np.abs(chord[0] * points[:, 1] - chord[1] * points[:, 0]) / length
    return distance
