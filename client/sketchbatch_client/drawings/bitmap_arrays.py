"""Convert arrays, lists, and series of pandas and polars to bitmaps; recognise inverted bitmaps.

Flow: object -> one array, or one array per row -> checked shape -> checked type and values -> uint8. Series and data
frames are recognised by their method `to_numpy`, so this module imports neither pandas nor polars.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..file_kind import HEAD_BYTES, describe
from .npy import ROW_SHAPES, Bitmaps, axes_remedy, remedy_for_bytes
from .passed_over import PICTURE_SUFFIXES

_EXPECTED = "uint8 (rows, 28, 28) or (rows, 784)"

# Levels. In a sample of 104,553 drawings of 345 classes, the mean level of a drawing was at most 150, and 43 on
# average. The mean of inverted drawings is 212.
_MOSTLY_INK = 170

_BLACK = b"\xff"

_ROW = "np.asarray(row)"  # how a remedy writes a row of a pandas series, whose index it keeps

_LEAVE_OUT = "leave such rows out"
_EXAMINED = 10_000  # most rows of a list or series whose values choose a remedy

Remedy = Callable[[NDArray[Any]], str]
"""Returns what to do with an array of another type, as the end of an error message."""

_INK = 0.02, 0.7  # lowest and highest share of ink in drawings; nearly blank or filled bitmaps are no scaled drawings


class Series(Protocol):
    """A series or data frame of pandas, polars or a library like them."""

    def to_numpy(self) -> NDArray[Any]: ...


Drawings = ArrayLike | Series
"""What `as_bitmaps` accepts."""


INK_WARNING = "most pixels of the bitmaps are ink|the bitmaps have only the values"
"""Pattern of the texts of `ink_warning`."""


class InkWarning(UserWarning):
    """Category of the warnings about bitmaps that look inverted, or that have no ink darker than level 1."""


def as_bitmaps(drawings: Drawings, name: str = "bitmaps") -> Bitmaps:
    """Return drawings as uint8 (rows, 28, 28), without a copy if they are a uint8 array.

    Args:
        drawings: An array, or a list or series with one entry per row: an array, a list, or 784 bytes. Rows are
            (28, 28), (784,), (28, 28, 1) or (1, 28, 28); one row alone is accepted, too. Numbers are integers of any
            type from 0 to 255.
        name: The first word of error messages.

    Raises:
        ValueError: The shape is another, or the numbers are not integers from 0 to 255. The message has one line, and
            the expression that converts floats and bools.
    """
    if type(drawings) is np.ndarray and drawings.dtype == np.uint8 and drawings.shape[1:] == (28, 28):
        return drawings  # as most callers pass them: the other checks would take 8 us
    rows = drawings.to_numpy() if hasattr(drawings, "to_numpy") else drawings
    array = _as_array(rows)
    if hasattr(drawings, "columns") and (array is None or array.shape[1:] != (784,)):
        shape = f" {array.shape}" if array is not None else ""
        columns = "one column, as in x['bitmap'], or the 784 columns of the pixels"
        raise ValueError(f"{name} must be {_EXPECTED}, got a data frame{shape}; choose {columns}")
    if array is None or (array.ndim and array.dtype.kind in "OS") or array.shape == (0,):  # no rows, or unlike rows
        each = enumerate(cast(Iterable[object], rows))
        x = _ROW if hasattr(drawings, "to_numpy") and hasattr(drawings, "index") else "np.stack(x)"
        numbered = list(each)
        for number, row in numbered:  # before other errors, because a remedy for all rows fails with a missing value
            if _is_missing(row):
                raise ValueError(f"{name} must be {_EXPECTED}, got a missing value in row {number}; {_LEAVE_OUT}")
        remedy = partial(_remedy_of_rows, rows=[row for _, row in numbered[:_EXAMINED]], x=x)
        bitmaps = [_one(row, f"{name} must be", f" in row {number}", remedy) for number, row in numbered]
        return np.concatenate([np.empty((0, 28, 28), np.uint8), *bitmaps])
    if not array.ndim:
        raise ValueError(f"{name} must be {_EXPECTED}, got {type(drawings).__name__}")
    remedy = partial(_remedy, x=_spelled(drawings))
    return _checked(array, _has_rows(array), f"{name} must be", "", lambda array: remedy([array]))


def is_one_batch(drawings: object) -> TypeGuard[Drawings]:
    """Return whether `drawings` is an array of bitmaps or a series, and not a sequence of such batches."""
    return hasattr(drawings, "to_numpy") or (isinstance(drawings, np.ndarray) and _has_rows(drawings))


def index_of(drawings: object, rows: int) -> Any:
    """Return the index of a series of pandas that has one entry for each of `rows` rows; None for other objects."""
    index = getattr(drawings, "index", None) if hasattr(drawings, "to_numpy") else None
    return index if isinstance(index, Sized) and len(index) == rows else None


def warn_of_ink(bitmaps: Bitmaps, name: str = "") -> bool:
    """Issue an `InkWarning` if `ink_warning` returns a text for the bitmaps; by default Python shows it once.

    `name`, if given, is the name of the file, with which the text begins. Returns whether there was a warning.
    """
    text = ink_warning(bitmaps)
    if text:
        warnings.warn(f"{name}: {text}" if name else text, InkWarning, stacklevel=1)  # one place: it is shown once
    return bool(text)


def ink_warning(bitmaps: Bitmaps) -> str:
    """Return a warning about bitmaps (rows, 28, 28) that look inverted or have the values 0 and 1; empty = none.

    All bitmaps are examined only if the first one is suspect: if its first corner, which is paper in drawings, is ink,
    or if it has no ink.
    """
    first = bitmaps[:1].tobytes()  # of bytes, the tests below cost a tenth of those of an array
    if not first or (_BLACK in first and first[0] <= _MOSTLY_INK):
        return ""
    if first[0] > _MOSTLY_INK and bitmaps.mean() > _MOSTLY_INK:
        return "most pixels of the bitmaps are ink: are they inverted? 0 = paper, 255 = ink; 255 - x inverts them"
    if bitmaps[0].max() <= 1 and bitmaps.max() == 1 and _INK[0] < bitmaps.mean() < _INK[1]:
        remedy = "255 * x converts them, and `sketchbatch score --scale 255` reads them"
        return f"the bitmaps have only the values 0 and 1; expected 0 = paper, 255 = ink; {remedy}"
    return ""


def _has_rows(array: NDArray[Any]) -> bool:
    return array.shape in ROW_SHAPES or array.shape[1:] in ROW_SHAPES


def _as_array(rows: Any) -> NDArray[Any] | None:
    """Return `rows` as one array; None if NumPy cannot do that, for example because rows have several shapes."""
    if isinstance(rows, (bytes, bytearray, memoryview)):
        return np.frombuffer(rows, np.uint8)
    try:
        return np.asarray(rows)
    except (TypeError, ValueError):
        return None if isinstance(rows, (list, tuple)) else np.array(rows, object)


def _unnested(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return lists in an array, or arrays of lists, as an array of numbers if they are ones."""
    return _as_array(array.tolist()) if array is not None and array.ndim and array.dtype == object else array


def _is_missing(row: object) -> bool:
    is_nan = isinstance(row, float | np.floating) and math.isnan(row)
    return row is None or is_nan or type(row).__name__ in ("NAType", "NaTType")  # of pandas


def _one(row: object, must_be: str, where: str, remedy: "Remedy") -> Bitmaps:
    """Return one entry of a list or series as (1, 28, 28)."""
    array = _as_array(row)
    if isinstance(row, bytes) and len(row) != 784 and (kind := describe(row[:HEAD_BYTES], "it")):
        convert = "; convert each with sketchbatch_client.drawings.images.decode_image"
        way = convert if kind.suffix in PICTURE_SUFFIXES else ""
        raise ValueError(f"{must_be} {_EXPECTED}, got {kind.name}{where}{way}")
    if isinstance(row, bytes) and (wider := remedy_for_bytes(len(row))):
        raise ValueError(f"{must_be} {_EXPECTED}, got bytes{where}; {wider}")
    array = _unnested(array)
    if array is None or not array.ndim:
        raise ValueError(f"{must_be} {_EXPECTED}, got {type(row).__name__}{where}")
    if array.dtype == object and any(map(_is_missing, array.flat)):
        raise ValueError(f"{must_be} {_EXPECTED}, got pixels with a missing value{where}; {_LEAVE_OUT}")
    return _checked(array, array.shape in ROW_SHAPES, must_be, where, remedy)


def _checked(array: NDArray[Any], is_bitmaps: bool, must_be: str, where: str, remedy: "Remedy") -> Bitmaps:
    """Return (rows, 28, 28) after a check of the type and of the values."""
    got = f"{array.dtype} {array.shape}{where}"
    if not is_bitmaps:
        raise ValueError(f"{must_be} {_EXPECTED}, got {got}{axes_remedy(array.shape)}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{must_be} {_EXPECTED}, got {got}{remedy(array)}")
    if array.dtype != np.uint8 and array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 255:
            raise ValueError(f"{must_be} integers from 0 to 255, got {low} to {high}{where}")
    return array.astype(np.uint8, copy=False).reshape(-1, 28, 28)


def _remedy_of_rows(row: NDArray[Any], rows: Sequence[object], x: str) -> str:
    """Return what to do with a row of floats or bools: convert all `rows` with one expression, or this row alone.

    `rows` are the first rows of a list or series. If they have one type, their values choose the expression.
    """
    arrays = [array for each in rows if (array := _unnested(_as_array(each))) is not None]
    if all(array.dtype.kind == row.dtype.kind for array in arrays):
        return _remedy([row, *arrays], x)
    if expression := _expression([row], "np.asarray(row)"):
        return f"; the rows have several types, so convert this row alone, with {expression}"
    return _remedy([row], x)


def _remedy(arrays: Sequence[NDArray[Any]], x: str) -> str:
    """Return how to convert arrays of floats or bools, or why this is not possible; empty for other types."""
    if expression := _expression(arrays, x):  # for the rows of a pandas series, it keeps the index of the series
        return f"; convert with x.map(lambda row: {expression})" if x == _ROW else f"; convert with {expression}"
    arrays = [array for array in arrays if array.size]
    if not arrays or arrays[0].dtype.kind != "f":
        return ""
    if any(np.isnan(array).any() for array in arrays):
        return f" with missing values (NaN); {_LEAVE_OUT}"
    return " with values from {:g} to {:g}".format(*_range(arrays))


def _expression(arrays: Sequence[NDArray[Any]], x: str) -> str:
    """Return the expression that converts arrays of floats or bools, chosen by all values; empty = there is none."""
    if arrays[0].dtype == np.bool_:
        return f"np.uint8(255) * {x}"
    if arrays[0].dtype.kind != "f":
        return ""
    low, high = _range(arrays)
    if 0 <= low <= high <= 1:
        return f"(255 * {x}).round().astype(np.uint8)"
    if 0 <= low <= high <= 255:
        return f"{x}.round().astype(np.uint8)"
    if -1 <= low <= high <= 1:
        return f"(127.5 * {x} + 127.5).round().astype(np.uint8)"
    return ""


def _range(arrays: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return the lowest and highest value of all arrays; NaN if one of them has no value or a missing one."""
    return (
        float(np.min([array.min() if array.size else np.nan for array in arrays])),
        float(np.max([array.max() if array.size else np.nan for array in arrays])),
    )


def _spelled(drawings: object) -> str:
    """Return the Python expression that makes one array of drawings that are called x."""
    if isinstance(drawings, np.ndarray):
        return "x"
    return "x.to_numpy()" if hasattr(drawings, "to_numpy") else "np.array(x)"
