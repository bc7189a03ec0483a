"""Finds the inputs of a job: files, globs, folders and standard input, each opened as a source in the order given."""

import glob
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..atomic import room_for
from ..drawings.npy import open_npz, read_bitmaps
from ..drawings.readers import PICTURES, labelled_files
from ..drawings.strokes import StrokeFile, is_web_page
from ..errors import FileRefused
from .parquet_source import ParquetSource
from .sources import BitmapSource, PictureSource, Source, StrokeSource

STDIN = "-"

_INDEX_EVERY = 1024  # lines: 8 bytes a thousand drawings, and the most that is read in vain to find one
_FIRST_LINES = 16  # of a stroke file: with no drawing among them, it is a file of another kind
_SPOOL_BYTES = 1 << 20


def find_sources(inputs: Sequence[str], spool: Path, opens: Callable[[str], object]) -> list[Source]:
    """Every input, opened, in the order given; none twice.

    Args:
        inputs: Files, folders, globs (`*`, `?`, `[...]`, and `**` for folders in folders), or "-" = standard input. Of
            a folder: the files of drawings in it; or else those of Google's layout, or of folders of pictures.
        spool: Where standard input is kept while it is scored.
        opens: Is told of each before it is opened.

    Raises:
        DiskFull: There is no room to keep standard input.
        FileRefused: One of them is not what it should be, or they hold no row at all.
    """
    sources: list[Source] = []
    for path in dict.fromkeys(path for text in inputs for path in _paths(text)):
        opens(str(path))
        sources += _open_stdin(spool) if str(path) == STDIN else _open(path, str(path))
    if not any(map(len, sources)):
        raise FileRefused(f"{', '.join(inputs)}: expected drawings, got no row")
    return sources


def _paths(text: str) -> Iterator[Path]:
    """The files, and folders of pictures, that one argument stands for."""
    path = Path(text)
    if text == STDIN or not glob.has_magic(text) or path.exists():
        matches = [path]
    else:
        matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute, too
        if not matches:
            raise FileRefused(f"{text}: no file matches")
    for match in matches:
        yield from _of_folder(match) if match.is_dir() else [match]


def _of_folder(folder: Path) -> Sequence[Path]:
    """Files of drawings of any kind directly in a folder, or else what stands there by label."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _KINDS and path.name[0] != "."]
    return files or list(labelled_files(folder).values())


def _open(path: Path, name: str) -> list[Source]:
    if path.is_dir():
        names = sorted(entry.name for entry in os.scandir(path) if _is_picture(entry.name))
        return [PictureSource(path, names, _stamp_of_pictures(path, names))]
    if path.suffix.lower() in PICTURES:
        if not path.is_file():
            raise FileRefused(f"{path}: cannot be read: no such file")
        return [PictureSource(path.parent, [path.name], _stamp(path))]
    return _KINDS.get(path.suffix, _open_npy)(path, name)


def _open_npy(path: Path, name: str) -> list[Source]:
    return [BitmapSource(name, read_bitmaps(path), _stamp(path))]


def _open_strokes(path: Path, name: str) -> list[Source]:
    file = StrokeFile(path, index_every=_INDEX_EVERY)
    first, reasons = min(file.line_count, _FIRST_LINES), []
    for line in file.lines(0, first):
        try:
            file.parse(line)
        except ValueError as exc:
            reasons.append(str(exc))
    if reasons and len(reasons) == first:
        raise FileRefused(f"{name}:1: {reasons[0]} (nor is there a drawing in the first {first} lines)")
    return [StrokeSource(name, file, _stamp(path))]


def _open_npz(path: Path, name: str) -> list[Source]:
    stamp = _stamp(path)
    return [BitmapSource(f"{name}:{array}", bitmaps, stamp) for array, bitmaps in open_npz(path).items()]


def _open_parquet(path: Path, name: str) -> list[Source]:
    return [ParquetSource(path, name, _stamp(path) if path.exists() else "")]


_KINDS: dict[str, Callable[[Path, str], list[Source]]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".parquet": _open_parquet,
    ".ndjson": _open_strokes,
    ".bin": _open_strokes,
}


def _open_stdin(spool: Path) -> list[Source]:
    """Standard input, copied to a file first; its kind shows in its first bytes."""
    head = sys.stdin.buffer.peek(512)  # type: ignore[union-attr]  # a BufferedReader
    kind = next((ending for magic, ending in _MAGICS if head.lstrip().startswith(magic)), None)
    if kind is None:
        got = "nothing" if not head else "a web page" if is_web_page(head) else repr(head[:6])
        raise FileRefused(f"standard input: expected .npy, .npz, .ndjson or .parquet, got {got}; others need a file")
    path = spool / f"stdin{kind}"
    with room_for(path), path.open("wb") as file:
        while chunk := sys.stdin.buffer.read(_SPOOL_BYTES):
            file.write(chunk)
    return _open(path, STDIN)


_MAGICS = ((b"\x93NUMPY", ".npy"), (b"{", ".ndjson"), (b"PK", ".npz"), (b"PAR1", ".parquet"))


def _is_picture(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(PICTURES)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _stamp_of_pictures(folder: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {_stamp(folder / name)}\n".encode(errors="replace"))
    return digest.hexdigest()
