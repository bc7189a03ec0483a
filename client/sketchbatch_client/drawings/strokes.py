"""Reads files of strokes: simplified and raw .ndjson, a line a drawing, and Google's .bin, a record a drawing.

Flow: file -> mapped -> where lines or records begin (8 bytes a drawing, or fewer) -> a `Drawing` when it is asked for.
Knows nothing of bitmaps.
"""

import mmap
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import FileRefused
from .drawing import POINTS, RECORD, Drawing, from_line, from_record

MALFORMED_KEPT = 1000
"""Malformed lines that a file remembers one by one; beyond it they are only counted."""

_LONGEST_BYTES = 1 << 22
"""The longest line or record taken, 200 times the longest of Google's; parsing takes 20 times as much memory."""

_CHUNK_BYTES = 1 << 24
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")


class Malformed(NamedTuple):
    """A line or record that is no drawing."""

    number: int
    """From 1, as editors count lines."""
    reason: str


class StrokeFile:
    """The drawings of one file, read when they are asked for; safe to share between threads, and to pickle.

    Row i is line (or record) i + 1, unless malformed ones were skipped; `number_of` tells then.
    """

    def __init__(self, path: Path, *, skip_malformed: bool = False, index_every: int = 1) -> None:
        self.path = path
        self.label = path.stem
        self.malformed: list[Malformed] = []
        """The first MALFORMED_KEPT that were skipped."""
        self.malformed_count = 0
        """All that were skipped."""
        self._kind = _KINDS[path.suffix]
        self._data = _mapped(path)
        self._every = index_every
        self._starts, self.line_count = self._kind.find(self._data, index_every)  # of every so many lines
        self._numbers: Sequence[int] = range(1, self.line_count + 1)
        if skip_malformed:
            self._numbers = array("Q", self._well_formed())
        self.give_back()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> Drawing:
        return self._drawing(self._numbers[row])

    def __iter__(self) -> Iterator[Drawing]:
        return map(self._drawing, self._numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None, "_kind": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kind = _KINDS[self.path.suffix]
        self._data = _mapped(self.path)

    def number_of(self, row: int) -> int:
        """The line or record, from 1, that a row is."""
        return self._numbers[row]

    def lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Lines or records start + 1 to stop as they stand in the file (a much too long one cut); for `parse`."""
        if start >= stop:
            return  # an empty .bin has no beginning
        at = self._starts[start // self._every]
        for index in range(start - start % self._every, stop):
            end = self._kind.end(self._data, at)
            if index >= start:
                yield self._data[at : min(end, at + _LONGEST_BYTES + 1)]
            at = end

    def parse(self, line: bytes) -> Drawing:
        """The drawing that a line or record is. Raises ValueError with the reason."""
        if len(line) > _LONGEST_BYTES:
            raise ValueError(f"expected a line or record of at most {_LONGEST_BYTES} bytes, got more")
        return self._kind.parse(line)

    def give_back(self) -> None:
        """Lets go of the memory behind what was read; it is read from the file again when it is wanted again."""
        if isinstance(self._data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def _drawing(self, number: int) -> Drawing:
        try:
            return self.parse(next(self.lines(number - 1, number)))
        except ValueError as exc:
            raise FileRefused(f"{self.path}:{number}: {exc}") from exc

    def _well_formed(self) -> Iterator[int]:
        """Reads everything once; counts what is malformed."""
        for number, line in enumerate(self.lines(0, self.line_count), 1):
            try:
                self.parse(line)
            except ValueError as exc:
                self.malformed_count += 1
                if len(self.malformed) < MALFORMED_KEPT:
                    self.malformed.append(Malformed(number, str(exc)))
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
    file = StrokeFile(path, skip_malformed=skip_malformed)
    if file.line_count and not skip_malformed:
        _ = file[0]  # a file of another kind is refused at once
    return file


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


def _index_lines(data: mmap.mmap | bytes, every: int) -> tuple[Sequence[int], int]:
    """Where every so many lines begin, and how many there are in all."""
    starts, ends = array("Q", [0]), 0
    for start in range(0, len(data), _CHUNK_BYTES):
        chunk = np.frombuffer(data[start : start + _CHUNK_BYTES], np.uint8)
        found = np.flatnonzero(chunk == ord("\n")) + (start + 1)
        starts.frombytes(found[every - 1 - ends % every :: every].astype(np.uint64).tobytes())
        ends += len(found)
    has_open_end = len(data) > 0 and data[-1] != ord("\n")  # the last line has no end
    return starts, ends + has_open_end


def _end_of_line(data: mmap.mmap | bytes, at: int) -> int:
    return data.find(b"\n", at) + 1 or len(data)


def _index_records(data: mmap.mmap | bytes, every: int) -> tuple[Sequence[int], int]:
    """Where every so many records begin, and how many there are in all."""
    starts, at, records = array("Q"), 0, 0
    while at < len(data):
        if records % every == 0:
            starts.append(at)
        at = _end_of_record(data, at)
        records += 1
    return starts, records


def _end_of_record(data: mmap.mmap | bytes, start: int) -> int:
    """A record that is cut short reaches to the end of the file."""
    try:
        at = start + RECORD.size
        for _ in range(RECORD.unpack_from(data, start)[-1]):
            at += POINTS.size + 2 * POINTS.unpack_from(data, at)[0]
    except struct.error:
        return len(data)
    return min(at, len(data))


class _Kind(NamedTuple):
    """How to find and read the drawings of one kind of file."""

    find: Callable[[mmap.mmap | bytes, int], tuple[Sequence[int], int]]
    end: Callable[[mmap.mmap | bytes, int], int]
    parse: Callable[[bytes], Drawing]


_KINDS = {
    ".ndjson": _Kind(_index_lines, _end_of_line, from_line),
    ".bin": _Kind(_index_records, _end_of_record, from_record),
}
