"""Writes one line for each row scored: Parquet, CSV, JSON lines or .npy, into any binary file.

Columns: source (the file), row (its index there, from 0), key_id where the inputs name their drawings, label, score;
with top_k > 1 also label_2, score_2 and so on; with all scores also one score_LABEL for each class. A picture is a
source of its own, whose row is 0. A .npy has the scores alone: float32 (rows, classes), NaN for a rejected row.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from ..errors import FileRefused
from ..rpc.classification import Classification
from .block_reader import Batch, Piece
from .plan import Plan
from .sources import Reject, Source

KINDS = ("parquet", "csv", "jsonl", "npy")

OFFSET = "offset"
"""Of a row in its part; a column that parts have and outputs have not."""


class Output(Protocol):
    """Where the rows of a job go, part by part; closing the file is its owner's."""

    def write(self, rows: pa.Table, count: int) -> None:
        """The next part: its rows, and their number before some were rejected."""

    def complete(self) -> None:
        """Writes what comes after the last part."""

    def abandon(self) -> None:
        """Leaves the file as it is: nothing that would make it look whole."""


def kind_of(path: Path) -> str:
    """Which of KINDS the ending of `path` says. Raises FileRefused where it says another."""
    kind = path.suffix.removeprefix(".")
    if kind not in KINDS:
        endings = ", ".join(f".{kind}" for kind in KINDS)
        raise FileRefused(f"{path}: expected an output ending in {endings}, got {path.suffix or 'none'!r}")
    return kind


def schema(plan: Plan, *, has_key_ids: bool) -> pa.Schema:
    """The columns of an output, and before them OFFSET."""
    fields = [(OFFSET, pa.int32()), ("source", pa.string()), ("row", pa.int64())]
    if has_key_ids:
        fields.append(("key_id", pa.uint64()))
    for place in range(1 if plan.with_all_scores else plan.top_k):
        suffix = f"_{place + 1}" if place else ""
        fields += [(f"label{suffix}", pa.string()), (f"score{suffix}", pa.float32())]
    if plan.with_all_scores:
        fields += [(f"score_{label}", pa.float32()) for label in plan.labels]
    return pa.schema(fields)


def table(schema: pa.Schema, batch: Batch, result: Classification, sources: Sequence[Source]) -> pa.RecordBatch:
    """The lines of one batch, of which at least one row is good."""
    pieces = [piece for piece in batch.pieces if len(piece.block.rows)]
    names, numbers = zip(*(sources[piece.source].place(piece.block.rows) for piece in pieces), strict=True)
    columns = [
        pa.array(np.concatenate([piece.block.rows - piece.start + piece.offset for piece in pieces]), pa.int32()),
        pa.concat_arrays(
            pa.array(map(text, name)) if isinstance(name, list) else pa.repeat(text(name), len(rows))
            for name, rows in zip(names, numbers, strict=True)
        ),
        pa.array(np.concatenate(numbers)),
    ]
    if "key_id" in schema.names:
        columns.append(pa.concat_arrays(map(_key_ids, pieces)))
    labels = pa.array(result.labels)
    for place in range(result.class_index.shape[1]):
        columns += [labels.take(pa.array(result.class_index[:, place])), pa.array(result.score[:, place])]
    if result.scores is not None:
        columns += [pa.array(result.scores[:, index]) for index in range(len(result.labels))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def text(name: str) -> str:
    """A file's name as text, whatever bytes it has."""
    return os.fsencode(name).decode(errors="replace")


def reject_line(reject: Reject) -> str:
    """As it stands in a file of rejects."""
    return json.dumps({**reject._asdict(), "source": text(reject.source)}, ensure_ascii=False) + "\n"


@contextmanager
def writing(file: BinaryIO, kind: str, plan: Plan, schema: pa.Schema) -> Iterator[Output]:
    """An output of `kind`, one of KINDS, for rows of `schema`; complete after the block, unless that fails."""
    output = _opened(file, kind, plan, schema)
    try:
        yield output
    except BaseException:
        output.abandon()
        raise
    output.complete()


def _opened(file: BinaryIO, kind: str, plan: Plan, schema: pa.Schema) -> Output:
    schema = schema.remove(schema.get_field_index(OFFSET))
    if kind == "parquet":
        return _Parquet(file, schema)
    if kind == "csv":
        return _Csv(file, schema)
    return _Npy(file, plan) if kind == "npy" else _JsonLines(file)


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> parquet.ParquetWriter:
    """Words by dictionary, row numbers by their differences: half the time and half the bytes of pyarrow's defaults."""
    words = [field.name for field in schema if pa.types.is_string(field.type)]
    return parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=words, column_encoding={"row": "DELTA_BINARY_PACKED"}
    )


class _Parquet:
    """A row group for each part: merging shards changes nothing."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._writer = parquet_writer(file, schema)

    def write(self, rows: pa.Table, count: int) -> None:
        if len(rows):
            self._writer.write_table(rows.drop_columns(OFFSET))

    def complete(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        self._writer.is_open = False  # or the garbage collector would have it complete the file


class _Csv:
    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        options = csv.WriteOptions(quoting_style="needed", quoting_header="needed")
        self._writer = csv.CSVWriter(pa.PythonFile(file, mode="w"), schema, write_options=options)

    def write(self, rows: pa.Table, count: int) -> None:
        self._writer.write(rows.drop_columns(OFFSET))

    def complete(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        pass


class _JsonLines:
    """The JSON of a column at a time: a tenth of the time that a row at a time takes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: pa.Table, count: int) -> None:
        for batch in rows.drop_columns(OFFSET).to_batches():
            pieces: list[object] = []
            for number, name in enumerate(batch.schema.names):
                opening = f"{', ' if number else '{'}{json.dumps(name, ensure_ascii=False)}: "
                pieces += [opening, _as_json(batch.column(number))]
            lines = pc.binary_join_element_wise(*pieces, "}\n", "", null_handling="replace", null_replacement="null")
            self._file.writelines(lines.cast(pa.large_binary()).to_pylist())

    def complete(self) -> None:
        pass

    def abandon(self) -> None:
        pass


def _key_ids(piece: Piece) -> pa.Array:
    keys = piece.block.key_ids
    return pa.nulls(len(piece.block.rows), pa.uint64()) if keys is None else pa.array(keys, mask=keys == 0)


def _as_json(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    encoded = column.dictionary_encode()
    return pa.array([json.dumps(value, ensure_ascii=False) for value in encoded.dictionary.to_pylist()]).take(
        encoded.indices
    )


class _Npy:
    def __init__(self, file: BinaryIO, plan: Plan) -> None:
        self._file = file
        self._columns = [f"score_{label}" for label in plan.labels]
        header = {"descr": "<f4", "fortran_order": False, "shape": (plan.rows, len(plan.labels))}
        np.lib.format.write_array_header_1_0(file, header)

    def write(self, rows: pa.Table, count: int) -> None:
        scores = np.full((count, len(self._columns)), np.nan, "<f4")
        offsets = rows[OFFSET].to_numpy()
        for index, name in enumerate(self._columns):
            scores[offsets, index] = rows[name].to_numpy()
        self._file.write(scores.tobytes())

    def complete(self) -> None:
        pass

    def abandon(self) -> None:
        pass
