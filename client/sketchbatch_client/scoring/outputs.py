"""Write one line per scored row, as Parquet, CSV, JSON lines or .npy, to any binary file.

Columns: source (the file), row (its index there, from 0), key_id if an input has identifiers, label, score; with
top_k > 1 also label_2, score_2 and so on; with all scores also one score_LABEL per class. A picture is a source of its
own with row 0. A .npy has only the scores: float32 (rows, classes), NaN for a rejected row.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from ..errors import FileRefused, JobRefused
from ..rpc.classification import Classification
from ..strict_json import encode
from .block_reader import Batch
from .plan import Plan
from .sources import Block, Reject, Source

KINDS = ("parquet", "csv", "jsonl", "npy")

OFFSET = "offset"  # column with the position of a row in its part; parts have this column, outputs do not


Write = Callable[[pa.Table, int], None]
"""Writes the next part. The arguments are its scored rows and the number of all its rows, rejects included."""


def kind_of(path: Path) -> str:
    """Return the suffix of `path` without the dot. Raises FileRefused if it is not one of KINDS."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        suffixes = ", ".join(f".{kind}" for kind in KINDS)
        raise FileRefused(f"{path}: the suffix of an output must be one of {suffixes}, got {path.suffix or 'none'!r}")
    return kind


def schema(plan: Plan, *, has_key_ids: bool) -> pa.Schema:
    """Return the columns of a stored part: OFFSET, then the columns of an output."""
    fields = [(OFFSET, pa.int32()), ("source", pa.string()), ("row", pa.int64())]
    if has_key_ids:
        fields.append(("key_id", pa.uint64()))
    for rank in range(1 if plan.with_all_scores else plan.top_k):
        suffix = f"_{rank + 1}" if rank else ""
        fields += [(f"label{suffix}", pa.string()), (f"score{suffix}", pa.float32())]
    if plan.with_all_scores:
        fields += [(f"score_{label}", pa.float32()) for label in plan.labels]
    return pa.schema(fields)


def table(schema: pa.Schema, batch: Batch, result: Classification, sources: Sequence[Source]) -> pa.RecordBatch:
    """Return a line of output for each good row of a batch; the batch has at least one good row."""
    blocks = [(rows, block) for rows, block in batch.blocks if len(block.rows)]
    names, numbers = zip(*(sources[rows.source].locate(block.rows) for rows, block in blocks), strict=True)
    columns = [
        pa.array(np.concatenate([block.rows - rows.start + rows.offset for rows, block in blocks]), pa.int32()),
        pa.concat_arrays(
            pa.array(map(text, name)) if isinstance(name, list) else pa.repeat(text(name), len(rows))
            for name, rows in zip(names, numbers, strict=True)
        ),
        pa.array(np.concatenate(numbers)),
    ]
    if "key_id" in schema.names:
        columns.append(pa.concat_arrays(_key_ids(block) for _, block in blocks))
    labels = pa.array(result.labels)
    for rank in range(result.class_index.shape[1]):
        columns += [labels.take(pa.array(result.class_index[:, rank])), pa.array(result.score[:, rank])]
    if result.scores is not None:
        columns += [pa.array(result.scores[:, index]) for index in range(len(result.labels))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def text(file_name: str) -> str:
    """Return a file name as valid Unicode; file names may contain any bytes, and invalid ones are replaced."""
    return os.fsencode(file_name).decode(errors="replace")


def reject_line(reject: Reject) -> str:
    """Return a line of the rejects file."""
    return encode({**reject._asdict(), "source": text(reject.source)}) + "\n"


def writing(file: BinaryIO, kind: str, plan: Plan, schema: pa.Schema) -> AbstractContextManager[Write]:
    """Open an output of `kind` for rows of `schema`; complete it on exit, unless the block fails."""
    return _FORMATS[kind](file, plan, schema.remove(schema.get_field_index(OFFSET)))


@contextmanager
def parquet_writer(file: BinaryIO, schema: pa.Schema) -> Iterator[parquet.ParquetWriter]:
    """Open a writer; complete the file on exit, unless the block fails.

    Text columns are encoded with a dictionary, and row numbers as differences. Compared with the default encodings,
    this halves the time and the size of the file.
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    writer = parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=texts, column_encoding={"row": "DELTA_BINARY_PACKED"}
    )
    try:
        yield writer
    except BaseException:
        writer.is_open = False  # otherwise the garbage collector completes the file
        raise
    writer.close()


@contextmanager
def _parquet(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    """Write one row group per part, so that merged shards equal the output of one process."""
    with parquet_writer(file, schema) as writer:

        def write(rows: pa.Table, count: int) -> None:
            if len(rows):
                writer.write_table(rows.drop_columns(OFFSET))

        yield write


@contextmanager
def _csv(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    options = csv.WriteOptions(quoting_style="needed", quoting_header="needed")
    writer = csv.CSVWriter(pa.PythonFile(file, mode="w"), schema, write_options=options)
    yield lambda rows, count: writer.write(rows.drop_columns(OFFSET))
    writer.close()


@contextmanager
def _json_lines(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    """Write lines of JSON. To encode a whole column at once takes a tenth of the time of encoding each row."""

    def write(rows: pa.Table, count: int) -> None:
        for batch in rows.drop_columns(OFFSET).to_batches():
            pieces: list[object] = []
            for number, name in enumerate(batch.schema.names):
                opening = f"{', ' if number else '{'}{encode(name)}: "
                pieces += [opening, _as_json(batch.column(number))]
            lines = pc.binary_join_element_wise(*pieces, "}\n", "", null_handling="replace", null_replacement="null")
            file.writelines(lines.cast(pa.large_binary()).to_pylist())

    yield write


@contextmanager
def _npy(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    columns = [f"score_{label}" for label in plan.labels]
    write_npy_header(file, plan.rows, len(columns))

    def write(rows: pa.Table, count: int) -> None:
        scores = np.full((count, len(columns)), np.nan, "<f4")
        offsets = rows[OFFSET].to_numpy()
        for index, name in enumerate(columns):
            scores[offsets, index] = rows[name].to_numpy()
        file.write(scores.tobytes())

    yield write


_FORMATS = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines, "npy": _npy}


def write_npy_header(file: BinaryIO, rows: int, classes: int) -> None:
    """Write the header of a .npy of float32 scores."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, classes)}
    np.lib.format.write_array_header_1_0(file, header)


def _key_ids(block: Block) -> pa.Array:
    keys = block.key_ids
    return pa.nulls(len(block.rows), pa.uint64()) if keys is None else pa.array(keys, mask=keys == 0)


def _as_json(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py():
            raise JobRefused("the parts of an earlier version have scores that are not finite; --restart begins anew")
        return column.cast(pa.string())
    encoded = column.dictionary_encode()
    values = [encode(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(values).take(encoded.indices)
