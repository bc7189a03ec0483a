"""Scores open files row by row, in order, for those who count results rather than write them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from ..drawings.readers import BitmapRows, Bitmaps, give_back
from ..rpc.classification import Classification
from ..rpc.client import Client
from .plan import ScoreOptions

_BLOCK_ROWS = 4096  # 3.2 MB; simplified strokes are drawn in half a second with cairo

Progress = Callable[[int], object]
"""Called with the number of rows scored since the last call."""


def score_rows(
    client: Client, inputs: dict[Path, BitmapRows], options: ScoreOptions
) -> Iterator[tuple[Path, int, Classification]]:
    """Yields every result with its file and the row in that file it begins at, in order; no result spans two files."""
    batches = client.score(
        _blocks(inputs),
        top_k=0 if options.with_all_scores else options.top_k,
        model_name=options.model_name,
        model_version=options.model_version,
    )
    with closing(batches) as results:  # type: ignore[type-var]  # a generator
        for source, bitmaps in inputs.items():
            first_row = 0
            while first_row < len(bitmaps):
                result = next(results)
                yield source, first_row, result
                first_row += len(result)


def _blocks(inputs: dict[Path, BitmapRows]) -> Iterator[Bitmaps]:
    """The rows of every file, a block at a time; blocks that were read give their memory back."""
    for bitmaps in inputs.values():
        for start in range(0, len(bitmaps), _BLOCK_ROWS):
            yield bitmaps[start : start + _BLOCK_ROWS]
            give_back(bitmaps)  # rows still to be sent are read from the file again
