"""Find the centre lines of a drawing and render them with the pen of the training data.

Flow:
1. Compute the distance of each ink pixel to the paper; ridges of this distance are the centre lines.
2. Add the filled areas, and scale the result to Google's square.
3. Put ink within half the pen's width of each centre line, and reduce the picture to 28x28.
"""

import numpy as np
from numpy.typing import NDArray

from .geometry import PEN, SCALE, SIDE

WORK = 200  # pixels; longer side of the mask, about as long as _SIZE
_FINE = 8  # fine pixels per pixel of the bitmap, along each axis
_SIZE = 255 * SCALE * _FINE  # fine pixels; longer side of the centre lines
_RADIUS = PEN / 2 * SCALE * _FINE  # fine pixels
_MAX_DEPTH = WORK // 4  # pixels; ink this far from the paper belongs to a filled area
# Limit for the squared slope of the distance to the paper. The squared slope is lower on a ridge; it is 0.5 at a square
# corner and 1 in other ink.
_RIDGE_SLOPE = 0.35

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


def trace(is_ink: Mask) -> NDArray[np.uint8]:
    """Render the lines of a mask with the pen of the training data: uint8, (28, 28), 0 = paper, 255 = ink.

    The mask (height, width) is cropped to the drawing; its longer side is about WORK.
    """
    points = np.argwhere(_centre_lines(np.pad(is_ink, 2))).astype(np.float32)
    least, extent = points.min(axis=0), np.ptp(points, axis=0)
    points = (points - least - extent / 2) * (_SIZE / max(extent.max(), 1.0)) + SIDE * _FINE / 2
    is_centre = np.zeros((SIDE * _FINE,) * 2, bool)
    is_centre[tuple(points.astype(int).T)] = True
    # Ink reaches this far from the pixels of a centre line, in pixels of the enlarged bitmap. The centre line has an
    # average width of half a pixel; 0.25 is half of this width.
    reach = _RADIUS + 0.25
    coverage = (reach - _distance(is_centre, int(_RADIUS) + 2)).clip(0, 1)
    share: Floats = coverage.reshape(SIDE, _FINE, SIDE, _FINE).mean(axis=(1, 3))
    return np.rint(255 * share).astype(np.uint8)


def _centre_lines(is_ink: Mask) -> Mask:
    """Return the centre lines and filled areas of `is_ink`, which has a border of paper."""
    depth = _distance(~is_ink, _MAX_DEPTH)
    down, across = np.gradient(depth)
    is_ridge = is_ink & (down**2 + across**2 < _RIDGE_SLOPE)
    half_pen = np.median(depth[is_ridge]) if is_ridge.any() else 0.0
    return is_ridge | (depth > half_pen)


def _distance(mask: Mask, limit: int) -> Floats:
    """Return the distance in pixels from each pixel to the nearest pixel that is set in `mask`, at most `limit`."""
    size = mask.shape[1]
    column = np.arange(size, dtype=np.float32)
    before = np.maximum.accumulate(np.where(mask, column, -size - limit), axis=1)
    after = np.minimum.accumulate(np.where(mask, column, 2 * size + limit)[:, ::-1], axis=1)[:, ::-1]
    in_row = np.minimum(column - before, after - column).clip(max=limit).astype(np.float32) ** 2
    nearest = in_row.copy()
    for rows in range(1, limit):
        if rows**2 >= nearest.max():
            break
        np.minimum(nearest[rows:], in_row[:-rows] + rows**2, out=nearest[rows:])
        np.minimum(nearest[:-rows], in_row[rows:] + rows**2, out=nearest[:-rows])
    return np.sqrt(nearest)
