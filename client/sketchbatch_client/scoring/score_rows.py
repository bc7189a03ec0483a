"""Score rows in order and yield the results; rows whose scores are not finite are yielded, too, and have no label."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..drawings.readers import BitmapRows, Bitmaps
from ..rpc.classification import Classification, non_finite, select
from ..rpc.client import Client
from .block_reader import Batch
from .inputs import Block, Reject, Source
from .plan import ScoreOptions

_BLOCK_ROWS = 4096  # rows that are read at once: 3.2 MB; cairo renders as many drawings in half a second


def score_rows(
    client: Client, inputs: dict[Path, BitmapRows], options: ScoreOptions
) -> Iterator[tuple[Path, int, Classification]]:
    """Yield results in order, as (file, index of the result's first row in the file, result).

    All rows of a result belong to one file. This is for evaluations, which count results instead of writing them.
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
        allow_non_finite=True,
    )
    return closing(results)


def reject_non_finite(
    batch: Batch, result: Classification, sources: Sequence[Source]
) -> tuple[Batch, Classification | None]:
    """Turn the rows whose scores are not finite into rejects, in the order of the rows.

    The result is None if no row is left.
    """
    finite = result.finite_rows()
    if finite.all():
        return batch, result
    reason = non_finite(result.model_name, result.model_version)
    blocks, start = [], 0
    for rows, block in batch.blocks:
        stop = start + len(block.rows)
        blocks.append((rows, _rejecting(block, ~finite[start:stop], sources[rows.source], reason)))
        start = stop
    left = replace(batch, blocks=blocks, bitmaps=batch.bitmaps[finite])
    return left, select(result, finite) if finite.any() else None


def _rejecting(block: Block, rejected: NDArray[np.bool_], source: Source, reason: str) -> Block:
    names, numbers = source.locate(block.rows[rejected])
    each_name = [names] * len(numbers) if isinstance(names, str) else names
    rejects = [Reject(name, int(row), reason) for name, row in zip(each_name, numbers, strict=True)]
    return replace(
        block,
        rows=block.rows[~rejected],
        bitmaps=block.bitmaps[~rejected],
        key_ids=None if block.key_ids is None else block.key_ids[~rejected],
        rejects=sorted([*block.rejects, *rejects], key=lambda reject: (reject.source, reject.row)),
    )


def _blocks(inputs: dict[Path, BitmapRows]) -> Iterator[Bitmaps]:
    for bitmaps in inputs.values():
        for start in range(0, len(bitmaps), _BLOCK_ROWS):
            yield bitmaps[start : start + _BLOCK_ROWS]
