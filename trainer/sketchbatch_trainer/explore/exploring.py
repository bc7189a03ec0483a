"""Read drawings in Google's layout and collect their statistics, for `sketchbatch-train explore`.

Flow: `find_files` -> one pass over each file -> `FolderStatistics`. Files may be larger than the memory, which holds
only sums, counts, small samples, and 8 bytes per bitmap to find copies. This module does not import the page.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.atomic import room_for
from sketchbatch_client.drawings.folders import by_label, files_with_suffix
from sketchbatch_client.drawings.rasterize import rasterize_all
from sketchbatch_client.drawings.readers import (
    BitmapFile,
    BitmapRows,
    Bitmaps,
    MalformedRows,
    labelled_files,
    malformed_in,
    open_bitmaps,
    source_of,
)
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import STROKE_SUFFIXES, Malformed, open_strokes
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.label_names import listed

from ..errors import DrawingsRefused
from .drawing_statistics import (
    BITMAPS,
    NEAR_EMPTY,
    RAW,
    SIMPLIFIED,
    BitmapStatistics,
    ClassStatistics,
    FolderStatistics,
    Skipped,
    StrokeStatistics,
    has_times,
)
from .similarity import find_copies, find_neighbours

MAX_DRAWN = 1000
"""Largest number of bitmaps of a class that are rendered from strokes if there is no .npy file."""

_EMPTIEST_KEPT = 8  # number of bitmaps kept for each class, those with the least ink
_BLOCK_ROWS = 8192  # bitmaps that are read at once: 6 MB, and 26 MB as floats

Files = dict[str, Path]  # the files of a class by kind
Advance = Callable[[int], object]  # called with the number of drawings read since the last call
Progress = Callable[[str, int], Advance]  # called with the name and the number of drawings of each file


def find_files(folder: Path, *, skip_malformed: bool = False) -> dict[str, Files]:
    """Return the files of each label by kind, in the order of the labels.

    In Google's layout a label may have files of several kinds. Files in binary/ count as simplified. Any other layout
    is that of `labelled_files`; there a file of strokes counts as raw if its first drawing has times, and otherwise as
    simplified.

    Raises:
        FileRefused: The folder does not exist, has no file of drawings, or has two files of one kind and label; or the
            first drawing of a file is malformed, and `skip_malformed` is not set.
    """
    found: dict[str, Files] = {}
    for kind, name, suffix in (
        (SIMPLIFIED, "binary", ".bin"),
        (SIMPLIFIED, SIMPLIFIED, ".ndjson"),
        (RAW, RAW, ".ndjson"),
    ):
        for label, path in by_label(_files(folder / name, suffix)).items():
            found.setdefault(label, {})[kind] = path  # simplified/ replaces binary/, which has the same drawings
    for label, path in by_label(_files(folder / BITMAPS, ".npy") or _files(folder, ".npy")).items():
        found.setdefault(label, {})[BITMAPS] = path
    if not found:
        found = {label: {_kind_of(path, skip_malformed): path} for label, path in labelled_files(folder).items()}
    return {label: found[label] for label in sorted(found, key=str.casefold)}


def gather(
    folder: Path,
    files: dict[str, Files],
    *,
    rows: int | None = None,
    skip_malformed: bool = False,
    progress: Progress = lambda name, rows: lambda done: None,
) -> FolderStatistics:
    """Read the first `rows` drawings (None = all) of every file, and return their statistics.

    Raises:
        FileRefused: A file is malformed; malformed lines, rows and pictures are skipped if `skip_malformed` is set.
        DrawingsRefused: A file has no drawing.
        DiskFull: The disk has no space for a copy of the bitmaps of pictures or Parquet files.
    """
    reader = _Reader(rows, skip_malformed, progress)
    classes = tuple(reader.class_statistics(label, own) for label, own in files.items())
    if empty := [path for each in classes for kind, path in files[each.label].items() if each.part(kind) is None]:
        number, names = "a file" if len(empty) == 1 else f"{len(empty)} files", listed([str(path) for path in empty])
        raise DrawingsRefused(
            f"{folder}: expected drawings in every file, got {number} without any: {names}; remove "
            "such files, or choose other classes with --classes"
        )
    with_bitmaps = [each.bitmaps for each in classes if each.bitmaps]
    progress("comparing bitmaps", 0)
    return FolderStatistics(
        folder=folder,
        source=source_of(folder),
        classes=classes,
        copies=find_copies([each.digests for each in with_bitmaps]) if with_bitmaps else None,
        neighbours=find_neighbours([each.bitmaps for each in with_bitmaps]) if len(with_bitmaps) > 1 else None,
    )


def _files(folder: Path, suffix: str) -> list[Path]:
    return files_with_suffix(folder, (suffix,)) if folder.is_dir() else []


def _kind_of(path: Path, skip_malformed: bool) -> str:
    if path.suffix.lower() not in STROKE_SUFFIXES or path.is_dir():
        return BITMAPS
    try:
        file = open_strokes(path)
    except FileRefused:
        if not skip_malformed:
            raise
        file = open_strokes(path, skip_malformed=True)  # reads the whole file
    first = next(iter(file), None)
    return RAW if first and has_times(first) else SIMPLIFIED


@dataclass(frozen=True, slots=True)
class _Reader:
    rows: int | None
    skip_malformed: bool
    progress: Progress

    def class_statistics(self, label: str, own: Files) -> ClassStatistics:
        skipped: dict[str, Skipped] = {}
        return ClassStatistics(
            label=label,
            simplified=self._strokes(own, SIMPLIFIED, skipped),
            raw=self._strokes(own, RAW, skipped),
            bitmaps=self._bitmaps(own, skipped),
            skipped=skipped,
        )

    def _strokes(self, own: Files, kind: str, skipped: dict[str, Skipped]) -> StrokeStatistics | None:
        if kind not in own:
            return None
        path = own[kind]
        file = open_strokes(path, skip_malformed=self.skip_malformed)
        _count_skipped(skipped, kind, path, [(path, file)])
        statistics = StrokeStatistics()
        rows = len(file) if self.rows is None else min(self.rows, len(file))
        advance = self.progress(f"{path.parent.name}/{path.name}", rows)
        for drawing in islice(file, rows):
            statistics.add(drawing)
            advance(1)
        return statistics if statistics.drawings else None

    def _bitmaps(self, own: Files, skipped: dict[str, Skipped]) -> BitmapStatistics | None:
        """Read the bitmaps of a class or, without any, render bitmaps from the first drawings of its stroke file."""
        path = own[BITMAPS] if BITMAPS in own else own[SIMPLIFIED] if SIMPLIFIED in own else own[RAW]
        if BITMAPS in own:
            rows = open_bitmaps(path, skip_malformed=self.skip_malformed)
            _count_skipped(skipped, BITMAPS, path, malformed_in(path, rows))
            bitmaps = rows.head(self.rows) if isinstance(rows, BitmapFile) else _copied(rows, self.rows)
        else:
            bitmaps = self._drawn(path, is_simplified=SIMPLIFIED in own)
        advance = self.progress(f"{path.parent.name}/{path.name}", len(bitmaps))
        return _bitmap_statistics(bitmaps, advance, is_drawn=BITMAPS not in own) if len(bitmaps) else None

    def _drawn(self, path: Path, *, is_simplified: bool) -> Bitmaps:
        file = open_strokes(path, skip_malformed=self.skip_malformed)
        first = islice(file, MAX_DRAWN if self.rows is None else min(self.rows, MAX_DRAWN))
        drawings = [each.strokes if is_simplified else simplify(each.strokes) for each in first]
        return rasterize_all(drawings)


def _copied(rows: BitmapRows, limit: int | None) -> Bitmaps:
    """Return the first `limit` bitmaps of pictures or Parquet, as a copy on disk: they may be larger than the memory.

    Raises DiskFull if the folder of temporary files has no space. The system removes the copy with the last reference.
    """
    number = len(range(len(rows))[:limit])
    if not number:
        return np.empty((0, 28, 28), np.uint8)
    with room_for(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        for start in range(0, number, _BLOCK_ROWS):
            file.write(rows[start : min(start + _BLOCK_ROWS, number)].tobytes())
        file.flush()
        return np.memmap(file, np.uint8, "r", shape=(number, 28, 28))


def _count_skipped(
    skipped: dict[str, Skipped], kind: str, path: Path, parts: Iterable[tuple[Path, MalformedRows]]
) -> None:
    """Add what was skipped in the files `parts` of the input `path`, if there is anything."""
    found = [(file, rows) for file, rows in parts if rows.malformed]
    if found:
        file, rows = found[0]
        inner = "" if file == path else f"{file.relative_to(path)}, "
        first = inner + _place(file, rows.malformed[0])
        skipped[kind] = Skipped(path.name, sum(rows.malformed_count for _, rows in found), first)


def _place(file: Path, malformed: Malformed) -> str:
    """Return the place of a malformed drawing as the readers name it, and the reason."""
    if file.is_dir():  # of pictures, whose reasons begin with their paths
        return malformed.reason.removeprefix(f"{file}/")
    is_line = file.suffix.lower() in STROKE_SUFFIXES
    return f"{f'line {malformed.number}' if is_line else f'row {malformed.number - 1}'}: {malformed.reason}"


def _bitmap_statistics(bitmaps: BitmapFile | Bitmaps, advance: Advance, *, is_drawn: bool) -> BitmapStatistics:
    total, squares = np.zeros((2, 28, 28))
    ink = np.zeros(len(bitmaps))
    digests = np.zeros(len(bitmaps), np.uint64)
    for start in range(0, len(bitmaps), _BLOCK_ROWS):
        block = bitmaps[start : start + _BLOCK_ROWS]
        rows = slice(start, start + len(block))
        total += block.sum(axis=0, dtype=np.float64)
        squares += np.square(block, dtype=np.float64).sum(axis=0)
        ink[rows] = block.mean(axis=(1, 2)) / 255
        digests[rows] = _digests(block)
        advance(len(block))
    mean = total / len(bitmaps)
    return BitmapStatistics(
        bitmaps=bitmaps,
        is_drawn=is_drawn,
        mean=mean,
        deviation=np.sqrt(np.maximum(squares / len(bitmaps) - mean**2, 0)),
        ink=Counter(np.rint(ink * 1000).astype(int).tolist()),
        digests=digests,
        near_empty=int((ink < NEAR_EMPTY).sum()),
        emptiest=tuple((int(row), float(ink[row])) for row in ink.argsort(kind="stable")[:_EMPTIEST_KEPT]),
    )


def _digests(bitmaps: Bitmaps) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in bitmaps), "<u8")
