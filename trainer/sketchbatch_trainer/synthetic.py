"""Draw synthetic bears, cats and dogs, for a machine without real drawings and without internet access.

Each synthetic drawing shows a head, ears, eyes, a nose and a mouth in jittered strokes. The classes differ in ears
(round, pointed or hanging), whiskers and tongue. Eyes, mouth, whiskers, tongue and a bear's snout are each left out at
random. The name of a model that was trained on synthetic drawings starts with `synthetic-`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.rasterize import render
from sketchbatch_client.drawings.readers import Bitmaps

SOURCE = "synthetic sketches, drawn by sketchbatch-train sketch; no real drawings"

Stroke = NDArray[np.float64]  # (points, 2): offsets from the centre of the head, in head radii; y points downwards


def draw(label: str, rows: int, seed: int, progress: Callable[[int], object] = lambda rows: None) -> Bitmaps:
    """Draw `rows` bitmaps of one of `LABELS`: uint8, (rows, 28, 28). Equal arguments give equal bitmaps."""
    rng = np.random.default_rng([seed, LABELS.index(label)])
    bitmaps = np.empty((rows, 28, 28), np.uint8)
    for row in range(rows):
        bitmaps[row] = render(_distort(_ANIMALS[label](rng), rng))
        progress(1)
    return bitmaps


def _bear(rng: np.random.Generator) -> list[Stroke]:
    ears = [_arc((side * 0.76, -0.8), 0.36, 0.36, 145 + 45 * side, 400 + 45 * side) for side in (-1, 1)]
    snout = _arc((0, 0.38), 0.42, 0.32, 0, 360)
    nose = _arc((0, 0.25), 0.13, 0.09, 0, 360)
    return [*_face(rng, 1.0, 0.95), *ears, *_maybe(rng, 0.8, snout), nose, *_mouth(rng)]


def _cat(rng: np.random.Generator) -> list[Stroke]:
    ears = [_line((side * 0.85, -0.5), (side * 0.8, -1.35), (side * 0.25, -0.9)) for side in (-1, 1)]
    whiskers = [
        _line((side * 0.35, 0.3 + 0.12 * n), (side * 1.35, 0.2 + 0.22 * n)) for side in (-1, 1) for n in range(3)
    ]
    nose = _line((-0.1, 0.2), (0.1, 0.2), (0, 0.33), (-0.1, 0.2))
    return [*_face(rng, 1.0, 0.9), *ears, nose, *_maybe(rng, 0.85, *whiskers), *_mouth(rng)]


def _dog(rng: np.random.Generator) -> list[Stroke]:
    ears = [
        _line((side * 0.6, -0.75), (side * 1.15, -0.7), (side * 1.3, 0.25), (side * 0.95, 0.3), (side * 0.75, -0.4))
        for side in (-1, 1)
    ]
    tongue = _arc((0.1, 0.72), 0.15, 0.3, 0, 180)
    nose = _arc((0, 0.3), 0.2, 0.13, 0, 360)
    return [*_face(rng, 0.85, 1.0), *ears, nose, *_maybe(rng, 0.5, tongue), *_mouth(rng)]


_ANIMALS = {"bear": _bear, "cat": _cat, "dog": _dog}

LABELS = tuple(_ANIMALS)


def _face(rng: np.random.Generator, width: float, height: float) -> list[Stroke]:
    eye = rng.uniform(0.05, 0.12)
    eyes = [_arc((side * 0.36, -0.18), eye, eye, 0, 360) for side in (-1, 1)]
    return [_arc((0, 0), width, height, -90, 270), *_maybe(rng, 0.9, *eyes)]


def _mouth(rng: np.random.Generator) -> list[Stroke]:
    return _maybe(rng, 0.8, _arc((-0.16, 0.42), 0.16, 0.14, 0, 180), _arc((0.16, 0.42), 0.16, 0.14, 0, 180))


def _maybe(rng: np.random.Generator, chance: float, *strokes: Stroke) -> list[Stroke]:
    return list(strokes) if rng.random() < chance else []


def _arc(centre: tuple[float, float], width: float, height: float, start: float, stop: float) -> Stroke:
    """Return part of an ellipse, from `start` to `stop` degrees, measured clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, 14))
    return np.column_stack([centre[0] + width * np.cos(angle), centre[1] + height * np.sin(angle)])


def _line(*points: tuple[float, float]) -> Stroke:
    return np.array(points)


def _distort(strokes: list[Stroke], rng: np.random.Generator) -> list[list[list[float]]]:
    """Jitter, stretch and rotate a drawing; move it to the corner and scale its longer side to 255, as Google does."""
    angle = np.radians(rng.normal(0, 9))
    stretch = np.diag(rng.uniform(0.75, 1.25, 2))
    warp = stretch @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    distorted = [
        (stroke + rng.normal(0, 0.07, 2)) * rng.normal(1, 0.06, 2) @ warp + rng.normal(0, 0.025, stroke.shape)
        for stroke in strokes
    ]
    low = np.min([stroke.min(axis=0) for stroke in distorted], axis=0)
    span = np.max([stroke.max(axis=0) for stroke in distorted], axis=0) - low
    return [((stroke - low) * 255 / span.max()).round().T.tolist() for stroke in distorted]
