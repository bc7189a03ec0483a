"""Find the inputs of a job: files, globs, folders and standard input; open each as a source, in the given order."""

import glob
import hashlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from ..drawings.npy import open_npz, read_bitmaps
from ..drawings.readers import PICTURE_SUFFIXES, check_is_file, labelled_files, unknown_ending
from ..drawings.strokes import StrokeFile
from ..errors import FileRefused
from ..file_kind import HEAD_BYTES, describe, got
from ..file_stamp import FileStamp, file_stamp
from .parquet_source import ParquetSource
from .sources import BitmapSource, PictureSource, Source, StrokeSource, open_pictures
from .spooled import PACKED_SUFFIXES, spool_stdin, stdin_head, unpack

STDIN = "-"

# Lines per entry of a stroke file's index. An entry takes 8 bytes. To find a line, at most 1,023 others are skipped.
_INDEX_EVERY = 1024
_FIRST_LINES = 16  # a stroke file is refused if none of its first lines, up to this number, is a drawing


def find_sources(
    inputs: Sequence[str], spool: Path, on_open: Callable[[str], object], column: str = ""
) -> list[Source]:
    """Open every input once, in the given order; `on_open` receives the name of each input before it is opened.

    Inputs are files, folders, globs (`*`, `?`, `[...]`, and `**` for nested folders), or "-" = standard input. Standard
    input and the contents of packed files are stored in the folder `spool`. A folder stands for the files of drawings
    directly in it, without the outputs of jobs. If it has none, the folder stands for the labelled files that
    `labelled_files` finds in it. Folders and globs leave out names that begin with "." or "_", unless the glob does.

    `column` is the column of Parquet files that has the drawings; empty = the only one that can have them.

    Raises DiskFull if the disk has no space for standard input or a packed file, and FileRefused if an input does not
    have the expected format, or if no input has a row.
    """
    sources: list[Source] = []
    for path in dict.fromkeys(path for text in inputs for path in _paths(text)):
        on_open(str(path))
        sources += _open_stdin(spool, column) if str(path) == STDIN else _open(path, str(path), spool, column)
    if column and not any(isinstance(source, ParquetSource) for source in sources):
        raise FileRefused(f"--column {column}: no input is a Parquet file")
    if not any(map(len, sources)):
        raise FileRefused(f"{', '.join(inputs)}: expected drawings, got no row")
    return sources


def _paths(text: str) -> Iterator[Path]:
    """Yield the paths that one argument names; each is a file, or a folder with pictures."""
    path = Path(text)
    if text == STDIN or not glob.has_magic(text) or path.exists():
        matches = [path]
    else:
        found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - also finds absolute paths
        matches = [Path(match) for match in found if "/_" in f"/{text}" or "/_" not in f"/{match}"]
        if not matches:
            raise FileRefused(f"{text}: no file matches this pattern")
    for match in matches:
        yield from _folder_paths(match) if match.is_dir() else [match]


def _folder_paths(folder: Path) -> Sequence[Path]:
    """Return the files of drawings directly in a folder; if there are none, return its labelled files."""
    names = {path.name for path in folder.iterdir()}
    files = [folder / name for name in sorted(names) if _has_drawings(name) and not _is_output(name, names)]
    files = [
        file for file in files if not file.is_dir() and not (file.suffix in PACKED_SUFFIXES and file.stem in names)
    ]
    return files or list(labelled_files(folder).values())


def _has_drawings(name: str) -> bool:
    """Return whether the name of a file in a folder is one of drawings.

    Names with `_` in front are hidden files of Spark and Hive. A .jsonl in a folder is more often metadata.
    """
    inner, suffix = os.path.splitext(name.lower())  # noqa: PTH122 - of a name without its folder
    suffix = os.path.splitext(inner)[1] if suffix in PACKED_SUFFIXES else suffix  # noqa: PTH122
    return suffix in _OPENERS and suffix != ".jsonl" and name[0] not in "._"


def _is_output(name: str, names: Container[str]) -> bool:
    """Return whether a file next to the files `names` is the output of a job, or its rejects."""
    return f"{name}.manifest.json" in names or name.endswith(".rejects.jsonl")


def _is_packed_copy(name: str, names: Container[str]) -> bool:
    """Return whether the same file lies unpacked next to a packed one, as after `gzip -k`."""
    inner, suffix = os.path.splitext(name)  # noqa: PTH122 - of a name without its folder
    return suffix.lower() in PACKED_SUFFIXES and inner in names


def _open(path: Path, name: str, spool: Path, column: str) -> list[Source]:
    if path.is_dir():
        return [_open_pictures(path)]
    if not path.exists():
        raise FileRefused(f"{path}: cannot be read: no such file")
    check_is_file(path)
    stamp = _stamp(path)  # taken before opening, so that a later run detects a change during the opening
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return [open_pictures(stamp, path.parent, [path.name], [file_stamp(path)])]
    suffix = path.suffix.lower() or _suffix_of(path)
    if suffix in PACKED_SUFFIXES and Path(path.stem).suffix.lower() in _OPENERS:
        return _open_copy(unpack(path, spool).path, name, stamp, name, column)
    if suffix not in _OPENERS:
        raise unknown_ending(path, list(_OPENERS))
    return _OPENERS[suffix](path, name, stamp, column)


def _suffix_of(path: Path) -> str:
    """Return the ending that belongs to the contents of a file without one, such as /dev/stdin; "" if unknown."""
    with path.open("rb") as file:
        return _suffix(file.read(HEAD_BYTES))


def _open_pictures(folder: Path) -> PictureSource:
    entries = (entry.name for entry in os.scandir(folder))
    names = sorted(name for name in entries if name[0] not in "._" and name.lower().endswith(PICTURE_SUFFIXES))
    stamps = [file_stamp(folder / name) for name in names]
    digest = hashlib.sha256()
    for name, stamp in zip(names, stamps, strict=True):
        digest.update(f"{name} {_text(stamp)}\n".encode(errors="replace"))
    return open_pictures(digest.hexdigest(), folder, names, stamps)


def _open_strokes(path: Path, name: str, stamp: str, column: str) -> list[Source]:
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


def _open_npz(path: Path, name: str, stamp: str, column: str) -> list[Source]:
    return [BitmapSource(f"{name}:{array}", stamp, bitmaps) for array, bitmaps in open_npz(path).items()]


def _open_parquet(path: Path, name: str, stamp: str, column: str) -> list[Source]:
    return [ParquetSource(name, f"{stamp} column {column}" if column else stamp, path, column)]


_OPENERS: dict[str, Callable[[Path, str, str, str], list[Source]]] = {  # of path, name, stamp and --column
    ".npy": lambda path, name, stamp, column: [BitmapSource(name, stamp, read_bitmaps(path))],
    ".npz": _open_npz,
    ".ndjson": _open_strokes,
    ".jsonl": _open_strokes,
    ".bin": _open_strokes,
    ".parquet": _open_parquet,
}


def _open_stdin(spool: Path, column: str) -> list[Source]:
    """Copy standard input to a file and open that file; the first bytes select the format."""
    head = stdin_head()
    suffix = _suffix(head)
    if not suffix:
        raise FileRefused(f"standard input: expected .npy, .npz, .ndjson or .parquet, got {got(head)}")
    copy = spool_stdin(head, suffix, spool)
    return _open_copy(copy.path, STDIN, copy.digest, "standard input", column)


def _open_copy(path: Path, name: str, stamp: str, shown: str, column: str) -> list[Source]:
    """Open the copy of an input; an error message names the input, `shown`, instead of the copy."""
    try:
        return _OPENERS[path.suffix](path, name, stamp, column)
    except FileRefused as exc:  # begins with the name of the copy, or with that of the source
        reason = str(exc).removeprefix(str(path)).removeprefix(name)
        raise FileRefused(f"{shown}{reason}") from exc


def _suffix(head: bytes) -> str:
    """Return the ending of the format that begins with `head`; "" if its first bytes do not tell the format."""
    kind = describe(head)
    return kind.suffix if kind and kind.suffix in _OPENERS else ""


def _stamp(path: Path) -> str:
    """Return size and modification time of a file as text, without the inode: a copy that keeps both is equal."""
    return _text(file_stamp(path))


def _text(stamp: FileStamp) -> str:
    return f"{stamp.size_bytes} {stamp.mtime_ns}"
