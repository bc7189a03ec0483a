"""Score open files in order and yield the results, for evaluations that count results instead of writing them."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

from ..drawings.readers import BitmapRows, Bitmaps, release_pages
from ..rpc.classification import Classification
from ..rpc.client import Client
from .plan import ScoreOptions

_BLOCK_ROWS = 4096  # rows that are read at once: 3.2 MB; cairo renders as many drawings in half a second


def score_rows(
    client: Client, inputs: dict[Path, BitmapRows], options: ScoreOptions
) -> Iterator[tuple[Path, int, Classification]]:
    """Yield results in order, as (file, index of the result's first row in the file, result).

    All rows of a result belong to one file.
    """
    with score_batches(client, _blocks(inputs), options) as results:
        for source, bitmaps in inputs.items():
            first_row = 0
            while first_row < len(bitmaps):
                result = next(results)
                yield source, first_row, result
                first_row += len(result)


def score_batches(
    client: Client, batches: Iterable[Bitmaps], options: ScoreOptions
) -> AbstractContextManager[Iterator[Classification]]:
    """Call `Client.score` and yield its results; the end of the context cancels the requests in flight."""
    results = client.score(
        batches,
        top_k=0 if options.with_all_scores else options.top_k,
        model_name=options.model_name,
        model_version=options.model_version,
    )
    return closing(results)


def _blocks(inputs: dict[Path, BitmapRows]) -> Iterator[Bitmaps]:
    for bitmaps in inputs.values():
        for start in range(0, len(bitmaps), _BLOCK_ROWS):
            yield bitmaps[start : start + _BLOCK_ROWS]
            release_pages(bitmaps)  # frees memory; rows that were not sent yet are read from the file again
