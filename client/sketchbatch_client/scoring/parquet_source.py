"""Read the drawings in a column of a Parquet file: bytes, lists of numbers, or encoded pictures.

Row groups are decoded 1,024 rows at a time. As long as blocks are read in order, each row is decoded only once.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

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


class ParquetSource(Source):
    """The drawings of a Parquet file; a column `key_id`, if there is one, holds their identifiers."""

    def __init__(self, name: str, stamp: str, path: Path) -> None:
        """Open the file. Raises FileRefused if it is not Parquet or does not have exactly one column of drawings."""
        super().__init__(name, stamp)
        self._path, self._opened_as = path, _check_magic(path, name)
        try:
            self._file = parquet.ParquetFile(path)
            schema = self._file.schema_arrow
            _ = schema.names, self._file.metadata.num_rows
        except (OSError, ValueError, pa.ArrowException) as exc:  # ValueError: a name is not UTF-8
            raise FileRefused(f"{name}: cannot be read as Parquet: damaged or cut off; fetch it again") from exc
        columns = [field.name for field in schema if _has_drawings(field.type)]
        if len(columns) != 1:
            got = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise FileRefused(
                f"{name}: expected one column of drawings (784 bytes, 784 numbers, or pictures), got {got[:500]}"
            )
        self._column = columns[0]
        self.has_key_ids = _KEY_ID in schema.names
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._buffered = pa.table({})
        self._next_row = -1  # the first row of `_buffered`

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def block(self, start: int, stop: int) -> Block:
        table = self._rows(start, stop)
        column = table[self._column].combine_chunks()
        self._check_unchanged()
        bitmaps = _all_bitmaps(column)
        rows, rejects = np.arange(start, stop), list[Reject]()
        if bitmaps is None:
            rows, bitmaps, rejects = self._decode_each(column, start)
        key_ids = self._key_ids(table, rows - start) if self.has_key_ids else None
        return Block(rows=rows, bitmaps=bitmaps, key_ids=key_ids, rejects=rejects, digest=_digest(column))

    def _check_unchanged(self) -> None:
        if not is_unchanged(self._path, self._opened_as):
            raise changed(self._path)

    def _key_ids(self, table: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        try:
            texts = map(str, table[_KEY_ID].take(pa.array(rows)).to_pylist())
            return np.array([_key_id(text) for text in texts], np.uint64)
        except UnicodeDecodeError as exc:
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


def _has_drawings(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face stores pictures as structs
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    if not _is_list(kind):
        return _is_binary(kind)
    while _is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind))


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width) == _ROW_BYTES
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


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
    for length in (28, 28) if _is_list(column.type.value_type) else (_ROW_BYTES,):
        if column.null_count or pc.list_value_length(column).unique().to_pylist() != [length]:
            return None
        column = column.flatten()
    if column.null_count:
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
        value = value["bytes"]
    if value is None:
        raise ValueError("expected a drawing, got nothing")
    if isinstance(value, bytes):
        if len(value) == _ROW_BYTES:
            return np.frombuffer(value, np.uint8).reshape(28, 28)
        from ..drawings.images import decode_image  # imports Pillow, which other formats do not need

        return decode_image(value, name)
    numbers = np.array(value)
    if numbers.shape not in ((_ROW_BYTES,), (28, 28)) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"expected 784 numbers or 28 x 28, got {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() > 255:
        raise ValueError(f"numbers must be 0 to 255, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.uint8).reshape(28, 28)


def _key_id(text: str) -> int:
    """Return the identifier, or 0 if the text is not a number below 2**64."""
    return int(text) if text.isdecimal() and int(text) < 1 << 64 else 0


def _digest(column: pa.Array) -> int:
    """Return the CRC-32 of a column of any type."""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays([column], ["drawings"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return zlib.crc32(sink.getvalue())
