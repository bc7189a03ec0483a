"""Find the inputs of a job: files, globs, folders and standard input; open each as a source, in the given order."""

import glob
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..atomic import room_for
from ..drawings.npy import open_npz, read_bitmaps
from ..drawings.readers import PICTURE_SUFFIXES, check_is_file, labelled_files, unknown_ending
from ..drawings.strokes import StrokeFile
from ..errors import FileRefused
from ..file_kind import HEAD_BYTES, describe, got
from ..file_stamp import FileStamp, file_stamp
from .parquet_source import ParquetSource
from .sources import BitmapSource, PictureSource, Source, StrokeSource, open_pictures

STDIN = "-"

# Lines per entry of a stroke file's index. An entry takes 8 bytes. To find a line, at most 1,023 others are skipped.
_INDEX_EVERY = 1024
_FIRST_LINES = 16  # a stroke file is refused if none of its first lines, up to this number, is a drawing
_CHUNK_BYTES = 1 << 20


def find_sources(inputs: Sequence[str], spool: Path, on_open: Callable[[str], object]) -> list[Source]:
    """Open every input once, in the given order; `on_open` receives the name of each input before it is opened.

    Inputs are files, folders, globs (`*`, `?`, `[...]`, and `**` for nested folders), or "-" = standard input, which is
    stored in the folder `spool`. A folder stands for the files of drawings directly in it. If it has none, the folder
    stands for the labelled files that `labelled_files` finds in it.

    Raises DiskFull if the disk has no space for standard input, and FileRefused if an input does not have the
    expected format, or if no input has a row.
    """
    sources: list[Source] = []
    for path in dict.fromkeys(path for text in inputs for path in _paths(text)):
        on_open(str(path))
        sources += _open_stdin(spool) if str(path) == STDIN else _open(path, str(path))
    if not any(map(len, sources)):
        raise FileRefused(f"{', '.join(inputs)}: expected drawings, got no row")
    return sources


def _paths(text: str) -> Iterator[Path]:
    """Yield the paths that one argument names; each is a file, or a folder with pictures."""
    path = Path(text)
    if text == STDIN or not glob.has_magic(text) or path.exists():
        matches = [path]
    else:
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - also finds absolute paths
        if not matches:
            raise FileRefused(f"{text}: no file matches this pattern")
    for match in matches:
        yield from _folder_paths(match) if match.is_dir() else [match]


def _folder_paths(folder: Path) -> Sequence[Path]:
    """Return the files of drawings directly in a folder; if there are none, return its labelled files."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _OPENERS and path.name[0] != "."]
    return files or list(labelled_files(folder).values())


def _open(path: Path, name: str) -> list[Source]:
    if path.is_dir():
        return [_open_pictures(path)]
    if not path.exists():
        raise FileRefused(f"{path}: cannot be read: no such file")
    check_is_file(path)
    stamp = _stamp(path)  # taken before opening, so that a later run detects a change during the opening
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return [open_pictures(stamp, path.parent, [path.name], [file_stamp(path)])]
    suffix = path.suffix.lower() or _suffix_of(path)
    if suffix not in _OPENERS:
        raise unknown_ending(path, list(_OPENERS))
    return _OPENERS[suffix](path, name, stamp)


def _suffix_of(path: Path) -> str:
    """Return the ending that belongs to the contents of a file without one, such as /dev/stdin; "" if unknown."""
    with path.open("rb") as file:
        return _suffix(file.read(HEAD_BYTES))


def _open_pictures(folder: Path) -> PictureSource:
    entries = (entry.name for entry in os.scandir(folder))
    names = sorted(name for name in entries if name[0] != "." and name.lower().endswith(PICTURE_SUFFIXES))
    stamps = [file_stamp(folder / name) for name in names]
    digest = hashlib.sha256()
    for name, stamp in zip(names, stamps, strict=True):
        digest.update(f"{name} {_text(stamp)}\n".encode(errors="replace"))
    return open_pictures(digest.hexdigest(), folder, names, stamps)


def _open_strokes(path: Path, name: str, stamp: str) -> list[Source]:
    file = StrokeFile(path, index_every=_INDEX_EVERY)
    first, reasons = min(file.line_count, _FIRST_LINES), []
    for line in file.lines(0, first):
        try:
            file.parse(line)
        except ValueError as exc:
            reasons.append(str(exc))
    if reasons and len(reasons) == first:
        raise FileRefused(f"{name}:1: {reasons[0]} (none of the first {first} lines is a drawing)")
    return [StrokeSource(name, stamp, file)]


def _open_npz(path: Path, name: str, stamp: str) -> list[Source]:
    return [BitmapSource(f"{name}:{array}", stamp, bitmaps) for array, bitmaps in open_npz(path).items()]


_OPENERS: dict[str, Callable[[Path, str, str], list[Source]]] = {
    ".npy": lambda path, name, stamp: [BitmapSource(name, stamp, read_bitmaps(path))],
    ".npz": _open_npz,
    ".ndjson": _open_strokes,
    ".bin": _open_strokes,
    ".parquet": lambda path, name, stamp: [ParquetSource(name, stamp, path)],
}


def _open_stdin(spool: Path) -> list[Source]:
    """Copy standard input to a file and open that file; the first bytes select the format."""
    head = sys.stdin.buffer.read(HEAD_BYTES)
    suffix = _suffix(head)
    if not suffix:
        raise FileRefused(f"standard input: expected .npy, .npz, .ndjson or .parquet, got {got(head)}")
    path = spool / f"stdin{suffix}"
    # The digest of the contents identifies this input: the copy has a new modification time in each run.
    contents = hashlib.sha256()
    with room_for(path), path.open("wb") as file:
        chunk = head
        while chunk:
            file.write(chunk)
            contents.update(chunk)
            chunk = sys.stdin.buffer.read(_CHUNK_BYTES)
    try:
        return _OPENERS[suffix](path, STDIN, contents.hexdigest())
    except FileRefused as exc:  # begins with the name of the copy, or with STDIN
        reason = str(exc).removeprefix(str(path)).removeprefix(STDIN)
        raise FileRefused(f"standard input{reason}") from exc


def _suffix(head: bytes) -> str:
    """Return the ending of the format that begins with `head`; "" if its first bytes do not tell the format."""
    kind = describe(head)
    return kind.suffix if kind and kind.suffix in _OPENERS else ""


def _stamp(path: Path) -> str:
    """Return size and modification time of a file as text, without the inode: a copy that keeps both is equal."""
    return _text(file_stamp(path))


def _text(stamp: FileStamp) -> str:
    return f"{stamp.size_bytes} {stamp.mtime_ns}"
