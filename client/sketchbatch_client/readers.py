"""Reads bitmaps from files in Google's layout: one NAME.npy for each label.

Files are memory-mapped: rows are read when they are used. Nothing is unpickled.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import FileRefused

Bitmaps = NDArray[np.uint8]  # (rows, 28, 28), 0 = paper, 255 = ink

SOURCE_NOTE = "SOURCE.txt"
"""One line beside the .npy files that says where the drawings come from; copied wherever they go."""

_ROW_BYTES = 784
_MAGIC = b"\x93NUMPY"


def read_bitmaps(path: Path) -> Bitmaps:
    """Maps a .npy file of uint8 (rows, 784) or (rows, 28, 28), C order, as (rows, 28, 28), read-only.

    Raises:
        FileRefused: There is no such file, it is no .npy file, its rows are something else, or its size does not
            fit its header.
    """
    try:
        with path.open("rb") as file:
            _check_magic(path, file.read(512))
            file.seek(0)
            shape, is_fortran, dtype = _read_header(path, file)
            start = file.tell()
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read: {exc.strerror}") from exc
    if dtype != np.uint8 or is_fortran or shape[1:] not in ((_ROW_BYTES,), (28, 28)):
        order = ", Fortran order" if is_fortran else ""
        raise FileRefused(f"{path}: expected uint8 (rows, 784) or (rows, 28, 28), got {dtype} {shape}{order}")
    expected = shape[0] * _ROW_BYTES
    got = path.stat().st_size - start
    if got != expected:
        state = "truncated" if got < expected else "too long"
        raise FileRefused(
            f"{path}: {state}: {shape[0]} rows of {_ROW_BYTES} are {expected} bytes, got {got}; fetch it again"
        )
    if not shape[0]:
        return np.empty((0, 28, 28), np.uint8)
    return np.memmap(path, np.uint8, "r", start, (shape[0], 28, 28))


def labelled_files(folder: Path) -> dict[str, Path]:
    """The .npy files of `folder`, or of its `numpy_bitmap/`, by label (the file's name), in order of label.

    Raises:
        FileRefused: There is no such folder, or no .npy file in it.
    """
    if not folder.is_dir():
        raise FileRefused(f"{folder}: no such folder; expected one with a NAME.npy for each label")
    inner = folder / "numpy_bitmap"
    files = {file.stem: file for file in sorted((inner if inner.is_dir() else folder).glob("*.npy"))}
    if not files:
        raise FileRefused(f"{folder}: expected a NAME.npy for each label, got none")
    return files


def source_of(folder: Path) -> str:
    """Where the drawings in `folder` come from: its SOURCE.txt, or else the folder's name."""
    note = folder / SOURCE_NOTE
    return (
        note.read_text(encoding="utf-8", errors="replace").strip()
        if note.is_file()
        else f"drawings in the folder {folder.resolve().name}"
    )


def _check_magic(path: Path, head: bytes) -> None:
    if head.startswith(_MAGIC):
        return
    if not head:
        raise FileRefused(f"{path}: expected a .npy file, got an empty one")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FileRefused(f"{path}: expected a .npy file, got a web page saved under that name; fetch it again")
    raise FileRefused(f"{path}: expected a .npy file (first bytes {_MAGIC!r}), got {head[:6]!r}")


def _read_header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings(action="ignore"):  # of files that Python 2 wrote, which are as good
            return read[np.lib.format.read_magic(file)](file)
    except Exception as exc:  # NumPy parses the header as Python text, and lets through whatever that raises
        raise FileRefused(f"{path}: its .npy header cannot be read: {str(exc).partition(chr(10))[0]}") from exc
