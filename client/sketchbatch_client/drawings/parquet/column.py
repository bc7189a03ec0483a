"""Convert a column of a Parquet file to bitmaps: bytes, lists of numbers, or encoded pictures; and its keys."""

import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...errors import FileRefused
from ...file_kind import HEAD_BYTES, describe
from ..npy import MISSING_PIXEL, ROW_SHAPES, Bitmaps, remedy_for_bytes, scaled
from ..passed_over import PICTURE_SUFFIXES

_ROW_BYTES = 784


def problem_of(kind: pa.DataType, scale: float) -> str:
    """Return why a column of this type has no drawings; empty if it may have some.

    With a `scale`, floats and booleans are numbers of drawings, too.
    """
    if pa.types.is_dictionary(kind):
        return problem_of(kind.value_type, scale)
    if pa.types.is_struct(kind):  # Hugging Face stores pictures as structs
        content = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        return "" if _is_binary(content) or pa.types.is_null(content) else f"got {kind}"  # null = paths only
    if not _is_list(kind):
        return "" if _is_binary(kind) else f"got {kind}"
    numbers = _innermost(kind)
    if pa.types.is_integer(numbers) or (scale and (pa.types.is_floating(numbers) or pa.types.is_boolean(numbers))):
        return ""
    return f"got {kind}; {remedy_for(kind)}".removesuffix("; ")


def remedy_for(kind: pa.DataType) -> str:
    """Return how to convert lists of other numbers; empty for other types."""
    if not _is_list(kind):
        return ""
    if pa.types.is_floating(_innermost(kind)):
        return "`sketchbatch score` reads numbers from 0 to 1 with --scale 255"
    return "`sketchbatch score` reads them with --scale 255" if pa.types.is_boolean(_innermost(kind)) else ""


def remedy_for_many(columns: int) -> str:
    """Return how to convert a table with a column for each pixel; empty for fewer columns."""
    return "write the 784 columns of pixels as one .npy of uint8 (rows, 784)" if columns >= _ROW_BYTES else ""


def _innermost(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def plain(column: pa.Array) -> pa.Array:
    """Return a column with the same values without a dictionary, and with bytes that are not views."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(column.type) else column


def is_drawing(value: pa.Scalar, scale: float) -> bool:
    """Return whether one row has a drawing."""
    try:
        bitmap_of(value.as_py(), "", scale)
    except (FileRefused, ValueError, TypeError, OverflowError):
        return False
    return True


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width) == _ROW_BYTES
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def all_bitmaps(column: pa.Array, scale: float) -> Bitmaps | None:
    """Convert all rows of a column of bytes or numbers at once; return None if a row must be decoded or rejected."""
    if column.null_count or pa.types.is_struct(column.type):
        return None
    try:
        return _from_numbers(column, scale) if _is_list(column.type) else _from_bytes(column, scale)
    except (pa.ArrowInvalid, ValueError):  # a number below 0 or above 255
        return None


def _from_numbers(column: pa.Array, scale: float) -> Bitmaps | None:
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
    if pa.types.is_integer(column.type) and scale in (0, 1):
        bitmaps: Bitmaps = column.cast(pa.uint8()).to_numpy(zero_copy_only=False)
    else:
        bitmaps = scaled(column.to_numpy(zero_copy_only=False), scale)
    return bitmaps.reshape(-1, 28, 28)


def _from_bytes(column: pa.Array, scale: float) -> Bitmaps | None:
    if pc.binary_length(column).unique().to_pylist() != [_ROW_BYTES]:
        return None
    joined = column.cast(pa.large_binary())
    first = int(np.frombuffer(joined.buffers()[1], np.int64)[joined.offset])
    pixels = np.frombuffer(joined.buffers()[2], np.uint8, len(column) * _ROW_BYTES, first).reshape(-1, 28, 28)
    return scaled(pixels, scale)


def bitmap_of(value: Any, name: str, scale: float) -> NDArray[np.uint8]:
    """Decode one row. Raises FileRefused or ValueError with the reason."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            raise ValueError(f"the picture {value['path']} is not in the file, only its path: embed the bytes")
        value = value["bytes"]
    if value is None:
        raise ValueError("expected a drawing, got nothing")
    if isinstance(value, bytes):
        if len(value) == _ROW_BYTES:
            return scaled(np.frombuffer(value, np.uint8).reshape(28, 28), scale)
        if (remedy := remedy_for_bytes(len(value))) and not _is_picture(value):
            raise ValueError(f"expected {_ROW_BYTES} bytes or a picture; {remedy}")
        from ..images import decode_image  # imports Pillow, which other formats do not need

        return decode_image(value, name)
    return _from_list(value, scale)


def _is_picture(value: bytes) -> bool:
    kind = describe(value[:HEAD_BYTES], "")
    return kind is not None and kind.suffix in PICTURE_SUFFIXES


def _from_list(value: object, scale: float) -> NDArray[np.uint8]:
    if _are_strokes(value):
        raise ValueError('expected pixels, got strokes; write them as .ndjson, a line {"drawing": STROKES} per drawing')
    try:
        numbers = np.array(value)
    except ValueError as exc:
        raise ValueError("expected 784 numbers or 28 x 28, got lists of different lengths") from exc
    is_number = numbers.dtype.kind in "bfiu"
    if np.isnan(numbers).any() if is_number else any(pixel is None for pixel in numbers.flat):
        raise ValueError(MISSING_PIXEL)
    if scale and numbers.shape in ROW_SHAPES and numbers.dtype.kind in "bfiu":
        return scaled(numbers, scale).reshape(28, 28)
    if numbers.shape not in ROW_SHAPES or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"expected 784 numbers or 28 x 28, got {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() > 255:
        raise ValueError(f"numbers must be 0 to 255, got {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.uint8).reshape(28, 28)


def _are_strokes(value: object) -> bool:
    """Return whether a row is a list of strokes: lists of xs, ys and perhaps times."""
    strokes = value if isinstance(value, list) else []
    return bool(strokes) and all(
        isinstance(stroke, list) and 2 <= len(stroke) <= 3 and all(isinstance(each, list) for each in stroke)
        for stroke in strokes
    )


def key_id_of(value: object) -> int | None:
    """Return an identifier, or None if it is not a whole number below 2**64; pandas makes 6.0 of 6 next to a null."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return int(text) if text.isdecimal() and len(text) <= 20 and int(text) < 1 << 64 else None


def digest_of_column(column: pa.Array) -> int:
    """Return the CRC-32 of a column of any type."""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays([column], ["drawings"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return zlib.crc32(sink.getvalue())
