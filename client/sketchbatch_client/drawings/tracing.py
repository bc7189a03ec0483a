"""Finds the middle of drawn lines and draws them again with the data's pen.

Flow: mask of ink -> distance to the paper -> its ridge, the lines' middle (and the inside of what was filled in) ->
placed in Google's square -> everything within half a pen of it is ink -> 28x28.
"""

import numpy as np
from numpy.typing import NDArray

from .geometry import PEN, SCALE, SIDE

WORK = 200  # pixels of the longer side of the mask: about the size of the drawing on the fine grid below
_FINE = 8  # grid lines a pixel of the bitmap
_LARGEST = 255 * SCALE * _FINE  # fine pixels from the first to the last middle of a line
_RADIUS = PEN / 2 * SCALE * _FINE  # fine pixels
_FARTHEST = WORK // 4  # pixels: ink this deep has certainly been filled in
_FLAT = 0.35  # squared slope below which a distance is on a ridge: it is 1 beside it, 0.5 in a square corner

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


def trace(is_ink: Mask) -> NDArray[np.uint8]:
    """Draws the lines of a mask again.

    Args:
        is_ink: bool, (height, width), cropped to the drawing, the longer side about WORK.

    Returns:
        uint8, (28, 28), 0 = paper, 255 = ink.
    """
    points = np.argwhere(_middle(np.pad(is_ink, 2))).astype(np.float32)
    least, extent = points.min(axis=0), np.ptp(points, axis=0)
    points = (points - least - extent / 2) * (_LARGEST / max(extent.max(), 1.0)) + SIDE * _FINE / 2
    is_middle = np.zeros((SIDE * _FINE,) * 2, bool)
    is_middle[tuple(points.astype(int).T)] = True
    width = _RADIUS + 0.25  # not 0.5: the middle itself is half a fine pixel wide on average
    coverage = (width - _distance(is_middle, int(_RADIUS) + 2)).clip(0, 1)
    share: Floats = coverage.reshape(SIDE, _FINE, SIDE, _FINE).mean(axis=(1, 3))
    return np.rint(255 * share).astype(np.uint8)


def _middle(is_ink: Mask) -> Mask:
    """Where the middle of the pen went; paper all around `is_ink`."""
    depth = _distance(~is_ink, _FARTHEST)
    down, across = np.gradient(depth)
    is_ridge = is_ink & (down**2 + across**2 < _FLAT)
    half_pen = np.median(depth[is_ridge]) if is_ridge.any() else 0.0
    return is_ridge | (depth > half_pen)


def _distance(mask: Mask, farthest: int) -> Floats:
    """From each pixel to the nearest of `mask`, in pixels, at most `farthest`."""
    size = mask.shape[1]
    place = np.arange(size, dtype=np.float32)
    before = np.maximum.accumulate(np.where(mask, place, -size - farthest), axis=1)
    after = np.minimum.accumulate(np.where(mask, place, 2 * size + farthest)[:, ::-1], axis=1)[:, ::-1]
    in_row = np.minimum(place - before, after - place).clip(max=farthest).astype(np.float32) ** 2
    nearest = in_row.copy()
    for rows in range(1, farthest):
        if rows**2 >= nearest.max():
            break
        np.minimum(nearest[rows:], in_row[:-rows] + rows**2, out=nearest[rows:])
        np.minimum(nearest[:-rows], in_row[rows:] + rows**2, out=nearest[:-rows])
    return np.sqrt(nearest)
