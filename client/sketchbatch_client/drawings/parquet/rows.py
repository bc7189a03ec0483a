"""Read the drawings in a column of a Parquet file: bytes, lists of numbers, or encoded pictures.

Row groups are decoded 1,024 rows at a time. As long as blocks are read in order, each row is decoded only once.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from ...errors import DrawingRefused, FileRefused, reason_of
from ...file_kind import HEAD_BYTES, got
from ...file_stamp import FileStamp, file_stamp
from ...label_names import listed
from ..npy import Bitmaps, stack_bitmaps
from ..stable_file import changed, is_unchanged
from ..strokes import MALFORMED_KEPT, Malformed
from .column import (
    all_bitmaps,
    bitmap_of,
    digest_of_column,
    is_drawing,
    key_id_of,
    plain,
    problem_of,
    remedy_for,
    remedy_for_many,
)

_MAGIC = (b"PAR1", b"PARE")  # the second with an encrypted footer
_KEY_ID = "key_id"
_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20  # of the file that are read at once
_FIRST_ROWS = 16  # that tell which of several columns has the drawings
_SHOWN = 500  # most characters of a schema that an error message quotes
_ONE = "leave one in the file; `sketchbatch score` takes --column"
_EXPECTED = "drawings (784 bytes, 784 or 28 x 28 numbers, or pictures)"


class ParquetBlock(NamedTuple):
    """Consecutive rows of a file, as they were read."""

    rows: NDArray[np.int64]  # (good rows,): row numbers, ascending
    bitmaps: Bitmaps  # (good rows, 28, 28)
    rejects: list[tuple[int, str]]  # number of each other row, and the reason
    key_ids: NDArray[np.uint64] | None  # (good rows,): 0 = unknown; None if the file has none
    unread_keys: int  # number of good rows whose key cannot be read
    digest: int  # CRC-32 of the column


class ParquetRows:
    """The drawings of a Parquet file; a column `key_id`, if there is one, holds their identifiers."""

    def __init__(self, path: Path, name: str = "", *, column: str = "", scale: float = 0) -> None:
        """Open the file. Raises FileRefused if it is not Parquet, or if it is unknown which column has the drawings.

        `name` is the name of the file in error messages, if `path` is a copy of it. `column` names the column; empty =
        the only one that can have drawings, by its type and its first rows; a file without rows needs none.
        `scale` multiplies numbers and bytes, but not pictures; 0 = columns of floats and booleans have no drawings.
        """
        self.path, self.name = path, (name := name or str(path))
        self._scale = scale
        self._numbers: NDArray[np.int64] | None = None  # of the rows, if malformed rows are skipped
        self._opened_as = _check_magic(path, name)
        try:
            # without `pre_buffer`, a row group of a gigabyte is read in pieces
            file = pa.OSFile(os.fspath(path))  # pyarrow takes some paths for URLs
            self._file = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            schema = self._file.schema_arrow
            _ = schema.names, self._file.metadata.num_rows
        except (OSError, ValueError, pa.ArrowException) as exc:  # ValueError: a name is not UTF-8
            raise FileRefused(
                f"{name}: cannot be read as Parquet: damaged or cut off; copy or download it again"
            ) from exc
        if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            raise FileRefused(f"{name}: column names must differ, got {twice[0]} twice; write it with other names")
        if column and column not in schema.names:
            found = ", ".join(schema.names)[:_SHOWN] or "no column"
            raise FileRefused(f"{name}: expected a column {column}, got {found}")
        self._column = column
        if len(self):  # the columns of a table without rows often have other types, such as null
            self._column = column or self._find_column(schema)
            if problem := problem_of(schema.field(self._column).type, scale):
                raise FileRefused(f"{name}: column {self._column} must hold {_EXPECTED}; {problem}")
        self.has_key_ids = _KEY_ID in schema.names
        self.malformed: list[Malformed] = []  # the first MALFORMED_KEPT skipped rows, numbered from 1
        self.malformed_count = 0
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._buffered = pa.table({})
        self._next_row = -1  # the first row of `_buffered`

    def __len__(self) -> int:
        return len(self._numbers) if self._numbers is not None else int(self._file.metadata.num_rows)

    def __getitem__(self, rows: slice) -> Bitmaps:
        """Return the bitmaps of a slice of rows with step 1. Raises DrawingRefused if one of them is malformed."""
        numbers = np.arange(len(self))[rows] if self._numbers is None else self._numbers[rows]
        if not len(numbers):
            return stack_bitmaps([])
        block = self.read(int(numbers[0]), int(numbers[-1]) + 1)
        if block.rejects and self._numbers is None:
            row, reason = block.rejects[0]
            raise DrawingRefused(f"{self.name}: row {row}: {reason}")
        return block.bitmaps

    def locate(self, row: int) -> tuple[Path, int]:
        """Return the file, and the number in it, from 0, of a row of this object."""
        return self.path, row if self._numbers is None else int(self._numbers[row])

    def skip_malformed(self) -> None:
        """Read the whole file; leave out the rows that are no drawings, and count and list them."""
        found = [np.empty(0, np.int64)]
        for start in range(0, len(self), _BATCH_ROWS):
            block = self.read(start, min(start + _BATCH_ROWS, len(self)))
            found.append(block.rows)
            self.malformed_count += len(block.rejects)
            room = MALFORMED_KEPT - len(self.malformed)
            self.malformed += [Malformed(row + 1, reason) for row, reason in block.rejects[:room]]
        self._numbers = np.concatenate(found)

    def read(self, start: int, stop: int) -> ParquetBlock:
        """Read rows `start` to `stop` - 1."""
        table = self._rows(start, stop)
        column = plain(table[self._column].combine_chunks())
        self._check_unchanged()
        bitmaps = all_bitmaps(column, self._scale)
        rows, rejects = np.arange(start, stop), list[tuple[int, str]]()
        if bitmaps is None:
            rows, bitmaps, rejects = self._decode_each(column, start)
        key_ids, unread = self._key_ids(table, rows - start) if self.has_key_ids else (None, 0)
        return ParquetBlock(rows, bitmaps, rejects, key_ids, unread, digest_of_column(column))

    def _find_column(self, schema: pa.Schema) -> str:
        """Return the name of the only column that can have drawings."""
        columns: list[str] = [field.name for field in schema if not problem_of(field.type, self._scale)]
        if len(columns) > 1:
            columns = self._with_drawings(columns) or columns
        if len(columns) > 1:
            found = ", ".join(columns)
            raise FileRefused(f"{self.name}: several columns may have drawings: {found}; {_ONE}")
        if not columns:
            found = listed([f"{field.name} {field.type}" for field in schema])[:_SHOWN] or "no column"
            remedies = [f"{field.name}: {each}" for field in schema if (each := remedy_for(field.type))]
            remedy = [*remedies, remedy_for_many(len(schema))][0]
            raise FileRefused(f"{self.name}: expected a column of {_EXPECTED}, got {found}{remedy and f'; {remedy}'}")
        return columns[0]

    def _with_drawings(self, columns: list[str]) -> list[str]:
        """Return the columns that have a drawing in one of the first rows."""
        try:
            rows = next(self._file.iter_batches(_FIRST_ROWS, columns=columns, use_threads=False), None)
        except (OSError, pa.ArrowException) as exc:
            raise FileRefused(f"{self.name}: damaged, cannot be read as Parquet: {_first_line(exc)}") from exc
        return [name for name in columns if rows and any(is_drawing(row, self._scale) for row in plain(rows[name]))]

    def _check_unchanged(self) -> None:
        if not is_unchanged(self.path, self._opened_as):
            raise changed(self.path)

    def _key_ids(self, table: pa.Table, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], int]:
        """Return the keys of some rows, and how many of them cannot be read; these are 0, as those of null."""
        try:
            values = table[_KEY_ID].take(pa.array(rows)).to_pylist()
            keys = [0 if value is None else key_id_of(value) for value in values]
            return np.array([key or 0 for key in keys], np.uint64), keys.count(None)
        except ValueError as exc:  # UnicodeDecodeError, and nanoseconds that Python's datetime cannot hold
            raise FileRefused(f"{self.name}: column {_KEY_ID} cannot be decoded: {exc}; write the file again") from exc

    def _decode_each(self, column: pa.Array, start: int) -> tuple[NDArray[np.int64], Bitmaps, list[tuple[int, str]]]:
        rows, bitmaps, rejects = [], [], []
        for row, value in enumerate(column, start):
            place = f"{self.name}: row {row}"
            try:
                bitmaps.append(bitmap_of(value.as_py(), place, self._scale))
                rows.append(row)
            except (FileRefused, ValueError, TypeError, OverflowError) as exc:
                rejects.append((row, str(exc).removeprefix(f"{place}: ")))
        return np.array(rows, np.int64), stack_bitmaps(bitmaps), rejects

    def _rows(self, start: int, stop: int) -> pa.Table:
        """Return rows `start` to `stop` - 1. Seek to the row group of `start`, unless the last block ended there."""
        if start != self._next_row:
            self._seek(start)
        tables = [self._buffered]
        while sum(map(len, tables)) < stop - start:
            tables.append(self._next_batch())
        table = pa.concat_tables(table for table in tables if len(table))
        self._buffered, self._next_row = table.slice(stop - start), stop
        return table.slice(0, stop - start)

    def _seek(self, start: int) -> None:
        first = group = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if start < first + rows:
                break
            first += rows
        columns = [self._column, *([_KEY_ID] if self.has_key_ids else [])]
        groups = list(range(group, self._file.num_row_groups))
        self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
        self._buffered = pa.table({})
        while first < start:
            batch = self._next_batch()
            self._buffered = batch.slice(start - first)
            first += len(batch)
        self._next_row = start

    def _next_batch(self) -> pa.Table:
        """Return the next rows of the file. Raises FileRefused if its pages are damaged."""
        try:
            return pa.Table.from_batches([next(self._batches)])
        except (OSError, pa.ArrowException, StopIteration) as exc:
            self._check_unchanged()
            reason = _first_line(exc) or "fewer rows than its metadata states"
            raise FileRefused(f"{self.name}: damaged, cannot be read as Parquet: {reason}") from exc


def _check_magic(path: Path, name: str) -> FileStamp:
    """Return the stamp of a file that begins like Parquet."""
    try:
        stamp = file_stamp(path)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as exc:
        raise FileRefused(f"{name}: cannot be read: {reason_of(exc)}") from exc
    if not head.startswith(_MAGIC):
        raise FileRefused(f"{name}: expected a Parquet file, got {got(head, name)}")
    return stamp


def _first_line(exc: BaseException) -> str:
    return str(exc).partition("\n")[0]
