"""Open labelled drawings, and read which of them the game recognised; each label has one file or picture folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..drawings.folders import find_labelled, held_out_folder, label_of, source_of
from ..drawings.passed_over import PassedOverList
from ..drawings.readers import BitmapRows, DrawnRows, LocatedRows, MalformedRows, malformed_in, open_bitmaps
from ..drawings.strokes import Malformed, StrokeFile, open_strokes
from ..errors import FileRefused
from ..label_names import compared, listed, nfc

Flags = NDArray[np.int8]  # (rows,), 1 = the game recognised the drawing, 0 = it did not, UNKNOWN = no flag

UNKNOWN = -1  # flag of a drawing of which it is unknown whether the game recognised it


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledDrawings:
    """The drawings in a folder, without the drawings whose label the model does not know."""

    source: str
    """Origin of the drawings."""
    bitmaps: dict[Path, BitmapRows]
    """Drawings by file; the model knows the label of each file."""
    passed_over: tuple[str, ...]
    """Labels of the folder that the model does not know; their files are not read."""
    skips_malformed: bool = False
    """Whether malformed lines, records and pictures are skipped."""
    others: PassedOverList = field(default_factory=PassedOverList)
    """Files and folders that are not read."""

    @property
    def malformed_count(self) -> int:
        """Number of skipped lines, records and pictures."""
        return sum(rows.malformed_count for _, rows in self._with_malformed())

    @property
    def malformed(self) -> list[tuple[Path, Malformed]]:
        """The first skipped lines, records and pictures of each file."""
        return [(file, each) for file, rows in self._with_malformed() for each in rows.malformed]

    def origin(self, file: Path, row: int) -> tuple[Path, int]:
        """Return where row `row` of `bitmaps[file]` comes from: the file or picture, and the row in it, from 0."""
        rows = self.bitmaps[file]
        return rows.locate(row) if isinstance(rows, LocatedRows) else (file, row)

    def _with_malformed(self) -> Iterator[tuple[Path, MalformedRows]]:
        for file, rows in self.bitmaps.items():
            yield from malformed_in(file, rows)


def open_labelled(
    folder: Path | str, labels: tuple[str, ...], *, skip_malformed: bool = False, owner: str = ""
) -> LabelledDrawings:
    """Open the files of `folder` that are named after one of `labels`; names are compared in NFC.

    The folder has one of the layouts of `find_labelled`. With `skip_malformed`, malformed drawings are skipped and
    counted; otherwise reading one raises FileRefused. `owner` names the model of the labels, for messages.

    Raises FileRefused if the folder does not exist, if it has no row with one of the labels, or if a file is malformed.
    """
    found, known = find_labelled(folder), set(map(nfc, labels))
    files = found.files
    bitmaps = {
        file: open_bitmaps(file, skip_malformed=skip_malformed) for label, file in files.items() if label in known
    }
    if not sum(map(len, bitmaps.values())):
        if bitmaps:
            raise FileRefused(f"{folder}: expected drawings, got none for {listed([*map(label_of, bitmaps)])}")
        whose = f"; name another model than {owner}, or rename the labels of the drawings" if owner else ""
        if held_out := held_out_folder(Path(folder)):
            whose = f"; this is the folder of a training: its held-out drawings are in {held_out}"
        if Path(folder) in files.values():
            whose = "; the label of these pictures is the name of their folder: give each label a folder of its own"
        raise FileRefused(f"{folder}: expected drawings of {compared(labels, tuple(files))}{whose}")
    return LabelledDrawings(
        source=source_of(Path(folder)),
        bitmaps=bitmaps,
        passed_over=tuple(label for label in files if label not in known),
        skips_malformed=skip_malformed,
        others=found.passed_over,
    )


class RecognizedFlags:
    """Reads for some rows of a labelled file whether the game recognised the drawings.

    Files of strokes contain this flag. The flags of FOLDER/numpy_bitmap/NAME.npy are read from
    FOLDER/simplified/NAME.ndjson, which has the same drawings in the same order, but may have fewer.
    """

    def __init__(self, bitmaps: Mapping[Path, BitmapRows], *, skip_malformed: bool = False) -> None:
        self._bitmaps = bitmaps
        self._skip_malformed = skip_malformed
        self._file: Path | None = None  # the file that `_strokes` belongs to
        self._strokes: StrokeFile | None = None

    def read(self, file: Path, rows: Sequence[int] | NDArray[np.integer]) -> Flags:
        """Return the flags of some rows; a malformed line gives UNKNOWN if it is skipped, else raises FileRefused.

        A flag that is missing or cannot be read is UNKNOWN, too.
        """
        if file != self._file:
            self._file, self._strokes = file, self._open(file)
        flags = np.full(len(rows), UNKNOWN, np.int8)
        if self._strokes:
            own_rows = np.asarray(rows)
            for index in np.flatnonzero(own_rows < len(self._strokes)):
                flags[index] = self._flag(self._strokes, int(own_rows[index]))
            self._strokes.release()
        return flags

    def _open(self, file: Path) -> StrokeFile | None:
        rows = self._bitmaps[file]
        if isinstance(rows, DrawnRows):
            return rows.file
        simplified = file.parent.parent / "simplified" / f"{file.stem}.ndjson"
        if file.parent.name != "numpy_bitmap" or not simplified.is_file():
            return None
        return StrokeFile(simplified) if self._skip_malformed else open_strokes(simplified)  # row i is line i + 1

    def _flag(self, strokes: StrokeFile, row: int) -> int:
        try:
            drawing = strokes[row]
        except FileRefused:
            if not self._skip_malformed:
                raise
            return UNKNOWN
        return UNKNOWN if drawing.is_recognized is None else drawing.is_recognized
