"""Request the scores of labelled drawings from one or two models, in constant memory.

Two models receive the same rows. They may run on different services.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..drawings.readers import BitmapRows
from ..errors import ModelChanged
from ..rpc.classification import ModelInfo
from ..rpc.client import Client
from ..scoring.plan import ScoreOptions
from ..scoring.score_rows import score_rows
from .accumulator import ScoredRows
from .stats.calibration import Scores


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and a client of the service that serves it."""

    client: Client
    model: ModelInfo


def scored_rows(served: ServedModel, bitmaps: dict[Path, BitmapRows]) -> Iterator[ScoredRows]:
    """Yield the scores of every row in order, from exactly this model file; each item has rows of one file only.

    Raises ModelChanged if the service has replaced the model file under the same version.
    """
    model = served.model
    options = ScoreOptions(with_all_scores=True, model_name=model.name, model_version=model.version)
    for file, first_row, result in score_rows(served.client, bitmaps, options):
        if {*result.digests} - {model.digest} or result.labels != model.labels:
            raise ModelChanged(
                f"the file of {model.name} version {model.version} was replaced after the start: evaluate again"
            )
        assert result.scores is not None  # `with_all_scores` requests them
        yield ScoredRows(file, first_row, result.scores)


def paired_rows(
    first: ServedModel, second: ServedModel, bitmaps: dict[Path, BitmapRows], again: dict[Path, BitmapRows]
) -> Iterator[tuple[ScoredRows, ScoredRows]]:
    """Yield the scores of two models for the same rows; a request to one model may have more rows than to the other.

    The first model receives `bitmaps`, and the second one `again`, the same drawings.
    """
    with closing(scored_rows(first, bitmaps)) as ours, closing(scored_rows(second, again)) as theirs:  # type: ignore[type-var]  # generators
        rest: Scores | None = None  # scores of the second model that are not yet paired
        for file, first_row, scores in ours:
            while len(scores):
                rest = next(theirs).scores if rest is None or not len(rest) else rest
                rows = min(len(scores), len(rest))
                yield ScoredRows(file, first_row, scores[:rows]), ScoredRows(file, first_row, rest[:rows])
                scores, rest, first_row = scores[rows:], rest[rows:], first_row + rows
