"""Decide whether a file or folder that no reader reads may have drawings, and count such files.

Flow: name -> hidden or made by a job -> first bytes -> ending.
"""

import bz2
import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import reason_of
from ..file_kind import HEAD_BYTES, describe

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DRAWING_SUFFIXES = (".npy", ".npz", ".ndjson", ".jsonl", ".bin", ".parquet")
PACKED_SUFFIXES = (".bz2", ".gz", ".zst")
TABLE_SUFFIXES = (".csv", ".tsv")
HOW_TO_CONVERT = "docs/bulk-scoring.md shows how to convert it"
_UNREAD_PICTURES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".svg")

SOURCE_NOTE = "SOURCE.txt"  # file with one line about the origin of the drawings in a folder; copied together with them

# A table of pixels begins with at least so many short numbers or names of columns, such as "1x1".
_MANY = 50
_MAX_COLUMN_NAME = 8
_LISTED = 1000  # most entries that are listed, with drawings and without; the rest is only counted
_SEARCHED = 10_000  # most files of a folder that are searched for drawings
OUTPUT_MARKS = (".manifest.json", ".parts")  # after the name of an output
_MAX_OUTPUT_NAME = 240  # a longer name has no room for these endings: file systems allow 255 bytes
_SYSTEM_FILES = ("desktop.ini", "lost+found", "thumbs.db")
_JOB_SUFFIXES = (".manifest.json", ".parts", ".rejects.jsonl")  # of files that a job writes next to its output


class PassedOver(NamedTuple):
    """A file, a folder, or an array of an archive that is not read."""

    path: str
    reason: str
    may_have_drawings: bool


class PassedOverList:
    """The files, folders and arrays that are not read: a list of the first of them, and the number of all."""

    def __init__(self, entries: Iterable[PassedOver] = ()) -> None:
        self.count = 0
        self.count_with_drawings = 0  # of entries that may have drawings
        self.empty_inputs = 0  # inputs that were opened and have no drawing; they are among the entries
        self.inputs: set[str] = set()  # paths that are not added: they are read, because they were named
        self._with: list[PassedOver] = []
        self._without: list[PassedOver] = []
        self.extend(entries)

    @property
    def entries(self) -> list[PassedOver]:
        """The first entries that may have drawings, then the first others: at most 1,000 of each."""
        return self._with + self._without

    @property
    def count_others(self) -> int:
        """Number of entries that have no drawings, without those named SOURCE.txt."""
        notes = sum(Path(entry.path).name == SOURCE_NOTE for entry in self._without)
        return self.count - self.count_with_drawings - notes

    def extend(self, entries: Iterable[PassedOver]) -> None:
        """Count entries, and list them if few are listed so far."""
        for entry in entries:
            if entry.path in self.inputs:
                continue
            self.count += 1
            self.count_with_drawings += entry.may_have_drawings
            listed = self._with if entry.may_have_drawings else self._without
            if len(listed) < _LISTED:
                listed.append(entry)

    def add(self, other: "PassedOverList") -> None:
        """Count the entries of another list, too."""
        read = [entry for entry in other.entries if entry.path in self.inputs]
        count = self.count + other.count - len(read)
        with_drawings = sum(entry.may_have_drawings for entry in read)
        with_drawings = self.count_with_drawings + other.count_with_drawings - with_drawings
        self.extend(other.entries)
        self.count, self.count_with_drawings = count, with_drawings

    def with_reasons(self, change: Callable[[PassedOver], PassedOver]) -> "PassedOverList":
        """Return the same list with changed entries; `change` may only change their reasons."""
        changed = PassedOverList(map(change, self.entries))
        changed.count, changed.count_with_drawings = self.count, self.count_with_drawings
        return changed

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the listed entries, for a JSON object."""
        entries = [entry._asdict() for entry in self.entries]
        return {"count": self.count, "with_drawings": self.count_with_drawings, "entries": entries}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "PassedOverList":
        """Read what `to_json` returned; {} = no entry. Raises ValueError or KeyError for another object."""
        files = cls()
        for entry in found.get("entries", []):
            path, reason, may_have_drawings = entry["path"], entry["reason"], entry["may_have_drawings"]
            if not (isinstance(path, str) and isinstance(reason, str) and isinstance(may_have_drawings, bool)):
                raise ValueError(f"expected a file that was not read, got {entry!r:.60}")
            files.extend([PassedOver(path, reason, may_have_drawings)])
        counts = found.get("count", 0), found.get("with_drawings", 0)
        are_numbers = all(type(count) is int for count in counts)
        if not are_numbers or not (files.count_with_drawings <= counts[1] <= counts[0] >= files.count):
            raise ValueError(f"expected the numbers of files that were not read, got {counts!r:.60}")
        files.count, files.count_with_drawings = counts
        return files

    def describe(self, shown: int = 5) -> str:
        """Return one line for people: the number of entries that may have drawings, and the first of them."""
        more = self.count_with_drawings - shown
        listed = ", ".join(f"{entry.path} ({entry.reason})" for entry in self._with[:shown])
        files = (
            "1 file or folder that may"
            if self.count_with_drawings == 1
            else f"{self.count_with_drawings:,} files or folders that may"
        )
        return f"{files} have drawings: {listed}" + (f", and {more:,} more" * (more > 0))


def is_hidden(name: str) -> bool:
    """Return whether programs hide files of this name: `.` or `_` in front, as of Spark, or a file of Windows."""
    return name[:1] in (".", "_") or name.lower() in _SYSTEM_FILES


def is_output(name: str, folder: Path) -> bool:
    """Return whether a file of a folder is the output of a job, which has a manifest or parts next to it."""
    return len(name) < _MAX_OUTPUT_NAME and any((folder / f"{name}{end}").exists() for end in OUTPUT_MARKS)


def is_packed(name: str) -> bool:
    """Return whether a name has the ending of a packed file."""
    return name.lower().endswith(PACKED_SUFFIXES)


def open_packed(path: Path) -> Any:
    """Open the contents of a packed file, whose ending is one of PACKED_SUFFIXES, as a binary file."""
    suffix = path.suffix.lower()
    if suffix != ".zst":
        return gzip.open(path) if suffix == ".gz" else bz2.open(path)
    import pyarrow as pa  # clients that send bitmaps alone do not need it

    return pa.CompressedInputStream(pa.PythonFile(path.open("rb")), "zstd")


def _unpacked_head(path: Path) -> bytes:
    """Return the first bytes of the contents of a packed file; b"" if it cannot be unpacked."""
    try:
        with open_packed(path) as packed:
            head: bytes = packed.read(HEAD_BYTES)
            return head
    except (EOFError, OSError, ValueError, zlib.error):  # those of Arrow are OSError or ValueError
        return b""


def is_packed_copy(path: Path) -> bool:
    """Return whether the same file lies unpacked next to a packed one, as after `gzip -k`."""
    return is_packed(path.name) and path.with_name(path.stem).is_file()


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield a folder and the folders below it, each with the sorted names of its folders and files.

    Each folder is entered once: links to folders that are not below `folder` are followed in the end. Hidden folders
    and those of jobs are named, but not entered.

    Raises OSError if a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    entered: set[Path] = set()
    links = [folder]
    for start in links:  # grows
        if start.resolve() in entered:
            continue
        for place, folders, names in os.walk(start, onerror=fail):
            entered.add(Path(place).resolve())
            yield Path(place), sorted(folders), sorted(names)
            inner = [Path(place, name) for name in sorted(folders) if not is_left_out(name)]
            links += filter(Path.is_symlink, inner)
            folders[:] = [path.name for path in inner if not path.is_symlink()]


def is_left_out(name: str) -> bool:
    """Return whether a folder of this name is not searched: it is hidden, or a job stores its parts in it."""
    return is_hidden(name) or name.endswith(".parts")


def drawing_suffix(name: str) -> str:
    """Return the ending of a name in lower case, without that of a packing: ".ndjson" of "cat.NDJSON.gz"."""
    stem, suffix = os.path.splitext(name.lower())  # noqa: PTH122 - of a name without its folder
    return os.path.splitext(stem)[1] if suffix in PACKED_SUFFIXES else suffix  # noqa: PTH122


def has_drawing_name(name: str) -> bool:
    """Return whether a file of this name has drawings or is a picture; a .jsonl is more often metadata."""
    suffix = drawing_suffix(name)
    kinds = (*DRAWING_SUFFIXES, *PICTURE_SUFFIXES, *_UNREAD_PICTURES)
    return not is_hidden(name) and suffix in kinds and suffix != ".jsonl"


def pass_over(path: Path) -> PassedOver:
    """Return why a file or folder is not read that has the ending of no reader, and whether it may have drawings."""
    name = path.name
    if is_hidden(name):
        return PassedOver(str(path), "hidden", False)
    if target := link_within(path):  # which is read, or passed over itself
        return PassedOver(str(path), f"a link to {target.name}", False)
    if path.is_symlink() and path.is_dir() and Path(os.path.realpath(path.parent)).is_relative_to(path.resolve()):
        return PassedOver(str(path), "a link to a folder above it", False)
    if is_packed_copy(path):
        return PassedOver(str(path), f"the packed copy of {path.stem}", False)
    if name == SOURCE_NOTE:
        return PassedOver(str(path), "tells where the drawings come from", False)
    try:
        if name.endswith(_JOB_SUFFIXES) or is_output(name, path.parent):
            return PassedOver(str(path), "written by a job", False)
        return _folder(path) if path.is_dir() else _file(path)
    except OSError as exc:
        return PassedOver(str(path), f"cannot be read: {reason_of(exc)}", path.is_dir() or has_drawing_name(name))


def link_within(path: Path) -> Path | None:
    """Return the visible file or folder to which a link leads if both are in one folder; None otherwise.

    If the link leads there through other links, the result is the last one of the folder on the way.
    """
    if not path.is_symlink():
        return None
    folder, found, hop = os.path.realpath(path.parent), None, path
    seen: set[Path] = set()
    while hop.is_symlink() and hop not in seen:
        seen.add(hop)
        hop = hop.parent / hop.readlink()
        if os.path.realpath(hop.parent) == folder and hop.name != path.name and not is_hidden(hop.name):
            found = path.with_name(hop.name)
    return found if found and found.exists() else None


def _folder(path: Path) -> PassedOver:
    searched = 0
    for folder, _, names in walk(path):
        for file in (folder / name for name in names):
            if has_drawing_name(file.name) or pass_over(file).may_have_drawings:
                inner = file.relative_to(path.parent)
                return PassedOver(str(path), f"a folder with drawings, such as {inner}, is not searched", True)
            searched += 1
            if searched == _SEARCHED:
                return PassedOver(str(path), f"a folder whose first {_SEARCHED:,} files have no drawings", False)
    return PassedOver(str(path), "a folder without drawings", False)


def _may_have_drawings(table: bytes) -> bool:
    """Return whether the beginning of a table names a column of drawings or pixels, or has as many short columns."""
    first_line, _, rest = table.partition(b"\n")
    if b"drawing" in first_line.lower() or b"pixel" in first_line.lower():
        return True
    columns = first_line.replace(b"\t", b",").replace(b";", b",").split(b",")[:-1]  # the last one may be cut
    return not rest and len(columns) > _MANY and all(len(column) <= _MAX_COLUMN_NAME for column in columns)


def _file(path: Path) -> PassedOver:
    if not path.is_file():
        return PassedOver(str(path), "a pipe, a device or a broken link", False)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if is_packed(path.name) and drawing_suffix(path.name) == ".jsonl":
        head = _unpacked_head(path) or head
    kind = describe(head, str(path))
    if kind and kind.suffix == ".ndjson":
        is_drawing = b'"drawing"' in head or b'"strokes"' in head  # files of metadata have the same ending
        return PassedOver(str(path), str(kind) if is_drawing else "JSON without drawings", is_drawing)
    if kind:
        return PassedOver(str(path), str(kind), kind.may_have_drawings or has_drawing_name(path.name))
    if path.suffix.lower() in TABLE_SUFFIXES and _may_have_drawings(head):
        return PassedOver(str(path), f"a table; {HOW_TO_CONVERT}", True)
    return PassedOver(str(path), "another kind of file", has_drawing_name(path.name))
