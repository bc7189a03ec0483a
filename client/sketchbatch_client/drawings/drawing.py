"""Parse one drawing: a line of .ndjson (simplified or raw), or a record of one of Google's .bin files.

Both formats: https://github.com/googlecreativelab/quickdraw-dataset#the-raw-moderated-dataset
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np

from .rendering.geometry import points_in
from .stable_file import StableFile

Stroke = list[list[float | int]]
"""`[xs, ys]`, or raw `[xs, ys, ts]` with t in ms; at least one point, all lists of one length, y downwards."""

_HEADER = struct.Struct("<Q2sbIH")  # key_id, country, recognised, seconds since the epoch, number of strokes
_POINT_COUNT = struct.Struct("<H")
_MAX_COORDINATE = 1e6  # units or pixels; far beyond any screen, and far below the limit of cairo's 24.8 fixed point
_MAX_TIME_MS = 1e15  # large enough for milliseconds since the epoch
# Rendering time grows with the square of the number of points, and with the square of the total stroke length. A
# drawing at either limit takes half a second. In a sample of 8,828 drawings that Google published, every drawing stays
# below 1/50 of the allowed points and below 1/3 of the allowed length.
_MAX_POINTS = 40_000
_MAX_RELATIVE_LENGTH = 500  # total length of all strokes, as a multiple of the drawing's longer side


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing. Metadata that the file lacks, or that cannot be read, is "", 0, or, for `is_recognized`, None."""

    key_id: int  # Google's identifier, 0 to 2**64 - 1
    word: str
    """The word that the player had to draw; "" in binary files."""
    country: str  # country code of two letters
    is_recognized: bool | None  # whether the game recognised the drawing; None = unknown
    drawn_at: float  # seconds since the epoch, UTC
    strokes: list[Stroke]  # at least one stroke
    unread: tuple[str, ...] = ()  # names of the fields of metadata that cannot be read


def from_line(line: bytes) -> Drawing:
    """Parse a line of .ndjson. Raises ValueError with the reason if the line is malformed."""
    try:
        # Other bytes than UTF-8 become U+FFFD. Given bytes, `json.loads` would guess UTF-16 and UTF-32 as well.
        fields = json.loads(line.rstrip().decode("utf-8-sig", "replace"))
    except json.JSONDecodeError as exc:
        raise ValueError(f"not JSON: {exc.msg} at character {exc.pos + 1}") from exc
    except RecursionError as exc:
        raise ValueError("not JSON: nested too deep") from exc
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {_short(fields)}")
    strokes = fields.get("drawing")
    if "drawing" not in fields:
        raise ValueError(f"expected the key drawing with a list of strokes, got the keys {_short(list(fields))}")
    if not isinstance(strokes, list):
        raise ValueError(f"drawing must be a list of strokes, got {_short(strokes)}")
    if not strokes:
        raise ValueError("a drawing must have at least one stroke, got none")
    for number, stroke in enumerate(strokes):
        _check_stroke(stroke, number)
    _check_rendering_cost(strokes)
    unread: list[str] = []

    def metadata(name: str, parse: Callable[[Any], _Value], default: _Value) -> _Value:
        value = fields.get(name)
        try:
            return default if value is None else parse(value)
        except ValueError:
            unread.append(name)
            return default

    return Drawing(
        key_id=metadata("key_id", _key_id, 0),
        word=metadata("word", _text, ""),
        country=metadata("countrycode", _text, ""),
        is_recognized=metadata("recognized", _flag, None),
        drawn_at=metadata("timestamp", _seconds, 0.0),
        strokes=strokes,
        unread=tuple(unread),
    )


def _check_stroke(stroke: object, number: int) -> None:
    if not isinstance(stroke, list) or not 2 <= len(stroke) <= 3 or not all(isinstance(one, list) for one in stroke):
        points = points_in(stroke) if isinstance(stroke, list) else ""
        raise ValueError(f"stroke {number} must be [xs, ys] or [xs, ys, ts], got {points or _short(stroke)}")
    lengths = [len(one) for one in stroke]
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"stroke {number} must have as many x as y and at least one, got {_short(lengths)}")
    for values in stroke:
        if not {int, float}.issuperset(map(type, values)):
            raise ValueError(f"stroke {number} must contain only numbers, got {_short(values)}")
    for values in stroke[:2]:
        if not (min(values) >= -_MAX_COORDINATE and max(values) <= _MAX_COORDINATE and not math.isnan(sum(values))):
            raise ValueError(f"stroke {number} must be within {_MAX_COORDINATE:g} units, got {_short(values)}")
    if len(stroke) > 2 and not all(abs(t) <= _MAX_TIME_MS for t in stroke[2]):
        raise ValueError(f"stroke {number} must have times within {_MAX_TIME_MS:g} ms, got {_short(stroke[2])}")


def _check_rendering_cost(strokes: list[Stroke]) -> None:
    """Reject a well-formed drawing that would take minutes to render."""
    points = sum(len(stroke[0]) for stroke in strokes)
    if points > _MAX_POINTS:
        raise ValueError(f"a drawing must have at most {_MAX_POINTS:,} points, got {points:,}")
    if points * math.sqrt(2) <= _MAX_RELATIVE_LENGTH:
        return
    paths = [np.array(stroke[:2], np.float64) for stroke in strokes]  # (2, points)
    size = np.ptp(np.concatenate(paths, axis=1), axis=1).max() or 1.0
    length = sum(np.hypot(*np.diff(path)).sum() for path in paths) / size
    if length > _MAX_RELATIVE_LENGTH:
        limit = f"{_MAX_RELATIVE_LENGTH} times as long as the drawing"
        raise ValueError(f"strokes must together be at most {limit}, got {length:.0f} times")


def _key_id(value: object) -> int:
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not (isinstance(value, str | int | float) and text.isdecimal() and int(text) < 1 << 64):
        raise ValueError(f"must be a number below 2**64, got {_short(value)}")
    return int(text)


def _text(value: object) -> str:
    if not isinstance(value, str) or "\ufffd" in value:
        raise ValueError(f"must be text in UTF-8, got {_short(value)}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {_short(value)}")
    return value


def _seconds(value: object) -> float:
    """Convert a timestamp such as `2017-03-02 23:25:10.07453 UTC` to seconds since the epoch."""
    when = datetime.fromisoformat(_text(value).removesuffix(" UTC"))
    if not 1970 <= when.year < 2106:  # the range of the 32-bit times in .bin files
        raise ValueError(f"must be in the years 1970 to 2105, got {_short(value)}")
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def from_record(record: bytes) -> Drawing:
    """Parse a record of a .bin file. Raises ValueError with the reason if the record is malformed."""
    try:
        key_id, country, is_recognized, drawn_at, n_strokes = _HEADER.unpack_from(record)
        strokes = list(_binary_strokes(record, n_strokes))
    except struct.error as exc:
        raise ValueError(f"truncated: the file ends {len(record)} bytes into this record") from exc
    if not strokes:
        raise ValueError("a drawing must have at least one stroke, got none")
    _check_rendering_cost(strokes)
    return Drawing(key_id, "", country.decode("ascii", "replace"), bool(is_recognized), float(drawn_at), strokes)


def record_end(content: bytes, start: int) -> int:
    """Return where the .bin record at `start` ends; a value above `len(content)` means that it is truncated."""
    try:
        end = start + _HEADER.size
        for _ in range(_HEADER.unpack_from(content, start)[-1]):
            end += _POINT_COUNT.size + 2 * _POINT_COUNT.unpack_from(content, end)[0]
    except struct.error:
        return len(content) + 1
    return end


def long_record_end(content: StableFile, start: int) -> int:
    """Return what `record_end` returns, without reading more than a few bytes per stroke."""
    try:
        end = start + _HEADER.size
        for _ in range(_HEADER.unpack(content[start:end])[-1]):
            end += _POINT_COUNT.size + 2 * _POINT_COUNT.unpack(content[end : end + _POINT_COUNT.size])[0]
    except struct.error:
        return len(content) + 1
    return end


def _binary_strokes(record: bytes, n_strokes: int) -> Iterator[Stroke]:
    end = _HEADER.size
    for number in range(n_strokes):
        points = _POINT_COUNT.unpack_from(record, end)[0]
        if not points:
            raise ValueError(f"stroke {number} must have at least one point, got none")
        middle = end + _POINT_COUNT.size + points
        end = middle + points
        if end > len(record):
            raise struct.error
        yield [list(record[middle - points : middle]), list(record[middle:end])]


def _short(value: object) -> str:
    """Return at most 60 characters of a value, for an error message."""
    try:
        text = "nothing" if value is None else json.dumps(value)
    except RecursionError:  # `json.loads` accepts deeper nesting than `json.dumps`
        text = "a value that is nested too deep"
    return text if len(text) <= 60 else f"{text[:57]}..."
