"""Write the parts of a job to an open file in one of the output formats."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from ...errors import FileRefused
from ..plan import Plan
from .columns import CLASS_INDEX, OFFSET, SCORES, list_of, score_columns
from .lines import json_lines, wide_csv_lines

KINDS = ("parquet", "csv", "jsonl", "npy")
_OTHER_ENDINGS = {"ndjson": "jsonl"}

Write = Callable[[pa.Table, int], None]
"""Writes the next part. The arguments are its scored rows and the number of all its rows, rejects included."""


def kind_of(path: Path) -> str:
    """Return the kind of an output by the ending of its name, in any case. Raises FileRefused for other endings."""
    kind = _ending(path)
    if kind not in KINDS:
        suffixes = ", ".join(f".{kind}" for kind in KINDS)
        raise FileRefused(f"{path}: the suffix of an output must be one of {suffixes}, got {path.suffix or 'none'!r}")
    return kind


def is_named_by_kind(path: Path, kind: str) -> bool:
    """Return whether the ending of the name of an output is that of `kind`."""
    return _ending(path) == kind


def _ending(path: Path) -> str:
    ending = path.suffix.removeprefix(".").lower()
    return _OTHER_ENDINGS.get(ending, ending)


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
    labels = pa.array(plan.labels, pa.string())
    if has_class_index := CLASS_INDEX in schema.names:
        kind = list_of(pa.string(), plan)
        schema = schema.set(schema.get_field_index(CLASS_INDEX), pa.field("labels", kind))
    with parquet_writer(file, schema) as writer:

        def write(rows: pa.Table, count: int) -> None:
            rows = rows.drop_columns(OFFSET)
            if has_class_index:
                names = labels.take(rows[CLASS_INDEX].combine_chunks().flatten())
                names = pa.FixedSizeListArray.from_arrays(names, type=kind)
                rows = rows.set_column(rows.schema.get_field_index(CLASS_INDEX), "labels", names)
            if len(rows):
                writer.write_table(rows)

        yield write


@contextmanager
def _csv(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    if plan.is_wide:
        narrow = [field for field in schema if field.name in ("source", "row", "key_id")]
        schema = pa.schema([*narrow, *score_columns(plan)])
    options = csv.WriteOptions(quoting_style="needed", quoting_header="needed")
    writer = csv.CSVWriter(pa.PythonFile(file, mode="w"), schema, write_options=options)  # writes the header

    def write_wide(rows: pa.Table, count: int) -> None:
        for lines in wide_csv_lines(rows.drop_columns(OFFSET), plan.labels):
            file.writelines(lines)

    yield write_wide if plan.is_wide else lambda rows, count: writer.write(rows.drop_columns(OFFSET))
    writer.close()


@contextmanager
def _json_lines(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    def write(rows: pa.Table, count: int) -> None:
        for lines in json_lines(rows.drop_columns(OFFSET), plan.labels):
            file.writelines(lines)

    yield write


@contextmanager
def _npy(file: BinaryIO, plan: Plan, schema: pa.Schema) -> Iterator[Write]:
    columns = [f"score_{label}" for label in plan.labels]
    write_npy_header(file, plan.rows, len(columns))

    def write(rows: pa.Table, count: int) -> None:
        scores = np.full((count, len(columns)), np.nan, "<f4")
        offsets = rows[OFFSET].to_numpy()
        if plan.is_wide:
            scores[offsets] = rows[SCORES].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
        else:
            for index, name in enumerate(columns):
                scores[offsets, index] = rows[name].to_numpy()
        file.write(scores.tobytes())

    yield write


_FORMATS = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines, "npy": _npy}


def write_npy_header(file: BinaryIO, rows: int, classes: int) -> None:
    """Write the header of a .npy of float32 scores."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, classes)}
    np.lib.format.write_array_header_1_0(file, header)
