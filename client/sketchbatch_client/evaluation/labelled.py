"""Opens labelled drawings (a file, or a folder of pictures, a label), and says which of them the game recognised."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..drawings.readers import BitmapRows, DrawnRows, PictureRows, labelled_files, open_bitmaps, source_of
from ..drawings.strokes import Malformed, StrokeFile, open_strokes
from ..errors import FileRefused

Flags = NDArray[np.int8]  # (rows,), 1 = the game recognised it, 0 = not, -1 = not known

UNKNOWN = -1
"""Of a flag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledDrawings:
    """The drawings of a folder that a model can be judged by."""

    source: str
    """Where they come from."""
    bitmaps: dict[Path, BitmapRows]
    """Files whose label the model knows."""
    passed_over: tuple[str, ...]
    """Labels the model does not know."""
    skips_malformed: bool = False
    """Whether lines, records and pictures that are no drawing were left out."""

    @property
    def malformed_count(self) -> int:
        """How many were left out."""
        return sum(rows.malformed_count for _, rows in self._skipping())

    @property
    def malformed(self) -> list[tuple[Path, Malformed]]:
        """The first of those of each file."""
        return [(file, each) for file, rows in self._skipping() for each in rows.malformed]

    def place(self, file: Path, row: int) -> tuple[Path, int]:
        """Where to look for a row of `bitmaps[file]`: the file, or picture, and the row there, from 0."""
        rows = self.bitmaps[file]
        if isinstance(rows, PictureRows):
            return rows.paths[row], 0
        return file, rows.file.number_of(row) - 1 if isinstance(rows, DrawnRows) else row

    def _skipping(self) -> list[tuple[Path, DrawnRows | PictureRows]]:
        return [(file, rows) for file, rows in self.bitmaps.items() if isinstance(rows, DrawnRows | PictureRows)]


def open_labelled(folder: Path, labels: tuple[str, ...], *, skip_malformed: bool = False) -> LabelledDrawings:
    """Opens the files of `folder` that are named after one of `labels`.

    Args:
        folder: As `labelled_files` takes it.
        labels: Those that the model knows, or all models that are to be compared.
        skip_malformed: Leave out what is no drawing, and count it. Otherwise the evaluation ends there.

    Raises:
        FileRefused: There is no such folder, no row in it with one of the labels, or a file is not what it should be.
    """
    files = labelled_files(folder)
    bitmaps = {
        file: open_bitmaps(file, skip_malformed=skip_malformed) for label, file in files.items() if label in labels
    }
    if not sum(map(len, bitmaps.values())):
        raise FileRefused(f"{folder}: expected drawings of {_some(labels)}, got {_some(tuple(files))}")
    return LabelledDrawings(
        source=source_of(folder),
        bitmaps=bitmaps,
        passed_over=tuple(label for label in files if label not in labels),
        skips_malformed=skip_malformed,
    )


class RecognizedFlags:
    """Whether the game recognised drawings, read from the strokes when it is asked for, a file at a time.

    Row i of numpy_bitmap/NAME.npy is line i of simplified/NAME.ndjson beside it, for as many lines as that has.
    """

    def __init__(self, drawings: LabelledDrawings) -> None:
        self._drawings = drawings
        self._file: Path | None = None  # whose strokes are open
        self._strokes: StrokeFile | None = None

    def __call__(self, file: Path, rows: range) -> Flags:
        """The flags of these rows of a file. Raises FileRefused at a malformed line, unless those are skipped."""
        if file != self._file:
            self._file, self._strokes = file, self._open(file)
        flags = np.full(len(rows), UNKNOWN, np.int8)
        if self._strokes:
            for row in rows[: max(0, len(self._strokes) - rows.start)]:
                flags[row - rows.start] = self._flag(self._strokes, row)
            self._strokes.release_pages()
        return flags

    def _open(self, file: Path) -> StrokeFile | None:
        rows = self._drawings.bitmaps[file]
        if isinstance(rows, DrawnRows):
            return rows.file
        beside = file.parent.parent / "simplified" / f"{file.stem}.ndjson"
        return open_strokes(beside) if file.parent.name == "numpy_bitmap" and beside.is_file() else None

    def _flag(self, strokes: StrokeFile, row: int) -> int:
        try:
            return strokes[row].is_recognized
        except FileRefused:
            if not self._drawings.skips_malformed:
                raise
            return UNKNOWN


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
