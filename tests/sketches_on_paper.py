"""Render drawings as pictures like those that users send, for example scans and photographs.

In such pictures the size, the pen, the position of the drawing, the paper and the light differ from the training data.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

INK, PAPER = 20, 255
_OVERSAMPLING = 2  # a picture is rendered at twice its size and then reduced, which smooths its lines


@dataclass(frozen=True)
class Picture:
    """Describe how a picture shows a drawing: the page, the pen, the position of the drawing and the light."""

    side: int = 400
    """Width and height of the page, in pixels."""
    pen: float = 0.016
    """Width of the pen, as a fraction of the side of the page."""
    span: float = 0.8
    """Longer side of the drawing, as a fraction of the side of the page."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Distance of the drawing from the middle of the page, right and down, as fractions of the side of the page."""
    is_light_on_dark: bool = False
    shade: float = 0.0
    """How much darker the darkest corner of the paper is than the brightest corner, as a fraction."""
    noise: float = 0.0
    """Standard deviation of the random noise, in grey levels."""


PICTURES = (
    Picture(),
    Picture(side=800, pen=0.0025),
    Picture(side=300, pen=0.045),
    Picture(is_light_on_dark=True, side=350),
    Picture(span=0.4, offset=(0.25, -0.2), pen=0.01),
    Picture(noise=6, pen=0.012),
    Picture(shade=0.5, noise=3),
)


def picture_of_strokes(strokes, how: Picture) -> np.ndarray:
    """Render strokes as the picture that `how` describes; return grey levels as uint8 (side, side).

    The strokes may have any size, because they are scaled to the page.
    """
    paths = [np.array(stroke[:2], float).T for stroke in strokes]
    points = np.concatenate(paths)
    middle, extent = (points.min(axis=0) + points.max(axis=0)) / 2, np.ptp(points, axis=0).max()
    size = how.side * _OVERSAMPLING
    image = Image.new("L", (size, size))
    canvas, radius = ImageDraw.Draw(image), how.pen * size / 2
    for path in paths:
        path = (path - middle) * (how.span * size / (extent or 1)) + (0.5 + np.array(how.offset)) * size
        canvas.line([tuple(point) for point in path], fill=255, width=max(1, round(2 * radius)))
        for x, y in path:
            canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return _on_page(np.asarray(image.reduce(_OVERSAMPLING)) / 255, how)


def picture_of_bitmap(bitmap: np.ndarray, how: Picture) -> np.ndarray:
    """Render a bitmap as the picture that `how` describes; return grey levels as uint8 (side, side).

    The bitmap is enlarged, and its lines become thinner or thicker with the width of the pen.
    """
    size = round(how.side * how.span)
    grey = np.asarray(Image.fromarray(bitmap).resize((size, size), Image.Resampling.BICUBIC)) / 255
    level = 0.65 if how.pen < 0.011 else 0.35 if how.pen > 0.02 else 0.5
    ink = np.zeros((how.side, how.side))
    left, top = (round((0.5 + offset) * how.side - size / 2) for offset in how.offset)
    ink[top : top + size, left : left + size] = 1 / (1 + np.exp(-14 * (grey - level)))
    return _on_page(ink, how)


def _on_page(ink: np.ndarray, how: Picture) -> np.ndarray:
    """Return the grey levels of a picture with `ink` (0 to 1 per pixel), and with the paper and light of `how`."""
    down, across = np.mgrid[0 : 1 : how.side * 1j, 0 : 1 : how.side * 1j]
    grey = (PAPER + (INK - PAPER) * ink) * (1 - how.shade * (0.7 * across + 0.3 * down))
    if how.noise:
        grey = grey + np.random.default_rng(0).normal(0, how.noise, grey.shape)
    grey = grey.clip(0, 255).astype(np.uint8)
    return 255 - grey if how.is_light_on_dark else grey
