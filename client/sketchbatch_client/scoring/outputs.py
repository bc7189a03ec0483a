"""Writes one line for each row scored: Parquet, CSV or JSON lines, by the file's ending.

Columns: source (the file), row (its index there, from 0), label, score; with top_k > 1 also label_2, score_2 and so
on; with all scores also one score_LABEL for each class. A picture is a source of its own, whose row is 0.
"""

import json
import os
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import csv, parquet

from ..calls.classification import Classification
from ..errors import FileRefused

KINDS = (".parquet", ".csv", ".jsonl")


class Output(Protocol):
    """Where the rows go; `close` completes the file."""

    def write(self, rows: pa.Table) -> None: ...

    def close(self) -> None: ...


def table(
    source: Path | list[Path], first_row: int, result: Classification, *, with_all_scores: bool
) -> pa.RecordBatch:
    """The columns of one batch of results, rows numbered from `first_row`; of a list of pictures, one is one row."""
    names = pa.array(result.labels)
    rows = range(first_row, first_row + len(result))
    if isinstance(source, list):
        columns = {"source": pa.array([_text(source[row]) for row in rows]), "row": pa.repeat(0, len(rows))}
    else:
        columns = {"source": pa.repeat(_text(source), len(rows)), "row": pa.array(rows, pa.int64())}
    for place in range(result.class_index.shape[1]):
        suffix = f"_{place + 1}" if place else ""
        columns[f"label{suffix}"] = names.take(pa.array(result.class_index[:, place]))
        columns[f"score{suffix}"] = pa.array(result.score[:, place])
    if with_all_scores and result.scores is not None:
        for index, label in enumerate(result.labels):
            columns[f"score_{label}"] = pa.array(result.scores[:, index])
    return pa.RecordBatch.from_pydict(columns)


def check_ending(path: Path) -> None:
    """Raises FileRefused unless `path` has one of the endings we write."""
    if path.suffix not in KINDS:
        raise FileRefused(f"{path}: expected an output ending in {', '.join(KINDS)}, got {path.suffix or 'none'!r}")


def open_output(path: Path, kind: str, schema: pa.Schema) -> Output:
    """Opens `path` for rows of `schema`; `kind`, one of KINDS, says the format."""
    if kind == ".parquet":
        return parquet.ParquetWriter(path, schema, compression="zstd")  # type: ignore[no-any-return]
    if kind == ".csv":
        options = csv.WriteOptions(quoting_style="needed", quoting_header="needed")
        return csv.CSVWriter(path, schema, write_options=options)  # type: ignore[no-any-return]
    return _JsonLines(path)


def _text(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: pa.Table) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())

    def close(self) -> None:
        self._file.close()
