"""Open each input of a job as a source, in the given order."""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...atomic import is_open_file
from ...drawings.folders import pictures_in
from ...drawings.npy import open_npz, read_bitmaps
from ...drawings.parquet.rows import ParquetRows
from ...drawings.passed_over import PACKED_SUFFIXES, PICTURE_SUFFIXES, PassedOver, PassedOverList
from ...drawings.readers import check_is_file, unknown_ending
from ...drawings.strokes import StrokeFile
from ...errors import FileRefused, reason_of
from ...file_kind import HEAD_BYTES, describe, got
from ...file_stamp import FileStamp, file_stamp
from .paths import STDIN, collecting, input_paths
from .sources import BitmapSource, ParquetSource, PictureSource, Source, StrokeSource, open_picture, open_pictures
from .spooled import spool, unpack

# Lines per entry of a stroke file's index. An entry takes 8 bytes. To find a line, at most 1,023 others are skipped.
_INDEX_EVERY = 1024
_REFUSED_SHOWN = 25  # most inputs whose messages are shown
NO_FILE = "0 0"  # stamp of a link to a picture that leads to no file
_FIRST_LINES = 16  # a stroke file is refused if none of its first lines, up to this number, is a drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """How the numbers of inputs become drawings."""

    column: str = ""  # column of Parquet files that has the drawings; empty = the only one that can have them
    is_growing: bool = False
    """The inputs may grow: each picture of a folder is a source, and a last line that is incomplete is not read yet."""
    may_be_empty: bool = False  # accept folders without a drawing, patterns without a file, and inputs without a row
    scored: Mapping[str, int] = field(default_factory=dict)
    """Number of rows of each source that an output has: of several paths to one file, these are read."""
    scale: float = 0.0
    """Factor for numbers: 255 for 0..1. 0 = refuse floats, booleans, and other integers than uint8 in .npy and .npz."""


class _Input(NamedTuple):
    """One file that is opened."""

    path: Path  # of the file, or of its copy
    name: str  # in outputs
    stamp: str
    options: InputOptions
    passed_over: PassedOverList


def find_sources(
    inputs: Sequence[str],
    spool_folder: Path,
    on_open: Callable[[str], object],
    options: InputOptions = InputOptions(),
    passed_over: PassedOverList | None = None,
) -> list[Source]:
    """Open every input once, in the given order; `on_open` receives the name of each input before it is opened.

    Inputs are files, folders, globs (`*`, `?`, `[...]`, and `**` for nested folders), or "-" = standard input. Standard
    input, open pipes and the contents of packed files are stored in `spool_folder`. A folder stands for the files of
    drawings directly in it, without the outputs of jobs. If it has none, the folder stands for the labelled files that
    `find_labelled` finds in it, or else for all drawings in the folders below it. Folders and globs leave out names
    that begin with "." or "_", unless the glob does. What is left out is added to `passed_over`.

    Raises DiskFull if the disk has no space for standard input or a packed file, and FileRefused if an input does not
    have the expected format, or if no input has a row, unless they may be empty.
    """
    sources: list[Source] = []
    others = PassedOverList() if passed_over is None else passed_over
    refused: list[FileRefused] = []
    for path in input_paths(inputs, others, may_be_empty=options.may_be_empty, refused=refused, scored=options.scored):
        if refused and _is_copied(path):
            continue
        on_open(str(path))
        with collecting(refused):
            opened = _open(_Input(path, str(path), "", options, others), spool_folder)
            others.empty_inputs += not any(map(len, opened))
            sources += opened
    if refused:
        raise _all_of(refused)
    empty = [source.name for source in sources if not len(source)]
    others.inputs.difference_update(empty)
    others.extend(PassedOver(name, "has no drawing", False) for name in empty)
    if options.may_be_empty:
        return sources
    if options.column and not any(isinstance(source, ParquetSource) for source in sources):
        raise FileRefused(f"--column {options.column}: no input is a Parquet file")
    if not any(map(len, sources)):
        raise FileRefused(f"{', '.join(inputs)}: expected drawings, got no row")
    return sources


def _is_copied(path: Path) -> bool:
    """Return whether an input is first copied or unpacked, which may take long: standard input, a pipe, a .gz."""
    return str(path) == STDIN or is_open_file(path) or path.suffix.lower() in PACKED_SUFFIXES


def _all_of(refused: list[FileRefused]) -> FileRefused:
    """Return one error for all inputs that were refused, with the messages of the first ones."""
    if len(refused) == 1:
        return refused[0]
    shown = "; ".join(f"({number}) {each}" for number, each in enumerate(refused[:_REFUSED_SHOWN], 1))
    more = f"; and {len(refused) - _REFUSED_SHOWN:,} more" if len(refused) > _REFUSED_SHOWN else ""
    return FileRefused(f"{len(refused):,} inputs cannot be read: {shown}{more}")


def _open(given: _Input, spool_folder: Path) -> list[Source]:
    path = given.path
    if given.name == STDIN:
        return _open_stdin(spool_folder, given.options, given.passed_over)
    if path.is_dir():
        if given.options.is_growing:
            return [open_picture(picture, _text(_stamp_of(picture))) for picture in pictures_in(path)]
        return [_open_pictures(path)]
    if path.suffix.lower() in PICTURE_SUFFIXES and path.is_symlink() and not path.exists():
        return [open_picture(path, NO_FILE)]  # its row is a reject
    if not path.exists():
        what = "a link that leads to no file; remove or correct it" if path.is_symlink() else "no such file"
        raise FileRefused(f"{path}: cannot be read: {what}")
    if is_open_file(path) and path.is_fifo():
        return _open_pipe(given, spool_folder)
    check_is_file(path)
    given = given._replace(stamp=_stamp(path))  # before opening, so that a later run detects a change meanwhile
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return [open_picture(path, given.stamp)]
    suffix = path.suffix.lower() or _suffix_of(path)
    if suffix in PACKED_SUFFIXES and Path(path.stem).suffix.lower() in _OPENERS:
        return _open_copy(given._replace(path=unpack(path, spool_folder).path), given.name)
    if suffix not in _OPENERS:
        raise unknown_ending(path, list(_OPENERS))
    return _OPENERS[suffix](given)


def _suffix_of(path: Path) -> str:
    """Return the ending that belongs to the contents of a file without one, such as /dev/stdin; "" if unknown."""
    try:
        with path.open("rb") as file:
            return _suffix(file.read(HEAD_BYTES))
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read: {reason_of(exc)}") from exc


def _open_pictures(folder: Path) -> PictureSource:
    paths = pictures_in(folder)
    stamps = [_stamp_of(path) for path in paths]
    digest = hashlib.sha256()
    for path, stamp in zip(paths, stamps, strict=True):
        digest.update(os.fsencode(f"{path.name} {_text(stamp)}\n"))
    return open_pictures(digest.hexdigest(), folder, [path.name for path in paths], stamps)


def _stamp_of(path: Path) -> FileStamp:
    """Return the stamp of a picture; that of a link which leads nowhere is empty, and its row is a reject."""
    try:
        return file_stamp(path)
    except OSError:
        return FileStamp(0, 0, 0)


def _open_bitmaps(given: _Input) -> list[Source]:
    return [BitmapSource(given.name, given.stamp, read_bitmaps(given.path, scale=given.options.scale))]


def _open_npz(given: _Input) -> list[Source]:
    contents = open_npz(given.path, scale=given.options.scale)
    shown = (entry.path.removeprefix(str(given.path)) for entry in contents.passed_over)  # the path may be a copy
    given.passed_over.extend(
        entry._replace(path=f"{given.name}{array}") for array, entry in zip(shown, contents.passed_over, strict=True)
    )
    return [BitmapSource(f"{given.name}:{array}", given.stamp, each) for array, each in contents.arrays.items()]


def _open_strokes(given: _Input) -> list[Source]:
    file = StrokeFile(given.path, index_every=_INDEX_EVERY)
    rows = file.line_count
    is_new = rows > given.options.scored.get(given.name, 0)
    if given.options.is_growing and is_new and file.is_last_line_incomplete:
        rows -= 1
        reason = "incomplete; the next run reads it, once it is complete"
        given.passed_over.extend([PassedOver(f"{given.name}:{rows + 1}", reason, False)])
    first, reasons = min(rows, _FIRST_LINES), []
    for line in file.lines(0, first):
        try:
            file.parse(line)
        except ValueError as exc:
            reasons.append(str(exc))
    if reasons and len(reasons) == first:
        raise FileRefused(f"{given.name}:1: {reasons[0]} (none of the first {first} lines is a drawing)")
    return [StrokeSource(given.name, given.stamp, file, rows)]


def _open_parquet(given: _Input) -> list[Source]:
    column, scale = given.options.column, given.options.scale
    return [ParquetSource(given.name, given.stamp, ParquetRows(given.path, given.name, column=column, scale=scale))]


_OPENERS: dict[str, Callable[[_Input], list[Source]]] = {
    ".npy": _open_bitmaps,
    ".npz": _open_npz,
    ".ndjson": _open_strokes,
    ".jsonl": _open_strokes,
    ".bin": _open_strokes,
    ".parquet": _open_parquet,
}


def _open_stdin(folder: Path, options: InputOptions, passed_over: PassedOverList) -> list[Source]:
    """Copy standard input to a file and open that file; the first bytes select the format."""
    copy = spool(sys.stdin.buffer, lambda head: _suffix_of_pipe(head, "standard input"), folder, "stdin")
    return _open_copy(_Input(copy.path, STDIN, copy.digest, options, passed_over), "standard input")


def _open_pipe(given: _Input, folder: Path) -> list[Source]:
    """Copy an open pipe, such as the /dev/fd/63 of `<(command)`, to a file, and open that file."""
    with given.path.open("rb") as pipe:
        copy = spool(pipe, lambda head: _suffix_of_pipe(head, given.name), folder, f"stdin-{given.path.name}")
    return _open_copy(given._replace(path=copy.path, stamp=copy.digest), given.name)


def _suffix_of_pipe(head: bytes, name: str) -> str:
    if suffix := _suffix(head):
        return suffix
    raise FileRefused(f"{name}: expected .npy, .npz, .ndjson or .parquet, got {got(head)}")


def _open_copy(given: _Input, shown: str) -> list[Source]:
    """Open the copy of an input; an error message names the input, `shown`, instead of the copy."""
    try:
        return _OPENERS[given.path.suffix](given)
    except FileRefused as exc:  # begins with the name of the copy, or with that of the source
        reason = str(exc).removeprefix(str(given.path)).removeprefix(given.name)
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
