"""Answers what the page asks: which models are served, and a drawing's bitmap and scores. Knows nothing of HTTP.

A drawing goes the way of all strokes: `from_line` -> `simplify` -> `rasterize` -> `Client.classify`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ..drawings.drawing import Stroke, from_line
from ..drawings.rasterize import backend, rasterize
from ..drawings.simplify import simplify
from ..errors import RequestRefused
from ..rpc.classification import ModelInfo
from ..rpc.client import Client

MAX_POINTS = 10_000
"""Minutes of drawing."""

MAX_CROSSINGS = 500
"""How often the lines may cross the drawing; simplifying a zigzag takes time with its square: so many, 0.5 s."""

_TOP = 6  # labels; more would push the bitmap off a laptop's screen


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the page can choose."""

    name: str
    version: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What there is to ask."""

    models: list[ServedModel]
    chosen: ServedModel
    """The one to begin with."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model sees in a drawing, and what it says."""

    model_name: str
    model_version: str
    bitmap: list[int]
    """784, row-major, 0 = paper, 255 = ink."""
    top: list[tuple[str, float]]
    """Label and score of the best classes, best first."""
    rasterizer: str
    rasterize_ms: float
    classify_ms: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Asks the service, over a new connection each time: it costs a few ms (docs/decisions/0014).

    So a service that went and came back, or that serves other labels by now, is met as it is.
    """

    connect: Callable[[], Client]
    """Its client asks once: the page says what is wrong, and asks again by itself."""
    model_name: str = ""
    """The model to begin with; "" = the service's default."""
    model_version: str = ""

    def models(self) -> Served:
        """Raises `SketchbatchError`: `ModelNotFound` if the model to begin with is not among them."""
        with self.connect() as client:
            chosen = client.model(self.model_name, self.model_version)
            models = [_served(model) for model in client.models()]
        return Served(models, _served(chosen))

    def classify(self, line: bytes, model_name: str = "", model_version: str = "") -> Scored:
        """Scores one drawing.

        Args:
            line: As in a raw .ndjson file; its coordinates are pixels of any screen.
            model_name: "" = the model to begin with.
            model_version: "" = the newest.

        Raises:
            RequestRefused: The line is no drawing, or one of too many points.
            SketchbatchError: The service cannot answer.
        """
        asked = (model_name, model_version) if model_name else (self.model_name, self.model_version)
        started_at = perf_counter()
        bitmap = rasterize(simplify(_strokes(line)))
        drawn_at = perf_counter()
        with self.connect() as client:
            client.model(*asked)  # connects, and learns the labels: what is timed is the answer alone
            asked_at = perf_counter()
            result = client.classify(bitmap, model_name=asked[0], model_version=asked[1])
            answered_at = perf_counter()
        assert result.scores is not None
        best = result.scores[0].argsort()[::-1][:_TOP]
        return Scored(
            result.model_name,
            result.model_version,
            bitmap.ravel().tolist(),
            [(result.labels[index], float(result.scores[0, index])) for index in best],
            backend(),
            rasterize_ms=1000 * (drawn_at - started_at),
            classify_ms=1000 * (answered_at - asked_at),
        )


def _served(model: ModelInfo) -> ServedModel:
    return ServedModel(model.name, model.version, model.labels)


def _strokes(line: bytes) -> list[Stroke]:
    try:
        strokes = from_line(line).strokes
    except ValueError as exc:
        raise RequestRefused(str(exc)) from exc
    points = sum(len(stroke[0]) for stroke in strokes)
    if points > MAX_POINTS:
        raise RequestRefused(f"a drawing must have at most {MAX_POINTS:,} points, got {points:,}")
    crossings = _crossings(strokes)
    if crossings > MAX_CROSSINGS:
        raise RequestRefused(f"lines must be at most {MAX_CROSSINGS} times as long as the drawing, got {crossings:.0f}")
    return strokes


def _crossings(strokes: list[Stroke]) -> float:
    """The length of all lines, over the drawing's longer side."""
    paths = [np.array(stroke[:2], np.float64) for stroke in strokes]  # (2, points)
    side = np.ptp(np.concatenate(paths, axis=1), axis=1).max()
    length = sum(np.hypot(*np.diff(path)).sum() for path in paths)
    return float(length / (side or 1.0))
