"""Read bitmaps from drawings in every file format, through one interface.

A .npy in Google's layout is read on access. Strokes (.ndjson, .bin) and pictures (a folder of image files) are
rendered on access, slice by slice, so no file is held in memory. Nothing is unpickled.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import FileRefused, reason_of
from ..file_kind import HEAD_BYTES, describe, got
from ..label_names import nfc
from .drawing import Stroke
from .npy import BitmapFile as BitmapFile  # re-exported
from .npy import Bitmaps as Bitmaps
from .npy import read_bitmaps as read_bitmaps
from .rasterize import rasterize
from .simplify import simplify
from .strokes import MALFORMED_KEPT, STROKE_SUFFIXES, Malformed, StrokeFile, open_strokes

SOURCE_NOTE = "SOURCE.txt"  # file with one line about the origin of the drawings in a folder; copied together with them

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PICTURES = "a picture (PNG, JPEG, WebP, BMP, GIF or TIFF)"

# Units. The largest coordinate of a simplified drawing lies between this number and 255. In a sample of 8,600
# simplified drawings, the largest coordinate was never below 241.
_MIN_SIMPLIFIED = 240
# Google's folders and suffixes, in the order in which they are searched.
_LAYOUTS = (
    ("numpy_bitmap", ".npy"),
    ("simplified", ".ndjson"),
    ("binary", ".bin"),
    ("raw", ".ndjson"),
)


class BitmapRows(Protocol):
    """Bitmaps that are read or rendered on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        """Return uint8, (rows, 28, 28), in order. Raises FileRefused (`path:line: reason`) at a malformed row."""


class DrawnRows:
    """The drawings of a stroke file, rendered on access.

    Strokes in other units than Google's are simplified first. A drawing has other units if it has times or a value
    below 0, or if its largest value is not within 240 to 255.
    """

    def __init__(self, file: StrokeFile) -> None:
        self.file = file
        self.malformed = file.malformed  # the first MALFORMED_KEPT skipped lines
        self.malformed_count = file.malformed_count

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        bitmaps = stack_bitmaps([draw_strokes(self.file[row].strokes) for row in range(len(self.file))[rows]])
        self.file.release()
        return bitmaps


class PictureRows:
    """Picture files as bitmaps, each decoded on access."""

    def __init__(self, paths: list[Path], *, skip_malformed: bool = False) -> None:
        self.paths = paths  # in the order of the rows
        self.malformed: list[Malformed] = []
        """The first MALFORMED_KEPT skipped pictures, numbered from 1 in the order of their names."""
        self.malformed_count = 0
        if skip_malformed:
            self.paths = [path for number, path in enumerate(paths, 1) if self._is_readable(number, path)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        from .images import read_image  # imports Pillow, which other formats do not need

        for path in self.paths[rows]:
            check_is_file(path)
        return stack_bitmaps([read_image(path) for path in self.paths[rows]])

    def _is_readable(self, number: int, path: Path) -> bool:
        from .images import read_image

        try:
            check_is_file(path)
            read_image(path)
        except FileRefused as exc:
            self.malformed_count += 1
            if len(self.malformed) < MALFORMED_KEPT:
                self.malformed.append(Malformed(number, str(exc)))
            return False
        return True


def open_bitmaps(path: Path, *, skip_malformed: bool = False) -> BitmapRows:
    """Open a .npy, .ndjson or .bin file, a picture, or a folder of pictures (in the order of their names).

    With `skip_malformed` the whole input is read now; malformed lines, records and pictures are skipped, listed in
    `.malformed` and counted in `.malformed_count`. A .npy has no malformed rows, so its result has neither attribute.

    Raises FileRefused if the file does not exist or is not of its format.
    """
    if path.is_dir():
        return PictureRows(_pictures(path), skip_malformed=skip_malformed)
    check_is_file(path)
    suffix = path.suffix.lower()
    if suffix in STROKE_SUFFIXES:
        return DrawnRows(open_strokes(path, skip_malformed=skip_malformed))
    if suffix in PICTURE_SUFFIXES:
        return PictureRows([path], skip_malformed=skip_malformed)
    if suffix == ".npy":
        return read_bitmaps(path)
    raise unknown_ending(path, (".npy", *STROKE_SUFFIXES))


def check_is_file(path: Path) -> None:
    """Raise FileRefused for a pipe or device, whose opening may wait for ever; a missing file passes."""
    if path.exists() and not path.is_file():
        way = f"pass it as standard input: `sketchbatch score - < {shlex.quote(str(path))}`"
        raise FileRefused(f"{path}: expected a file, got a pipe or device; {way}")


def unknown_ending(path: Path, suffixes: Sequence[str]) -> FileRefused:
    """Return the error for a file with none of `suffixes` and no ending of a picture: what it is, and the endings."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as exc:
        return FileRefused(f"{path}: cannot be read: {reason_of(exc)}")
    found = got(head, str(path)) if describe(head) else repr(path.suffix)
    return FileRefused(f"{path}: expected {', '.join(suffixes)} or {PICTURES}; got {found}")


def draw_strokes(strokes: list[Stroke]) -> NDArray[np.uint8]:
    """Render the strokes of a file as one bitmap, (28, 28); simplify them first if their units are not Google's."""
    return rasterize(simplify(strokes) if _has_other_units(strokes) else strokes)


def stack_bitmaps(bitmaps: list[NDArray[np.uint8]]) -> Bitmaps:
    """Return (rows, 28, 28) from any number of bitmaps, 0 included."""
    return np.stack(bitmaps) if bitmaps else np.empty((0, 28, 28), np.uint8)


def labelled_files(folder: Path) -> dict[str, Path]:
    """Return the files or folders with the drawings in `folder`, by label, in the order of the labels.

    The label is the name of the file or folder; `open_bitmaps` opens each path. The first layout that exists is used:
    numpy_bitmap/NAME.npy, NAME.npy, simplified/NAME.ndjson, NAME.ndjson, binary/NAME.bin, NAME.bin, raw/NAME.ndjson,
    imagefolder/LABEL/ with pictures, LABEL/ with pictures, pictures in
    `folder`. Names that begin with "." or "_" are hidden, as for Spark and Hive.

    Raises FileRefused if the folder does not exist or has none of these layouts, or if two names are equal in NFC.
    """
    if not folder.is_dir():
        raise FileRefused(f"{folder}: no such folder; expected one with a NAME.npy for each label")
    for inner, suffix in _LAYOUTS:
        for parent in (folder / inner, folder):
            if files := sorted(parent.glob(f"[!._]*{suffix}")):
                return _by_label(files)
    for parent in (folder / "imagefolder", folder):
        if folders := [inner for inner in sorted(parent.glob("[!._]*/")) if _pictures(inner)]:
            return _by_label(folders)
    if _pictures(folder):
        return _by_label([folder])
    raise FileRefused(f"{folder}: expected a NAME.npy for each label, got none, nor strokes or pictures")


def label_of(path: Path) -> str:
    """Return the label of a path that `labelled_files` returned: its name in Unicode's normal form NFC."""
    return nfc(path.name or path.resolve().name if path.is_dir() else path.stem)


def _by_label(paths: list[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        label = label_of(path)
        if label in files:
            raise FileRefused(f"{path}: must not have the same label as another file, got {label} in NFC and in NFD")
        files[label] = path
    return files


def source_of(folder: Path) -> str:
    """Return the origin of the drawings in `folder`: the text of its SOURCE.txt, or else the folder's name."""
    note = folder / SOURCE_NOTE
    if note.is_file():
        return note.read_text(encoding="utf-8", errors="replace").strip()
    return f"drawings in the folder {folder.resolve().name}"


def _has_other_units(strokes: list[Stroke]) -> bool:
    if any(len(stroke) > 2 or min(map(min, stroke)) < 0 for stroke in strokes):
        return True
    return not _MIN_SIMPLIFIED <= max(max(map(max, stroke)) for stroke in strokes) <= 255


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] not in "._"
    )
