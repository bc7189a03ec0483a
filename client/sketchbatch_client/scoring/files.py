"""Scores whole files through the service, in constant memory and in order.

Flow: files -> checked and mapped -> blocks of rows -> `Client.score` -> lines of output.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from ..atomic import replacing
from ..calls.classification import Classification
from ..calls.client import Client
from ..drawings.readers import BitmapRows, Bitmaps, PictureRows, give_back, labelled_files, open_bitmaps
from ..errors import FileRefused
from .outputs import Output, check_ending, open_output, table

_BLOCK_ROWS = 4096  # 3.2 MB; simplified strokes are drawn in half a second with cairo
_GROUP_ROWS = 65536

Progress = Callable[[int], object]
"""Called with the number of rows scored since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What to ask of the service."""

    top_k: int = 1
    """How many of the best classes to write for each row."""
    with_all_scores: bool = False
    """Write the score of every class, too; `top_k` is then 1."""
    model_name: str = ""
    """"" = the service's default."""
    model_version: str = ""
    """"" = the newest."""


def find_inputs(paths: list[Path]) -> dict[Path, BitmapRows]:
    """Every file of drawings among `paths` and in the folders among them, opened, in the order given.

    A folder of pictures is one input; a folder in Google's layout, or of folders of pictures, is one for each label.

    Raises:
        FileRefused: One of them is not what it should be, or they hold no row at all.
    """
    files = [file for path in paths for file in (labelled_files(path).values() if path.is_dir() else [path])]
    inputs = {file: open_bitmaps(file) for file in files}
    if not sum(map(len, inputs.values())):
        raise FileRefused(f"{', '.join(map(str, paths))}: expected drawings, got no row")
    return inputs


def score_files(
    client: Client, inputs: dict[Path, BitmapRows], output: Path, options: ScoreOptions, progress: Progress
) -> int:
    """Writes one line for each row of `inputs` to `output`, which appears only when it is whole.

    Returns:
        The number of rows written.

    Raises:
        FileRefused: `output` has an ending we do not write.
        SketchbatchError: The service did not answer; nothing is left behind.
    """
    check_ending(output)
    served = client.model(options.model_name, options.model_version)
    options = replace(options, model_name=served.name, model_version=served.version)  # one version for the whole file
    with replacing(output) as partial:
        rows_written = 0
        writer: Output | None = None
        try:
            for rows in _gathered(client, inputs, options, progress):
                writer = writer or open_output(partial, output.suffix, rows.schema)
                writer.write(rows)
                rows_written += len(rows)
        finally:
            if writer:
                writer.close()
    return rows_written


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


def _gathered(
    client: Client, inputs: dict[Path, BitmapRows], options: ScoreOptions, progress: Progress
) -> Iterator[pa.Table]:
    """Lines of output, some 64 thousand at a time: a row group of Parquet for each request would double the file."""
    waiting: list[pa.RecordBatch] = []
    for source, first_row, result in score_rows(client, inputs, options):
        bitmaps = inputs[source]
        place = bitmaps.paths if isinstance(bitmaps, PictureRows) else source
        waiting.append(table(place, first_row, result, with_all_scores=options.with_all_scores))
        progress(len(result))
        if sum(map(len, waiting)) >= _GROUP_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
