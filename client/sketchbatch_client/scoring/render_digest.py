"""Identify the renderer: two systems with equal digests render equal bitmaps."""

import io
import zlib

from ..drawings.rasterize import backend, render

# Curves, crossing lines, a dot and a long line: simplified strokes, see `rasterize`.
_STROKES = [
    [[0, 40, 90, 130, 180, 255], [128, 20, 60, 200, 250, 90]],
    [[20, 240, 130, 131], [255, 0, 77, 3]],
    [[200], [200]],
    [[5, 5, 9, 60, 61], [0, 255, 250, 130, 17]],
]


def renderer() -> str:
    """Return a digest of bitmaps that this system renders from fixed strokes and a fixed picture, and its renderer.

    The digest changes with every change of cairo, Pillow, NumPy or this package that changes the bitmaps.
    """
    from PIL import Image, ImageDraw  # imported late: jobs of ready bitmaps need no Pillow

    from ..drawings.images import decode_image

    image = Image.new("L", (900, 700), 230)
    for xs, ys in _STROKES:
        ImageDraw.Draw(image).line([(50 + 3 * x, 40 + 2 * y) for x, y in zip(xs, ys, strict=True)], 20, width=9)
    image.save(picture := io.BytesIO(), "PNG")
    digest = zlib.crc32(render(_STROKES).data)
    digest = zlib.crc32(decode_image(picture.getvalue(), "picture").tobytes(), digest)
    return f"{digest:08x} ({backend()})"
