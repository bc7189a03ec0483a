"""The drawings in a column of a Parquet file: bytes, lists of numbers, or encoded pictures.

Row groups are decoded a batch at a time, and once, as long as rows are asked for in order.
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

from ..drawings.npy import Bitmaps
from ..errors import FileRefused
from .sources import Block, Reject, stacked

_ROW_BYTES = 784
_KEY_ID = "key_id"
_BATCH_ROWS = 1024


class ParquetSource:
    """A column of drawings; `key_id`, where there is such a column of numbers, names them."""

    is_drawn = False

    def __init__(self, path: Path, name: str, stamp: str) -> None:
        """Opens the file.

        Raises:
            FileRefused: It is no Parquet file, or it has no column of drawings, or several.
        """
        self.name = name
        self.stamp = stamp
        try:
            self._file = parquet.ParquetFile(path)
            schema = self._file.schema_arrow
            _ = schema.names, self._file.metadata.num_rows
        except (OSError, ValueError, pa.ArrowException) as exc:  # ValueError: a name is no UTF-8
            reason = str(exc).partition("\n")[0]
            raise FileRefused(f"{name}: cannot be read as Parquet: {reason}") from exc
        fitting = [field.name for field in schema if _is_of_drawings(field.type)]
        if len(fitting) != 1:
            got = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise FileRefused(
                f"{name}: expected one column of drawings (784 bytes, 784 numbers, or pictures), got {got[:500]}"
            )
        self._column = fitting[0]
        self.has_key_ids = _KEY_ID in schema.names
        self._ahead: Iterator[pa.RecordBatch] = iter(())
        self._rest = pa.table({})
        self._at = -1  # the row that `_rest` begins with

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def place(self, rows: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
        return self.name, rows

    def block(self, start: int, stop: int) -> Block:
        table = self._rows(start, stop)
        column = table[self._column].combine_chunks()
        digest = _digest(column)
        bitmaps = _all_at_once(column)
        kept, rejects = np.arange(start, stop), list[Reject]()
        if bitmaps is None:
            kept, bitmaps, rejects = self._one_by_one(column, start)
        keys = None
        if self.has_key_ids:
            keys = np.array([_key_id(value) for value in self._key_ids(table, kept - start)], np.uint64)
        return Block(rows=kept, bitmaps=bitmaps, key_ids=keys, rejects=rejects, digest=digest)

    def _key_ids(self, table: pa.Table, rows: NDArray[np.int64]) -> list[Any]:
        try:
            return list(table[_KEY_ID].take(pa.array(rows)).to_pylist())
        except UnicodeDecodeError as exc:
            raise FileRefused(f"{self.name}: damaged, {_KEY_ID} is no text: {exc}") from exc

    def _one_by_one(self, column: pa.Array, start: int) -> tuple[NDArray[np.int64], Bitmaps, list[Reject]]:
        rows, bitmaps, rejects = [], [], []
        for row, value in enumerate(column, start):
            try:
                bitmaps.append(_drawing(value.as_py(), f"{self.name}: row {row}"))
                rows.append(row)
            except (FileRefused, ValueError, TypeError, OverflowError) as exc:
                rejects.append(Reject(self.name, row, str(exc)))
        return np.array(rows, np.int64), stacked(bitmaps), rejects

    def _rows(self, start: int, stop: int) -> pa.Table:
        """Goes on where it was, or else begins at the row group that has `start`."""
        if start != self._at:
            self._seek(start)
        tables = [self._rest]
        while sum(map(len, tables)) < stop - start:
            tables.append(self._next())
        table = pa.concat_tables(table for table in tables if len(table))
        self._rest, self._at = table.slice(stop - start), stop
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
        self._ahead = self._file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
        self._rest = pa.table({})
        while first < start:
            batch = self._next()
            self._rest = batch.slice(start - first)
            first += len(batch)
        self._at = start

    def _next(self) -> pa.Table:
        """The next rows in the file's order. Raises FileRefused where its pages are damaged."""
        try:
            return pa.Table.from_batches([next(self._ahead)])
        except (OSError, pa.ArrowException, StopIteration) as exc:
            reason = str(exc).partition("\n")[0] or "fewer rows than it says"
            raise FileRefused(f"{self.name}: damaged, cannot be read as Parquet: {reason}") from exc


def _is_of_drawings(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # as Hugging Face keeps pictures
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    if _is_list(kind):
        return _is_of_numbers(kind.value_type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width) == _ROW_BYTES
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_of_numbers(kind: pa.DataType) -> bool:
    return _is_of_numbers(kind.value_type) if _is_list(kind) else bool(pa.types.is_integer(kind))


def _all_at_once(column: pa.Array) -> Bitmaps | None:
    """The bitmaps of a column that is all bytes or numbers, none missing, none too many; None = it is not."""
    if column.null_count or pa.types.is_struct(column.type):
        return None
    try:
        return _numbers(column) if _is_list(column.type) else _bytes(column)
    except pa.ArrowInvalid:  # a number beyond a byte
        return None


def _numbers(column: pa.Array) -> Bitmaps | None:
    """Of lists of 784, or of 28 lists of 28."""
    for length in (28, 28) if _is_list(column.type.value_type) else (_ROW_BYTES,):
        if column.null_count or pc.list_value_length(column).unique().to_pylist() != [length]:
            return None
        column = column.flatten()
    if column.null_count:
        return None
    bitmaps: Bitmaps = column.cast(pa.uint8()).to_numpy(zero_copy_only=False).reshape(-1, 28, 28)
    return bitmaps


def _bytes(column: pa.Array) -> Bitmaps | None:
    """Of 784 bytes a row."""
    if pc.binary_length(column).unique().to_pylist() != [_ROW_BYTES]:
        return None
    joined = column.cast(pa.large_binary())
    first = int(np.frombuffer(joined.buffers()[1], np.int64)[joined.offset])
    return np.frombuffer(joined.buffers()[2], np.uint8, len(column) * _ROW_BYTES, first).reshape(-1, 28, 28)


def _drawing(value: Any, place: str) -> NDArray[np.uint8]:
    """One row's bitmap. Raises FileRefused or ValueError with the reason."""
    if isinstance(value, dict):
        value = value["bytes"]
    if value is None:
        raise ValueError("expected a drawing, got nothing")
    if isinstance(value, bytes):
        if len(value) == _ROW_BYTES:
            return np.frombuffer(value, np.uint8).reshape(28, 28)
        from ..drawings.images import decode_image  # Pillow, which other files do not need

        return decode_image(value, place)
    numbers = np.array(value)
    if numbers.shape not in ((_ROW_BYTES,), (28, 28)) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"expected 784 numbers or 28 x 28, got {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() > 255:
        raise ValueError(f"expected numbers of 0 to 255, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.uint8).reshape(28, 28)


def _key_id(value: Any) -> int:
    """0 = not said, or no number that fits."""
    text = str(value)
    return int(text) if text.isdecimal() and int(text) < 1 << 64 else 0


def _digest(column: pa.Array) -> int:
    """Of what the rows of a column hold, whatever their kind."""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays([column], ["drawings"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return zlib.crc32(sink.getvalue())
