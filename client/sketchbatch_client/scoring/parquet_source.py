"""Read the drawings in a column of a Parquet file: bytes, lists of numbers, or encoded pictures.

Row groups are decoded 1,024 rows at a time. As long as blocks are read in order, each row is decoded only once.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from ..drawings.npy import ROW_SHAPES
from ..drawings.readers import Bitmaps, stack_bitmaps
from ..drawings.stable_file import changed, is_unchanged
from ..errors import FileRefused, reason_of
from ..file_kind import HEAD_BYTES, got
from ..file_stamp import FileStamp, file_stamp
from .sources import Block, Reject, Source

_ROW_BYTES = 784
_MAGIC = (b"PAR1", b"PARE")  # the second with an encrypted footer
_KEY_ID = "key_id"
_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20  # of the file that are read at once
_FIRST_ROWS = 16  # that tell which of several columns has the drawings
_SHOWN = 500  # most characters of a schema that an error message quotes
_EXPECTED = "drawings (784 bytes, 784 or 28 x 28 numbers, or pictures)"


class ParquetSource(Source):
    """The drawings of a Parquet file; a column `key_id`, if there is one, holds their identifiers."""

    def __init__(self, name: str, stamp: str, path: Path, column: str = "") -> None:
        """Open the file. Raises FileRefused if it is not Parquet, or if it is unknown which column has the drawings.

        `column` names the column; empty = the only one that can have drawings, by its type and its first rows.
        """
        super().__init__(name, stamp)
        self._path, self._opened_as = path, _check_magic(path, name)
        try:
            # without `pre_buffer`, a row group of a gigabyte is read in pieces
            file = pa.OSFile(os.fspath(path))  # pyarrow takes some paths for URLs
            self._file = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            schema = self._file.schema_arrow
            _ = schema.names, self._file.metadata.num_rows
        except (OSError, ValueError, pa.ArrowException) as exc:  # ValueError: a name is not UTF-8
            raise FileRefused(f"{name}: cannot be read as Parquet: damaged or cut off; fetch it again") from exc
        if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            raise FileRefused(f"{name}: column names must differ, got {twice[0]} twice; write it with other names")
        self._column = column or self._find_column(schema)
        if self._column not in schema.names:
            raise FileRefused(f"{name}: expected a column {self._column}, got {', '.join(schema.names)[:_SHOWN]}")
        if problem := _problem_of(schema.field(self._column).type):
            raise FileRefused(f"{name}: column {self._column} must hold {_EXPECTED}; {problem}")
        self.has_key_ids = _KEY_ID in schema.names
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._buffered = pa.table({})
        self._next_row = -1  # the first row of `_buffered`

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def block(self, start: int, stop: int) -> Block:
        table = self._rows(start, stop)
        column = _plain(table[self._column].combine_chunks())
        self._check_unchanged()
        bitmaps = _all_bitmaps(column)
        rows, rejects = np.arange(start, stop), list[Reject]()
        if bitmaps is None:
            rows, bitmaps, rejects = self._decode_each(column, start)
        key_ids = self._key_ids(table, rows - start) if self.has_key_ids else None
        return Block(rows=rows, bitmaps=bitmaps, key_ids=key_ids, rejects=rejects, digest=_digest(column))

    def _find_column(self, schema: pa.Schema) -> str:
        """Return the name of the only column that can have drawings."""
        columns: list[str] = [field.name for field in schema if not _problem_of(field.type)]
        if len(columns) > 1:
            columns = self._with_drawings(columns) or columns if len(self) else columns[:1]
        if len(columns) > 1:
            found = ", ".join(columns)
            raise FileRefused(f"{self.name}: several columns may have drawings: {found}; name one with --column")
        if not columns:
            found = ", ".join(f"{field.name} {field.type}" for field in schema)[:_SHOWN]
            remedy = next((f"; {field.name}: {each}" for field in schema if (each := _remedy(field.type))), "")
            raise FileRefused(f"{self.name}: expected a column of {_EXPECTED}, got {found}{remedy}")
        return columns[0]

    def _with_drawings(self, columns: list[str]) -> list[str]:
        """Return the columns that have a drawing in one of the first rows."""
        try:
            rows = next(self._file.iter_batches(_FIRST_ROWS, columns=columns, use_threads=False), None)
        except (OSError, pa.ArrowException) as exc:
            raise FileRefused(f"{self.name}: damaged, cannot be read as Parquet: {_first_line(exc)}") from exc
        return [name for name in columns if rows and any(map(_is_drawing, _plain(rows[name])))]

    def _check_unchanged(self) -> None:
        if not is_unchanged(self._path, self._opened_as):
            raise changed(self._path)

    def _key_ids(self, table: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        try:
            values = table[_KEY_ID].take(pa.array(rows)).to_pylist()
            return np.array([_key_id(value) for value in values], np.uint64)
        except ValueError as exc:  # UnicodeDecodeError, and nanoseconds that Python's datetime cannot hold
            raise FileRefused(f"{self.name}: damaged, {_KEY_ID} must be text: {exc}; write the file again") from exc

    def _decode_each(self, column: pa.Array, start: int) -> tuple[NDArray[np.int64], Bitmaps, list[Reject]]:
        rows, bitmaps, rejects = [], [], []
        for row, value in enumerate(column, start):
            try:
                bitmaps.append(_bitmap(value.as_py(), f"{self.name}: row {row}"))
                rows.append(row)
            except (FileRefused, ValueError, TypeError, OverflowError) as exc:
                rejects.append(Reject(self.name, row, str(exc)))
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


def _problem_of(kind: pa.DataType) -> str:
    """Return why a column of this type has no drawings; empty if it may have some."""
    if pa.types.is_dictionary(kind):
        return _problem_of(kind.value_type)
    if pa.types.is_struct(kind):  # Hugging Face stores pictures as structs
        content = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        return "" if _is_binary(content) or pa.types.is_null(content) else f"got {kind}"  # null = paths only
    if not _is_list(kind):
        return "" if _is_binary(kind) else f"got {kind}"
    return "" if pa.types.is_integer(_innermost(kind)) else f"got {kind}; {_remedy(kind)}".removesuffix("; ")


def _remedy(kind: pa.DataType) -> str:
    """Return how to convert lists of other numbers; empty for other types."""
    if not _is_list(kind):
        return ""
    if pa.types.is_floating(_innermost(kind)):
        return "convert the numbers: (x * 255).round().astype(np.uint8) if they are 0 to 1"
    return "convert the numbers: np.uint8(255) * x" if pa.types.is_boolean(_innermost(kind)) else ""


def _innermost(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _plain(column: pa.Array) -> pa.Array:
    """Return a column with the same values without a dictionary, and with bytes that are not views."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(column.type) else column


def _is_drawing(value: pa.Scalar) -> bool:
    try:
        _bitmap(value.as_py(), "")
    except (FileRefused, ValueError, TypeError, OverflowError):
        return False
    return True


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width) == _ROW_BYTES
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _all_bitmaps(column: pa.Array) -> Bitmaps | None:
    """Convert all rows of a column of bytes or numbers at once; return None if a row must be decoded or rejected."""
    if column.null_count or pa.types.is_struct(column.type):
        return None
    try:
        return _from_numbers(column) if _is_list(column.type) else _from_bytes(column)
    except pa.ArrowInvalid:  # a number above 255
        return None


def _from_numbers(column: pa.Array) -> Bitmaps | None:
    """Convert a column whose rows are lists of 784 numbers, or 28 lists of 28 numbers; return None if a row differs."""
    shape = list[int]()
    while _is_list(column.type):
        lengths = pc.list_value_length(column).unique().to_pylist()
        if column.null_count or len(lengths) != 1:
            return None
        shape += lengths
        column = column.flatten()
    if column.null_count or tuple(shape) not in ROW_SHAPES:
        return None
    bitmaps: Bitmaps = column.cast(pa.uint8()).to_numpy(zero_copy_only=False).reshape(-1, 28, 28)
    return bitmaps


def _from_bytes(column: pa.Array) -> Bitmaps | None:
    if pc.binary_length(column).unique().to_pylist() != [_ROW_BYTES]:
        return None
    joined = column.cast(pa.large_binary())
    first = int(np.frombuffer(joined.buffers()[1], np.int64)[joined.offset])
    return np.frombuffer(joined.buffers()[2], np.uint8, len(column) * _ROW_BYTES, first).reshape(-1, 28, 28)


def _bitmap(value: Any, name: str) -> NDArray[np.uint8]:
    """Decode one row. Raises FileRefused or ValueError with the reason."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            raise ValueError(f"the picture {value['path']} is not in the file, only its path: embed the bytes")
        value = value["bytes"]
    if value is None:
        raise ValueError("expected a drawing, got nothing")
    if isinstance(value, bytes):
        if len(value) == _ROW_BYTES:
            return np.frombuffer(value, np.uint8).reshape(28, 28)
        from ..drawings.images import decode_image  # imports Pillow, which other formats do not need

        return decode_image(value, name)
    try:
        numbers = np.array(value)
    except ValueError as exc:
        raise ValueError("expected 784 numbers or 28 x 28, got lists of different lengths") from exc
    if numbers.shape not in ROW_SHAPES or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"expected 784 numbers or 28 x 28, got {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() > 255:
        raise ValueError(f"numbers must be 0 to 255, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.uint8).reshape(28, 28)


def _key_id(value: object) -> int:
    """Return the identifier, or 0 if it is not a whole number below 2**64; pandas makes 6.0 of 6 next to a null."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return int(text) if text.isdecimal() and len(text) <= 20 and int(text) < 1 << 64 else 0


def _digest(column: pa.Array) -> int:
    """Return the CRC-32 of a column of any type."""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays([column], ["drawings"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return zlib.crc32(sink.getvalue())
