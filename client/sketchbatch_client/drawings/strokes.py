"""Reads drawings as strokes: simplified and raw .ndjson, a line each, and Google's .bin, a record each.

Flow: file -> mapped -> where each line or record begins (8 bytes a drawing) -> a `Drawing` when it is asked for.
Knows nothing of bitmaps. The forms: https://github.com/googlecreativelab/quickdraw-dataset#the-raw-moderated-dataset
"""

import json
import math
import mmap
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import FileRefused

Stroke = list[list[float | int]]
"""`[xs, ys]`, or raw `[xs, ys, ts]` with t in ms; at least one point, all lists of one length, y downwards."""

MALFORMED_KEPT = 1000
"""Malformed lines that a file remembers one by one; beyond it they are only counted."""

_CHUNK_BYTES = 1 << 24
_FARTHEST = 1e6  # units or pixels: far beyond any screen, and still exact in cairo's 24.8 fixed point once scaled
_LONGEST_MS = 1e15  # milliseconds: times since the epoch pass
_RECORD = struct.Struct("<Q2sbIH")  # key_id, country, recognised, seconds since the epoch, number of strokes
_POINTS = struct.Struct("<H")
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")


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


class Malformed(NamedTuple):
    """A line or record that is no drawing."""

    number: int
    """From 1, as editors count lines."""
    reason: str


class StrokeFile:
    """The drawings of one file, read when they are asked for; safe to share between threads.

    Row i is line (or record) i + 1, unless malformed ones were skipped; `number_of` tells then.
    """

    def __init__(self, path: Path, *, skip_malformed: bool = False) -> None:
        self.path = path
        self.label = path.stem
        self.malformed: list[Malformed] = []
        """The first MALFORMED_KEPT that were skipped."""
        self.malformed_count = 0
        """All that were skipped."""
        find, self._parse = _KINDS[path.suffix]
        self._data = _mapped(path)
        self._edges = find(self._data)  # line i is edges[i] to edges[i + 1]
        self._numbers: Sequence[int] = range(1, len(self._edges))
        if skip_malformed:
            self._numbers = array("Q", self._well_formed())
        elif self._numbers:
            self._drawing(1)  # a file of another kind is refused at once
        self.give_back()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> Drawing:
        return self._drawing(self._numbers[row])

    def __iter__(self) -> Iterator[Drawing]:
        return map(self._drawing, self._numbers)

    def number_of(self, row: int) -> int:
        """The line or record, from 1, that a row is."""
        return self._numbers[row]

    def give_back(self) -> None:
        """Lets go of the memory behind what was read; it is read from the file again when it is wanted again."""
        if isinstance(self._data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def _drawing(self, number: int) -> Drawing:
        try:
            return self._parse(self._data[self._edges[number - 1] : self._edges[number]])
        except (ValueError, RecursionError) as exc:
            raise FileRefused(f"{self.path}:{number}: {_reason(exc)}") from exc

    def _well_formed(self) -> Iterator[int]:
        """Reads everything once; counts what is malformed."""
        for number in self._numbers:
            try:
                self._parse(self._data[self._edges[number - 1] : self._edges[number]])
            except (ValueError, RecursionError) as exc:
                self.malformed_count += 1
                if len(self.malformed) < MALFORMED_KEPT:
                    self.malformed.append(Malformed(number, _reason(exc)))
            else:
                yield number


def open_strokes(path: Path, *, skip_malformed: bool = False) -> StrokeFile:
    """Maps a simplified or raw NAME.ndjson, or a NAME.bin.

    Args:
        path: Its ending says which; raw and simplified lines are told apart by a stroke's third list.
        skip_malformed: Read the whole file now, and leave out, count and list what is no drawing. Otherwise a
            malformed line is refused when it is reached, and row i stays line i of the file.

    Raises:
        FileRefused: There is no such file, its ending is another, or its first line is malformed (unless skipped);
            later, from reading a malformed line: `path:line: reason`.
    """
    if path.suffix not in _KINDS:
        raise FileRefused(f"{path}: expected an ending of {', '.join(_KINDS)}, got {path.suffix or 'none'!r}")
    return StrokeFile(path, skip_malformed=skip_malformed)


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins so is a page (such as a login) saved under the name of another."""
    return head.lstrip().lower().startswith(_WEB_PAGE)


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if is_web_page(head):
                raise FileRefused(f"{path}: expected drawings, got a web page saved under that name; fetch it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if head else b""
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read: {exc.strerror}") from exc


def _lines(data: mmap.mmap | bytes) -> Sequence[int]:
    """Where each line begins, and where the last ends."""
    edges = array("Q", [0])
    for start in range(0, len(data), _CHUNK_BYTES):
        chunk = np.frombuffer(data[start : start + _CHUNK_BYTES], np.uint8)
        edges.frombytes((np.flatnonzero(chunk == ord("\n")) + (start + 1)).astype(np.uint64).tobytes())
    if edges[-1] != len(data):  # the last line has no end
        edges.append(len(data))
    return edges


def _records(data: mmap.mmap | bytes) -> Sequence[int]:
    """Where each record begins, and where the last ends; one that is cut short reaches to the end of the file."""
    edges = array("Q", [0])
    while edges[-1] < len(data):
        try:
            at = edges[-1] + _RECORD.size
            for _ in range(_RECORD.unpack_from(data, edges[-1])[-1]):
                at += _POINTS.size + 2 * _POINTS.unpack_from(data, at)[0]
        except struct.error:
            at = len(data)
        edges.append(min(at, len(data)))
    return edges


def _from_line(line: bytes) -> Drawing:
    """Raises ValueError, of which json's errors are some, with the reason."""
    fields = json.loads(line.rstrip())
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {_short(fields)}")
    strokes = fields.get("drawing")
    if not isinstance(strokes, list) or not strokes:
        raise ValueError(f"drawing must be a list of strokes, got {_short(strokes)}")
    for number, stroke in enumerate(strokes):
        _check_stroke(stroke, number)
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


def _from_record(record: bytes) -> Drawing:
    """Raises ValueError with the reason."""
    try:
        key_id, country, is_recognized, drawn_at, n_strokes = _RECORD.unpack_from(record)
        strokes = list(_binary_strokes(record, n_strokes))
    except struct.error as exc:
        raise ValueError(f"truncated: the file ends {len(record)} bytes into this record") from exc
    if not strokes:
        raise ValueError("a drawing must have at least one stroke, got none")
    return Drawing(key_id, "", country.decode("ascii", "replace"), bool(is_recognized), float(drawn_at), strokes)


def _binary_strokes(record: bytes, n_strokes: int) -> Iterator[Stroke]:
    at = _RECORD.size
    for number in range(n_strokes):
        points = _POINTS.unpack_from(record, at)[0]
        if not points:
            raise ValueError(f"stroke {number} must have at least one point, got none")
        middle = at + _POINTS.size + points
        at = middle + points
        if at > len(record):
            raise struct.error
        yield [list(record[middle - points : middle]), list(record[middle:at])]


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    return "not JSON: nested too deep" if isinstance(error, RecursionError) else str(error)


def _short(value: object) -> str:
    """At most 60 characters of it, for a message."""
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_KINDS: dict[str, tuple[Callable[[mmap.mmap | bytes], Sequence[int]], Callable[[bytes], Drawing]]] = {
    ".ndjson": (_lines, _from_line),
    ".bin": (_records, _from_record),
}
