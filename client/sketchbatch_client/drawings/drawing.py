"""One drawing as strokes, read from a line of .ndjson (simplified or raw) or from a record of Google's .bin.

The forms: https://github.com/googlecreativelab/quickdraw-dataset#the-raw-moderated-dataset
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

Stroke = list[list[float | int]]
"""`[xs, ys]`, or raw `[xs, ys, ts]` with t in ms; at least one point, all lists of one length, y downwards."""

RECORD = struct.Struct("<Q2sbIH")  # key_id, country, recognised, seconds since the epoch, number of strokes
POINTS = struct.Struct("<H")
_FARTHEST = 1e6  # units or pixels: far beyond any screen, and still exact in cairo's 24.8 fixed point once scaled
_LONGEST_MS = 1e15  # milliseconds: times since the epoch pass
# Drawing takes time with the square of both: so many, half a second. Of 8,828 of Google's none has a fiftieth, a third.
_MOST_POINTS = 40_000
_MOST_CROSSINGS = 500  # lengths of the drawing that its lines may have in all


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing; what a file does not say is "", 0, or recognised."""

    key_id: int
    """0 to 2**64 - 1, Google's name for it."""
    word: str
    """What was to be drawn; "" in binary files."""
    country: str
    """Two letters."""
    is_recognized: bool
    """Whether the game recognised it."""
    drawn_at: float
    """Seconds since the epoch, UTC."""
    strokes: list[Stroke]
    """At least one."""


def from_line(line: bytes) -> Drawing:
    """The drawing of a line of .ndjson. Raises ValueError with the reason."""
    try:
        fields = json.loads(line.rstrip())
    except json.JSONDecodeError as exc:
        raise ValueError(f"not JSON: {exc.msg} at character {exc.pos + 1}") from exc
    except RecursionError as exc:
        raise ValueError("not JSON: nested too deep") from exc
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {_short(fields)}")
    strokes = fields.get("drawing")
    if not isinstance(strokes, list) or not strokes:
        raise ValueError(f"drawing must be a list of strokes, got {_short(strokes)}")
    for number, stroke in enumerate(strokes):
        _check_stroke(stroke, number)
    _check_cost(strokes)
    return Drawing(
        key_id=_key_id(fields.get("key_id", 0)),
        word=_field(fields, "word", str, ""),
        country=_field(fields, "countrycode", str, ""),
        is_recognized=_field(fields, "recognized", bool, True),
        drawn_at=_seconds(_field(fields, "timestamp", str, "1970-01-01")),
        strokes=strokes,
    )


def _check_stroke(stroke: object, number: int) -> None:
    if not isinstance(stroke, list) or not 2 <= len(stroke) <= 3 or not all(isinstance(one, list) for one in stroke):
        raise ValueError(f"stroke {number} must be [xs, ys] or [xs, ys, ts], got {_short(stroke)}")
    lengths = [len(one) for one in stroke]
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"stroke {number} must have as many x as y and at least one, got {_short(lengths)}")
    for values in stroke:
        if not {int, float}.issuperset(map(type, values)):
            raise ValueError(f"stroke {number} must have numbers only, got {_short(values)}")
    for values in stroke[:2]:
        if not (min(values) >= -_FARTHEST and max(values) <= _FARTHEST and not math.isnan(sum(values))):
            raise ValueError(f"stroke {number} must keep within {_FARTHEST:g} units, got {_short(values)}")
    if len(stroke) > 2 and not all(abs(t) <= _LONGEST_MS for t in stroke[2]):
        raise ValueError(f"stroke {number} must have times within {_LONGEST_MS:g} ms, got {_short(stroke[2])}")


def _check_cost(strokes: list[Stroke]) -> None:
    """Refuses what is well-formed, and would take minutes to draw."""
    points = sum(len(stroke[0]) for stroke in strokes)
    if points > _MOST_POINTS:
        raise ValueError(f"a drawing must have at most {_MOST_POINTS:,} points, got {points:,}")
    if points * math.sqrt(2) <= _MOST_CROSSINGS:
        return
    paths = [np.array(stroke[:2], np.float64) for stroke in strokes]  # (2, points)
    side = np.ptp(np.concatenate(paths, axis=1), axis=1).max() or 1.0
    crossings = sum(np.hypot(*np.diff(path)).sum() for path in paths) / side
    if crossings > _MOST_CROSSINGS:
        raise ValueError(f"lines must be at most {_MOST_CROSSINGS} times as long as the drawing, got {crossings:.0f}")


def _key_id(value: object) -> int:
    number = int(value) if isinstance(value, str | int) and str(value).isdecimal() else -1
    if not 0 <= number < 1 << 64:
        raise ValueError(f"key_id must be a number below 2**64, got {_short(value)}")
    return number


def _field(fields: dict[str, Any], name: str, kind: type[Any], missing: Any) -> Any:
    value = fields.get(name, missing)
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {_short(value)}")
    return value


def _seconds(timestamp: str) -> float:
    """Of `2017-03-02 23:25:10.07453 UTC`."""
    try:
        when = datetime.fromisoformat(timestamp.removesuffix(" UTC"))
    except ValueError as exc:
        raise ValueError(f"timestamp must be a date and time, got {_short(timestamp)}") from exc
    if not 1970 <= when.year < 2106:  # what a .bin can say
        raise ValueError(f"timestamp must lie in 1970 to 2105, got {_short(timestamp)}")
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def from_record(record: bytes) -> Drawing:
    """The drawing of a record of a .bin. Raises ValueError with the reason."""
    try:
        key_id, country, is_recognized, drawn_at, n_strokes = RECORD.unpack_from(record)
        strokes = list(_binary_strokes(record, n_strokes))
    except struct.error as exc:
        raise ValueError(f"truncated: the file ends {len(record)} bytes into this record") from exc
    if not strokes:
        raise ValueError("a drawing must have at least one stroke, got none")
    _check_cost(strokes)
    return Drawing(key_id, "", country.decode("ascii", "replace"), bool(is_recognized), float(drawn_at), strokes)


def _binary_strokes(record: bytes, n_strokes: int) -> Iterator[Stroke]:
    at = RECORD.size
    for number in range(n_strokes):
        points = POINTS.unpack_from(record, at)[0]
        if not points:
            raise ValueError(f"stroke {number} must have at least one point, got none")
        middle = at + POINTS.size + points
        at = middle + points
        if at > len(record):
            raise struct.error
        yield [list(record[middle - points : middle]), list(record[middle:at])]


def _short(value: object) -> str:
    """At most 60 characters of it, for a message."""
    try:
        text = "nothing" if value is None else json.dumps(value)
    except RecursionError:  # it could just be read
        text = "what is nested too deep"
    return text if len(text) <= 60 else f"{text[:57]}..."
