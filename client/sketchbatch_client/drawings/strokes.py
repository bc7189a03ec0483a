"""Read files of strokes: .ndjson (simplified or raw, one drawing per line) and Google's .bin (one per record).

Flow: file -> index of the starts of lines or records (8 bytes per drawing) -> a `Drawing` on access.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DrawingRefused, FileRefused
from ..file_kind import HEAD_BYTES, describe, got
from .drawing import Drawing, from_line, from_record, long_record_end, record_end
from .stable_file import StableFile

MALFORMED_KEPT = 1000  # most malformed lines per file that are listed with number and reason; the rest is only counted

# Most bytes of a line or record: 200 times as many as Google's longest. Parsing a line takes 20 times its size in
# memory.
_MAX_BYTES = 1 << 22
_CHUNK_BYTES = 1 << 24
_TAIL_BYTES = 1 << 12
_KEY_ID = b'"key_id"'
_BOM = b"\xef\xbb\xbf"
_SPACES = np.isin(np.arange(256), list(b" \t\n\r\v\f"))  # whether a byte is white space


class Malformed(NamedTuple):
    """A line or record that cannot be parsed as a drawing."""

    number: int
    """From 1, as editors count lines."""
    reason: str
    """Why the line cannot be parsed."""


class StrokeFile:
    """The drawings of one file, parsed on access. Threads may share the object, and it can be pickled.

    Row i is line (or record) i + 1, unless malformed lines were skipped; see `number_of`. Blank lines are no lines.
    """

    def __init__(self, path: Path, *, skip_malformed: bool = False, index_every: int = 1) -> None:
        self.path = path
        self.malformed: list[Malformed] = []  # the first MALFORMED_KEPT skipped lines or records
        self.malformed_count = 0  # number of all skipped lines or records
        self._format = _FORMATS[path.suffix.lower()]
        self._data = StableFile(path)
        if len(self._data) and self._format.is_other(self._data):
            raise FileRefused(f"{path}: expected {self._format.name}, got {got(self._data[:HEAD_BYTES], str(path))}")
        self._every = index_every
        self._starts, self.line_count, self._blanks = self._format.make_index(self._data, index_every)
        self._numbers: Sequence[int] = range(1, self.line_count + 1)
        if skip_malformed:
            self._numbers = array("Q", self._well_formed())
        self.release()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> Drawing:
        return self._drawing(self._numbers[row])

    def __iter__(self) -> Iterator[Drawing]:
        return map(self._drawing, self._numbers)

    def number_of(self, row: int) -> int:
        """Return the number, from 1, of the line or record that holds a row; blank lines have no number."""
        return self._numbers[row]

    def lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the unparsed bytes of the lines or records `start` to `stop` - 1, counted from 0.

        A line that is too long for `parse` is cut.
        """
        if start >= stop:
            return  # an empty .bin has no indexed record
        at = self._starts[start // self._every]
        for index in range(start - start % self._every, stop):
            while self._blanks and _is_blank(self._data, at):
                at = self._format.end(self._data, at)
            end = self._format.end(self._data, at)
            if index >= start:
                yield self._data[at : min(end, at + _MAX_BYTES + 1)]
            at = end

    def parse(self, line: bytes) -> Drawing:
        """Parse a line or record. Raises ValueError with the reason if it is malformed."""
        if len(line) > _MAX_BYTES:
            raise ValueError(f"a line or record must have at most {_MAX_BYTES} bytes, got more")
        return self._format.parse(line)

    @property
    def is_last_line_incomplete(self) -> bool:
        """Whether a program may be writing the last line or record: it is cut off.

        A line is so if it is malformed and has no line feed.
        """
        if not self.line_count:
            return False
        if not self._format.has_line_feeds:
            return self._end_of(self.line_count - 1) > len(self._data)
        if self._data[len(self._data) - 1 :] == b"\n":
            return False
        try:
            self.parse(next(self.lines(self.line_count - 1, self.line_count)))
        except ValueError:
            return True
        return False

    @property
    def may_have_key_ids(self) -> bool:
        """Whether a line may have a `key_id`; every record of a .bin has one. Reads a file without keys to its end."""
        if not self._format.has_line_feeds:
            return True
        overlap = len(_KEY_ID)
        starts = range(0, len(self._data), _CHUNK_BYTES)
        ends = (min(start + _CHUNK_BYTES + overlap, len(self._data)) for start in starts)
        return any(_KEY_ID in self._data.read(*place) for place in zip(starts, ends, strict=True))

    def release(self) -> None:
        """Release the memory of what was read last."""
        self._data.release()

    def _end_of(self, record: int) -> int:
        """Return where a record of a .bin, counted from 0, ends; a value above the size of the file = it is cut off."""
        end = self._starts[record // self._every]
        for _ in range(record % self._every + 1):
            end = self._format.end(self._data, end)
        return end

    def _drawing(self, number: int) -> Drawing:
        try:
            return self.parse(next(self.lines(number - 1, number)))
        except ValueError as exc:
            raise DrawingRefused(f"{self.path}:{self._place(number)}: {exc}") from exc

    def _place(self, number: int) -> int:
        """Return the number of a line as editors count, blank lines included."""
        return number + bisect_right(self._blanks, number - 1)

    def _well_formed(self) -> Iterator[int]:
        """Parse the whole file; yield the numbers of well-formed lines and record the malformed ones."""
        for number, line in enumerate(self.lines(0, self.line_count), 1):
            try:
                self.parse(line)
            except ValueError as exc:
                self.malformed_count += 1
                if len(self.malformed) < MALFORMED_KEPT:
                    self.malformed.append(Malformed(self._place(number), str(exc)))
            else:
                yield number


def open_strokes(path: Path | str, *, skip_malformed: bool = False) -> StrokeFile:
    """Open a NAME.ndjson (simplified or raw) or a NAME.bin; the suffix selects the format.

    With `skip_malformed` the whole file is parsed now; malformed lines are skipped, counted and listed. Without it,
    row i is line i + 1, and reading a malformed line raises FileRefused.

    Raises FileRefused if the file does not exist, has another suffix or the first bytes of another kind of file, or if
    its first line is malformed and not skipped.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise FileRefused(f"{path}: expected a suffix of {', '.join(STROKE_SUFFIXES)}, got {path.suffix or 'none'!r}")
    file = StrokeFile(path, skip_malformed=skip_malformed)
    if file.line_count and not skip_malformed:
        _ = file[0]  # refuses a file of another format at once
        file.release()
    return file


def _is_other_than_lines(data: StableFile) -> bool:
    head = data[:HEAD_BYTES]
    text = head.removeprefix(_BOM).lstrip()
    is_json = text.startswith(b"{") and not text.startswith(b"{\0")  # {\0 is UTF-16
    return not is_json and describe(head) is not None


def _is_other_than_records(data: StableFile) -> bool:
    """Return whether a file has the first bytes of another kind, and these are no record: a key can be any 8 bytes."""
    if describe(data[:HEAD_BYTES]) is None:
        return False
    try:
        return not from_record(data[: min(_record_end(data, 0), _MAX_BYTES)]).country.isupper()
    except ValueError:
        return True


class _Index(NamedTuple):
    starts: Sequence[int]  # where lines or records 0, every, 2 * every, ... begin, in bytes
    lines: int  # number of all lines or records
    blanks: Sequence[int] = ()  # for each blank line between others, the number of lines before it


def _index_lines(data: StableFile, every: int) -> _Index:
    starts, blanks, count = array("Q"), array("Q"), 0
    size = _end_of_text(data)
    begins = np.zeros(1, np.int64)  # where lines begin, in the current chunk
    for start in range(0, size, _CHUNK_BYTES):
        chunk = np.frombuffer(data.read(start, min(start + _CHUNK_BYTES, size)), np.uint8)
        ends = np.flatnonzero(chunk == ord("\n"))
        begins = np.concatenate([begins[begins < len(chunk)], ends + 1])
        inside = begins[begins < len(chunk)]
        is_blank = _SPACES[chunk[inside]]
        for index in np.flatnonzero(is_blank):
            is_blank[index] = _is_blank(data, start + int(inside[index]))
        found = inside[~is_blank] + start
        starts.frombytes(found[-count % every :: every].astype(np.uint64).tobytes())
        blanks.frombytes((count + np.cumsum(~is_blank)[is_blank]).astype(np.uint64).tobytes())
        count += len(found)
        begins = begins[len(inside) :] - len(chunk)
    return _Index(starts, count, blanks)


def _is_blank(data: StableFile, start: int) -> bool:
    """Return whether the line at `start` has only white space."""
    return data[start : start + 1].isspace() and data[start : _line_end(data, start)].isspace()


def _end_of_text(data: StableFile) -> int:
    """Return where the last line ends, without the blank lines after it: editors and scripts add them."""
    end = len(data)
    while end:
        tail = data[max(0, end - _TAIL_BYTES) : end]
        if text := tail.rstrip():
            return end - len(tail) + len(text)
        end -= len(tail)
    return 0


def _line_end(data: StableFile, start: int) -> int:
    return data.find(b"\n", start) + 1 or len(data)


def _record_end(data: StableFile, start: int) -> int:
    """Return where the record at `start` ends; a value above `len(data)` means that it is truncated."""
    least = 1
    while True:
        content, at = data.window(start, least)
        end = record_end(content, at)
        if end <= len(content) or start + len(content) - at >= len(data):
            return start + end - at
        least = 2 * (len(content) - at)
        if least > _MAX_BYTES:  # too long for `parse`; do not read all of it
            return long_record_end(data, start)


def _index_records(data: StableFile, every: int) -> _Index:
    starts, at, records = array("Q"), 0, 0
    while at < len(data):
        if records % every == 0:
            starts.append(at)
        at = min(_record_end(data, at), len(data))
        records += 1
    return _Index(starts, records)


class _Format(NamedTuple):
    make_index: Callable[[StableFile, int], _Index]
    end: Callable[[StableFile, int], int]
    parse: Callable[[bytes], Drawing]
    is_other: Callable[[StableFile], bool]  # whether the beginning of a file is that of another kind of file
    name: str
    has_line_feeds: bool = False  # whether each line or record ends with a line feed


_LINES = _Format(_index_lines, _line_end, from_line, _is_other_than_lines, "a drawing in JSON per line", True)
_FORMATS = {
    ".ndjson": _LINES,
    ".jsonl": _LINES,
    ".bin": _Format(_index_records, _record_end, from_record, _is_other_than_records, "records of drawings"),
}
STROKE_SUFFIXES = tuple(_FORMATS)
