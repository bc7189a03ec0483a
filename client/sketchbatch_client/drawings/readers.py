"""Reads bitmaps from every kind of file that drawings come in, by one interface.

A .npy in Google's layout is memory-mapped; strokes (.ndjson, .bin) and pictures (a folder of PNG or JPEG files) are
drawn when a slice of them is asked for. So no file is ever held in memory. Nothing is unpickled.
"""

import mmap
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import FileRefused
from .drawing import Stroke
from .npy import Bitmaps as Bitmaps  # everybody's word
from .npy import read_bitmaps as read_bitmaps
from .rasterize import rasterize
from .simplify import simplify
from .strokes import MALFORMED_KEPT, Malformed, StrokeFile, open_strokes

SOURCE_NOTE = "SOURCE.txt"
"""One line beside the .npy files that says where the drawings come from; copied wherever they go."""

PICTURES = (".jpeg", ".jpg", ".png")

_STROKES = (".ndjson", ".bin")
_LEAST_EXTENT = 240  # units: no simplified drawing reaches less far (241 is the least of 8,600); people's own may
_LAYOUTS = (  # Google's folder, ending: the first that has files is taken
    ("numpy_bitmap", ".npy"),
    ("simplified", ".ndjson"),
    ("binary", ".bin"),
    ("raw", ".ndjson"),
)


class BitmapRows(Protocol):
    """Bitmaps that are read, or drawn, when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        """uint8, (rows, 28, 28), in the file's order. Raises FileRefused at what is malformed: `path:line: reason`."""


class DrawnRows:
    """The drawings of a stroke file, rasterised when they are asked for.

    Strokes with times, or beyond the 0-to-255 square, are simplified first: they are a screen's.
    """

    def __init__(self, file: StrokeFile) -> None:
        self.file = file

    @property
    def malformed(self) -> list[Malformed]:
        """The first of those that were skipped."""
        return self.file.malformed

    @property
    def malformed_count(self) -> int:
        """All that were skipped."""
        return self.file.malformed_count

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        numbers = range(len(self.file))[rows]
        bitmaps = np.empty((len(numbers), 28, 28), np.uint8)
        for place, row in enumerate(numbers):
            bitmaps[place] = draw_strokes(self.file[row].strokes)
        return bitmaps


class PictureRows:
    """Picture files as bitmaps, each read when it is asked for."""

    def __init__(self, paths: list[Path], *, skip_malformed: bool = False) -> None:
        self.paths = paths
        """In the order of the rows."""
        self.malformed: list[Malformed] = []
        """The first MALFORMED_KEPT that were skipped, numbered from 1 in the order of their names."""
        self.malformed_count = 0
        if skip_malformed:
            self.paths = [path for number, path in enumerate(paths, 1) if self._is_picture(number, path)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        from .images import read_image  # Pillow, which files of other kinds do not need

        paths = self.paths[rows]
        return np.stack([read_image(path) for path in paths]) if paths else np.empty((0, 28, 28), np.uint8)

    def _is_picture(self, number: int, path: Path) -> bool:
        from .images import read_image

        try:
            read_image(path)
        except FileRefused as exc:
            self.malformed_count += 1
            if len(self.malformed) < MALFORMED_KEPT:
                self.malformed.append(Malformed(number, str(exc)))
            return False
        return True


def open_bitmaps(path: Path, *, skip_malformed: bool = False) -> BitmapRows:
    """Opens drawings of any kind, by the path's ending: .npy, .ndjson, .bin, a picture, or a folder of pictures.

    Args:
        path: Pictures in a folder are taken in the order of their names.
        skip_malformed: Leave out lines, records and pictures that are no drawing; they are found now, by reading
            everything once, listed in `.malformed` and counted in `.malformed_count`. A .npy has none of these.

    Raises:
        FileRefused: There is no such file, or it is not what it should be.
    """
    if path.is_dir():
        return PictureRows(_pictures(path), skip_malformed=skip_malformed)
    if path.suffix in _STROKES:
        return DrawnRows(open_strokes(path, skip_malformed=skip_malformed))
    if path.suffix.lower() in PICTURES:
        return PictureRows([path], skip_malformed=skip_malformed)
    return read_bitmaps(path)


def draw_strokes(strokes: list[Stroke]) -> NDArray[np.uint8]:
    """One bitmap, (28, 28), of strokes as a file has them: those with times, or beyond the square, simplified first."""
    return rasterize(simplify(strokes) if _is_raw(strokes) else strokes)


def give_back(rows: BitmapRows) -> None:
    """Lets go of the memory behind rows that were read; they are read from the file again when wanted again."""
    if isinstance(rows, DrawnRows):
        rows.file.give_back()
    elif isinstance(rows, np.ndarray) and isinstance(rows.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        rows.base.madvise(mmap.MADV_DONTNEED)


def labelled_files(folder: Path) -> dict[str, Path]:
    """The drawings in `folder` by label (the file's or folder's name), in order of label, each for `open_bitmaps`.

    The first of these that is there is taken: numpy_bitmap/NAME.npy, NAME.npy, simplified/NAME.ndjson, NAME.ndjson,
    binary/NAME.bin, NAME.bin, raw/NAME.ndjson, imagefolder/LABEL/ or LABEL/ with pictures in it, pictures.

    Raises:
        FileRefused: There is no such folder, or none of these in it.
    """
    if not folder.is_dir():
        raise FileRefused(f"{folder}: no such folder; expected one with a NAME.npy for each label")
    for inner, ending in _LAYOUTS:
        for place in (folder / inner, folder):
            if files := {file.stem: file for file in sorted(place.glob(f"[!.]*{ending}"))}:
                return files
    for place in (folder / "imagefolder", folder):
        if folders := {inner.name: inner for inner in sorted(place.glob("[!.]*/")) if _pictures(inner)}:
            return folders
    if _pictures(folder):
        return {folder.resolve().name: folder}
    raise FileRefused(f"{folder}: expected a NAME.npy for each label, got none; nor are there strokes or pictures")


def label_of(path: Path) -> str:
    """The label that `labelled_files` found a path under."""
    return path.name or path.resolve().name if path.is_dir() else path.stem


def source_of(folder: Path) -> str:
    """Where the drawings in `folder` come from: its SOURCE.txt, or else the folder's name."""
    note = folder / SOURCE_NOTE
    return (
        note.read_text(encoding="utf-8", errors="replace").strip()
        if note.is_file()
        else f"drawings in the folder {folder.resolve().name}"
    )


def _is_raw(strokes: list[Stroke]) -> bool:
    if any(len(stroke) > 2 or min(map(min, stroke)) < 0 for stroke in strokes):
        return True
    return not _LEAST_EXTENT <= max(max(map(max, stroke)) for stroke in strokes) <= 255


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES and file.name[0] != ".")
