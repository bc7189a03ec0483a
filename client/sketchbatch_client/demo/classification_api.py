"""Answer the two requests of the page: list the served models, and classify a drawing.

This module does not know HTTP. A drawing of the page takes the same steps as a line of a .ndjson file:
`from_line` -> `simplify` -> `render` -> `AsyncClient.classify`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..drawings.drawing import Stroke, from_line
from ..drawings.rasterize import backend, render
from ..drawings.simplify import simplify
from ..errors import RequestRefused
from ..rpc.async_client import AsyncClient
from ..rpc.classification import ModelInfo
from .score_bars import score_bars

Json = dict[str, object]

MAX_POINTS = 10_000  # most points of a drawing; a person needs minutes to draw so many
_COVERAGE = 0.95  # of the threshold below which a drawing probably shows none of the classes
_TOP = 6  # labels in a response; more would push the bitmap below the edge of a laptop's screen


@dataclass(frozen=True, slots=True)
class ClassificationApi:
    """Computes the responses to the requests of the page.

    Each request opens a new `AsyncClient`, which costs a few ms (docs/decisions/0014). So the code needs no special
    case for a service that was restarted or that has other labels now.
    """

    connect: Callable[[], AsyncClient]
    """Opens a client that does not retry: the page reports the error and retries by itself."""
    model_name: str = ""
    """Model that the page selects first; "" = the service's default."""
    model_version: str = ""

    async def models(self) -> Json:
        """Return all served models and the one to select first. Raises ModelNotFound if the latter is not served."""
        async with self.connect() as client:
            chosen = await client.model(self.model_name, self.model_version)
            return {"models": [_describe(each) for each in await client.models()], "chosen": _describe(chosen)}

    async def classify(self, line: bytes, model_name: str = "", model_version: str = "") -> Json:
        """Return the bitmap of a drawing (784 values, 0 = paper, 255 = ink), its best labels with scores, and times.

        `bars` has the width of each label's bar, 0 to 1, and the text next to it. `is_unknown` tells that the highest
        score is below the model's threshold for a coverage of 0.95; without this threshold it is false.

        `line` is a line of a raw .ndjson file, with coordinates in pixels. An empty `model_name` names the model that
        the page selects first; an empty `model_version` names the newest version.

        Raises RequestRefused if the line is not a drawing or too long, and SketchbatchError if the service fails.
        """
        model = (model_name, model_version) if model_name else (self.model_name, self.model_version)
        started_at = perf_counter()
        bitmap = await asyncio.to_thread(_bitmap, line)
        rasterized_at = perf_counter()
        async with self.connect() as client:
            served = await client.model(
                *model
            )  # connects and loads the labels: `classify_ms` is the time of one request
            connected_at = perf_counter()
            result = await client.classify(bitmap, model_name=model[0], model_version=model[1])
            classified_at = perf_counter()
        assert result.scores is not None
        widths, texts = score_bars(result.scores[0], served.score_kind)
        best = result.scores[0].argsort()[::-1][:_TOP]
        return {
            "model_name": result.model_name,
            "model_version": result.model_version,
            "bitmap": bitmap.ravel().tolist(),
            "score_kind": served.score_kind,
            "is_unknown": _is_unknown(served, float(result.score[0, 0])),
            "top": [(result.labels[index], float(result.scores[0, index])) for index in best],
            "bars": [(float(widths[index]), texts[index]) for index in best],
            "rasterizer": backend(),
            "rasterize_ms": 1000 * (rasterized_at - started_at),
            "classify_ms": 1000 * (classified_at - connected_at),
        }


def _is_unknown(model: ModelInfo, best_score: float) -> bool:
    thresholds = model.rejection.thresholds if model.rejection else ()
    return any(best_score < each.score for each in thresholds if each.coverage == _COVERAGE)


def _describe(model: ModelInfo) -> Json:
    # The digest lets the page detect that a version has another file now, even if the labels are the same.
    return {"name": model.name, "version": model.version, "digest": model.digest, "labels": model.labels}


def _bitmap(line: bytes) -> NDArray[np.uint8]:
    return render(simplify(_strokes(line)))


def _strokes(line: bytes) -> list[Stroke]:
    try:
        strokes = from_line(line).strokes
    except ValueError as exc:
        raise RequestRefused(str(exc)) from exc
    points = sum(len(stroke[0]) for stroke in strokes)
    if points > MAX_POINTS:
        raise RequestRefused(f"a drawing must have at most {MAX_POINTS:,} points, got {points:,}")
    return strokes
