"""Writes one line for each row scored: Parquet, CSV or JSON lines, by the file's ending.

Columns: source (the file), row (its index there, from 0), label, score; with top_k > 1 also label_2, score_2 and so
on; with all scores also one score_LABEL for each class.
"""

import json
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import csv, parquet

from .client import Classification
from .errors import FileRefused


class Output(Protocol):
    """Where the rows go; `close` completes the file."""

    def write(self, rows: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


def table(source: str, first_row: int, result: Classification, *, with_all_scores: bool) -> pa.RecordBatch:
    """The columns of one batch of results, rows numbered from `first_row`."""
    names = pa.array(result.labels)
    columns: dict[str, pa.Array] = {
        "source": pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(result)), [source]),
        "row": pa.array(range(first_row, first_row + len(result)), pa.int64()),
    }
    columns["source"] = columns["source"].cast(pa.string())
    for place in range(result.class_index.shape[1]):
        suffix = f"_{place + 1}" if place else ""
        columns[f"label{suffix}"] = names.take(pa.array(result.class_index[:, place]))
        columns[f"score{suffix}"] = pa.array(result.score[:, place])
    if with_all_scores and result.scores is not None:
        for index, label in enumerate(result.labels):
            columns[f"score_{label}"] = pa.array(result.scores[:, index])
    return pa.RecordBatch.from_pydict(columns)


def check_ending(path: Path) -> None:
    """Raises FileRefused unless `path` ends in .parquet, .csv or .jsonl."""
    if path.suffix not in _KINDS:
        raise FileRefused(f"{path}: expected an output ending in {', '.join(_KINDS)}, got {path.suffix or 'none'!r}")


def open_output(path: Path, kind: str, first: pa.RecordBatch) -> Output:
    """Opens `path` for rows like `first`; `kind` is the ending that says the format."""
    return _KINDS[kind](path, first.schema)


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = parquet.ParquetWriter(path, schema, compression="zstd")

    def write(self, rows: pa.RecordBatch) -> None:
        self._writer.write_batch(rows)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        options = csv.WriteOptions(quoting_style="needed", quoting_header="needed")
        self._writer = csv.CSVWriter(path, schema, write_options=options)

    def write(self, rows: pa.RecordBatch) -> None:
        self._writer.write_batch(rows)

    def close(self) -> None:
        self._writer.close()


class _JsonLines:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: pa.RecordBatch) -> None:
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())

    def close(self) -> None:
        self._file.close()


_KINDS: dict[str, type[_Parquet] | type[_Csv] | type[_JsonLines]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".jsonl": _JsonLines,
}
