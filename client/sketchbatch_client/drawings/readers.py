"""Read bitmaps from drawings in every file format, through one interface.

A .npy in Google's layout is read on access. Strokes (.ndjson, .bin) and pictures (a folder of image files) are
rendered on access, slice by slice, so no file is held in memory. Nothing is unpickled.
"""

import shlex
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import FileRefused, reason_of
from ..file_kind import HEAD_BYTES, describe, got
from .drawing import Stroke
from .folders import SOURCE_NOTE as SOURCE_NOTE  # re-exported, as all names below
from .folders import files_below, pictures_in
from .folders import label_of as label_of
from .folders import labelled_files as labelled_files
from .folders import source_of as source_of
from .npy import BitmapFile as BitmapFile
from .npy import Bitmaps as Bitmaps
from .npy import read_bitmaps as read_bitmaps
from .npy import stack_bitmaps as stack_bitmaps
from .passed_over import HOW_TO_CONVERT, TABLE_SUFFIXES
from .passed_over import PICTURE_SUFFIXES as PICTURE_SUFFIXES
from .rasterize import is_simplified, render
from .simplify import simplify
from .stable_file import changed, stamp_hash
from .strokes import MALFORMED_KEPT, STROKE_SUFFIXES, Malformed, StrokeFile, open_strokes

_FROM_STDIN = ("", ".npy", ".npz", ".ndjson", ".jsonl", ".parquet")  # endings whose contents `score -` recognises
PICTURES = "a picture (PNG, JPEG, WebP, BMP, GIF or TIFF)"


class BitmapRows(Protocol):
    """Bitmaps that are read or rendered on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        """Return uint8, (rows, 28, 28), in order. Raises FileRefused (`path:line: reason`) at a malformed row."""


@runtime_checkable
class MalformedRows(Protocol):
    """Rows of a file that may have malformed rows."""

    malformed: list[Malformed]  # the first MALFORMED_KEPT skipped ones
    malformed_count: int


@runtime_checkable
class LocatedRows(Protocol):
    """Rows whose numbers differ from those in their file, or that belong to several files."""

    def locate(self, row: int) -> tuple[Path, int]:
        """Return the file or picture that has a row, and the number of the row in it, from 0."""


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

    def locate(self, row: int) -> tuple[Path, int]:
        return self.file.path, self.file.number_of(row) - 1


class PictureRows:
    """Picture files as bitmaps, each decoded on access."""

    def __init__(self, paths: list[Path], *, skip_malformed: bool = False) -> None:
        self.paths = paths  # in the order of the rows
        self.malformed: list[Malformed] = []
        """The first MALFORMED_KEPT skipped pictures, numbered from 1 in the order of their names."""
        self.malformed_count = 0
        if skip_malformed:
            self.paths = [path for number, path in enumerate(paths, 1) if self._is_readable(number, path)]
        self._stamps = array("q", map(stamp_hash, self.paths))  # 8 bytes each, for millions of pictures

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        from .images import read_image  # imports Pillow, which other formats do not need

        bitmaps = []
        for path, stamp in zip(self.paths[rows], self._stamps[rows], strict=True):
            check_is_file(path)
            bitmaps.append(read_image(path))
            if stamp_hash(path) != stamp:
                raise changed(path)
        return stack_bitmaps(bitmaps)

    def locate(self, row: int) -> tuple[Path, int]:
        return self.paths[row], 0

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


class FilesOfRows:
    """The drawings of several files, one file after the other, such as the parts that Spark writes."""

    def __init__(self, files: dict[Path, BitmapRows]) -> None:
        self.files = files
        self._ends = np.cumsum([len(rows) for rows in files.values()])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        start, stop, _ = rows.indices(len(self))
        starts = self._ends - [len(each) for each in self.files.values()]
        parts = [
            each[max(0, start - first) : stop - first]
            for first, each in zip(starts.tolist(), self.files.values(), strict=True)
            if first < stop and start < first + len(each)
        ]
        return np.concatenate(parts) if parts else stack_bitmaps([])

    def locate(self, row: int) -> tuple[Path, int]:
        index = int(np.searchsorted(self._ends, row, side="right"))
        path, rows = list(self.files.items())[index]
        row -= int(self._ends[index]) - len(rows)
        return rows.locate(row) if isinstance(rows, LocatedRows) else (path, row)


def malformed_in(path: Path, rows: BitmapRows) -> Iterator[tuple[Path, MalformedRows]]:
    """Yield what was skipped in the input `path`, which `open_bitmaps` opened: for it, or for each file below it."""
    parts = rows.files.items() if isinstance(rows, FilesOfRows) else [(path, rows)]
    yield from ((file, each) for file, each in parts if isinstance(each, MalformedRows))


def describe_malformed(file: Path, malformed: Malformed) -> str:
    """Return the place of a malformed drawing and the reason, as the error about it does."""
    if file.is_dir():  # of pictures, whose reasons begin with their paths
        return malformed.reason
    is_line = file.suffix.lower() in STROKE_SUFFIXES
    place = f":{malformed.number}" if is_line else f": row {malformed.number - 1}"  # rows count from 0
    return f"{file}{place}: {malformed.reason}"


def open_bitmaps(path: Path | str, *, skip_malformed: bool = False) -> BitmapRows:
    """Open a .npy, .ndjson, .bin or .parquet file, a picture, or a folder of pictures or of such files, by name.

    With `skip_malformed` the whole input is read now; malformed lines, records and pictures are skipped, listed in
    `.malformed` and counted in `.malformed_count`. A .npy has no malformed rows, so its result has neither attribute.
    `malformed_in` returns the skipped rows of each kind of input.

    Raises FileRefused if the file does not exist or is not of its format.
    """
    path = Path(path)
    if path.is_dir():
        if files := files_below(path):
            return FilesOfRows({file: open_bitmaps(file, skip_malformed=skip_malformed) for file in files})
        return PictureRows(pictures_in(path), skip_malformed=skip_malformed)
    check_is_file(path)
    suffix = path.suffix.lower()
    if suffix in STROKE_SUFFIXES:
        return DrawnRows(open_strokes(path, skip_malformed=skip_malformed))
    if suffix in PICTURE_SUFFIXES:
        return PictureRows([path], skip_malformed=skip_malformed)
    if suffix == ".npy":
        return read_bitmaps(path)
    if suffix == ".parquet":
        from .parquet.rows import ParquetRows  # imports pyarrow, which other formats do not need

        rows = ParquetRows(path)
        if skip_malformed:
            rows.skip_malformed()
        return rows
    raise unknown_ending(path, (".npy", ".parquet", *STROKE_SUFFIXES))


def check_is_file(path: Path) -> None:
    """Raise FileRefused for a pipe or device, whose opening may wait for ever; a missing file passes."""
    if path.exists() and not path.is_file():
        way = "copy its contents to a file"
        if path.suffix.lower() in _FROM_STDIN:
            way += f", or score it with `sketchbatch score - < {shlex.quote(str(path))}`"
        raise FileRefused(f"{path}: expected a file, got a pipe or device; {way}")


def unknown_ending(path: Path, suffixes: Sequence[str]) -> FileRefused:
    """Return the error for a file with none of `suffixes` and no ending of a picture: what it is, and the endings."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as exc:
        return FileRefused(f"{path}: cannot be read: {reason_of(exc)}")
    found = got(head, str(path)) if describe(head) else repr(path.suffix)
    if path.suffix.lower() in TABLE_SUFFIXES:
        found += f"; {HOW_TO_CONVERT}"
    return FileRefused(f"{path}: expected {', '.join(suffixes)} or {PICTURES}; got {found}")


def draw_strokes(strokes: list[Stroke]) -> NDArray[np.uint8]:
    """Render the strokes of a file as one bitmap, (28, 28); simplify them first if their units are not Google's."""
    has_times = any(len(stroke) > 2 for stroke in strokes)
    return render(simplify(strokes) if has_times or not is_simplified(strokes) else strokes)
