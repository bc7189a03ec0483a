"""Asks services for the scores of labelled drawings, one service or two in step, in constant memory.

The one place here that knows how files are scored.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..drawings.readers import BitmapRows
from ..rpc.classification import Classification, ModelInfo, cut
from ..rpc.client import Client
from ..scoring.plan import ScoreOptions
from ..scoring.score_rows import score_rows


@dataclass(frozen=True, slots=True)
class Served:
    """A model, and where to ask for it."""

    client: Client
    model: ModelInfo


class Answer(NamedTuple):
    """The scores of some rows of one file."""

    file: Path
    first_row: int
    result: Classification
    """With the scores of all classes."""

    @property
    def rows(self) -> range:
        """Their numbers in the file, from 0."""
        return range(self.first_row, self.first_row + len(self.result))


def answers(served: Served, bitmaps: dict[Path, BitmapRows]) -> Iterator[Answer]:
    """Yields every answer of exactly this model, in order; none spans two files."""
    model = served.model
    options = ScoreOptions(with_all_scores=True, model_name=model.name, model_version=model.version)
    yield from map(Answer._make, score_rows(served.client, bitmaps, options))


def answers_in_step(first: Served, second: Served, bitmaps: dict[Path, BitmapRows]) -> Iterator[tuple[Answer, Answer]]:
    """Yields the answers of two models to the same rows, however large the requests of each."""
    with closing(answers(first, bitmaps)) as ours, closing(answers(second, bitmaps)) as theirs:  # type: ignore[type-var]  # generators
        left: Classification | None = None  # of the second's answer
        for file, first_row, result in ours:
            while len(result):
                left = left or next(theirs).result
                rows = min(len(result), len(left))
                one, result = cut(result, (rows, len(result) - rows))
                other, left = cut(left, (rows, len(left) - rows))
                yield Answer(file, first_row, one), Answer(file, first_row, other)
                first_row += rows
