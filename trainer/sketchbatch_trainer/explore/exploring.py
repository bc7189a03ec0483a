"""Gathers figures of drawings in Google's layout: what `sketchbatch-train explore` shows.

Flow: `find_files` -> one pass over each file -> `Figures`. Each class keeps running sums, counts and small fixed
samples, and 8 bytes a bitmap to find copies by; so files of gigabytes can be read. Knows nothing of the page.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.rasterize import rasterize_all
from sketchbatch_client.drawings.readers import Bitmaps, read_bitmaps, source_of
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import open_strokes

from ..errors import DrawingsRefused
from .figures import BITMAPS, NEAR_EMPTY, RAW, SIMPLIFIED, BitmapFigures, ClassFigures, Figures, StrokeFigures
from .similarity import find_copies, find_neighbours

DRAWN = 1000
"""Most bitmaps of a class that are drawn here, where there is no .npy file of it."""

_EMPTIEST = 8  # bitmaps kept of each class, to show
_BLOCK_ROWS = 8192  # bitmaps at a time: 6 MB, and 26 MB of floats

Files = dict[str, Path]  # by kind
Tick = Callable[[int], object]  # called with how many more drawings were read
Watch = Callable[[str, int], Tick]  # called with each file's name and number of drawings, before they are read


def find_files(folder: Path, labels: tuple[str, ...] | None) -> dict[str, Files]:
    """The files of each label by kind, in the order of `labels`; None = every label there, in order of name.

    Raises:
        DrawingsRefused: There is no such folder, no file in it, or none of a label.
    """
    found: dict[str, Files] = {}
    for kind in (SIMPLIFIED, RAW):
        for path in sorted((folder / kind).glob("[!.]*.ndjson")):
            found.setdefault(path.stem, {})[kind] = path
    for path in sorted((folder / BITMAPS).glob("[!.]*.npy")) or sorted(folder.glob("[!.]*.npy")):
        found.setdefault(path.stem, {})[BITMAPS] = path
    if not found:
        raise DrawingsRefused(f"{folder}: no {BITMAPS}/NAME.npy, {SIMPLIFIED}/NAME.ndjson or {RAW}/NAME.ndjson there")
    missing = [label for label in labels or () if label not in found]
    if missing:
        raise DrawingsRefused(f"{folder}: no drawings of {', '.join(missing)}; there are {len(found)} classes there")
    return {label: found[label] for label in dict.fromkeys(labels or sorted(found, key=str.casefold))}


def gather(
    folder: Path,
    files: dict[str, Files],
    *,
    rows: int | None = None,
    skip_malformed: bool = False,
    watch: Watch = lambda name, rows: lambda done: None,
) -> Figures:
    """Reads the first `rows` drawings (None = all) of every file once.

    Raises:
        FileRefused: A file is not what it should be; of a malformed line only without `skip_malformed`.
        DrawingsRefused: There is no drawing in any of them.
    """
    reading = _Reading(rows, skip_malformed, watch)
    classes = tuple(reading.class_figures(label, own) for label, own in files.items())
    if not any(each.parts for each in classes):
        raise DrawingsRefused(f"{folder}: the files of {', '.join(files)} hold no drawing")
    drawn = [each.bitmaps for each in classes if each.bitmaps]
    watch("comparing bitmaps", 0)
    return Figures(
        folder=folder,
        source=source_of(folder),
        classes=classes,
        copies=find_copies([each.digests for each in drawn]) if drawn else None,
        neighbours=find_neighbours([each.bitmaps for each in drawn]) if len(drawn) > 1 else None,
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    rows: int | None
    skip_malformed: bool
    watch: Watch

    def class_figures(self, label: str, own: Files) -> ClassFigures:
        return ClassFigures(
            label=label,
            simplified=self._strokes(own[SIMPLIFIED]) if SIMPLIFIED in own else None,
            raw=self._strokes(own[RAW]) if RAW in own else None,
            bitmaps=self._bitmaps(own),
        )

    def _strokes(self, path: Path) -> StrokeFigures | None:
        file = open_strokes(path, skip_malformed=self.skip_malformed)
        figures = StrokeFigures(path, malformed=file.malformed_count)
        if file.malformed:
            figures.first_malformed = f"line {file.malformed[0].number}: {file.malformed[0].reason}"
        tick = self.watch(
            f"{path.parent.name}/{path.name}", len(file) if self.rows is None else min(self.rows, len(file))
        )
        for drawing in islice(file, self.rows):
            figures.add(drawing)
            tick(1)
        return figures if figures.drawings else None

    def _bitmaps(self, own: Files) -> BitmapFigures | None:
        """Those of the .npy file, or else drawn from the first strokes."""
        path = own[BITMAPS] if BITMAPS in own else own[SIMPLIFIED] if SIMPLIFIED in own else own[RAW]
        bitmaps = read_bitmaps(path)[: self.rows] if BITMAPS in own else self._drawn(path)
        tick = self.watch(f"{path.parent.name}/{path.name}", len(bitmaps))
        return _summed(bitmaps, tick, is_drawn=BITMAPS not in own) if len(bitmaps) else None

    def _drawn(self, path: Path) -> Bitmaps:
        file = open_strokes(path, skip_malformed=self.skip_malformed)
        first = islice(file, DRAWN if self.rows is None else min(self.rows, DRAWN))
        drawings = [each.strokes if path.parent.name == SIMPLIFIED else simplify(each.strokes) for each in first]
        return rasterize_all(drawings)


def _summed(bitmaps: Bitmaps, tick: Tick, *, is_drawn: bool) -> BitmapFigures:
    total, squares = np.zeros((2, 28, 28))
    ink = np.zeros(len(bitmaps))
    digests = np.zeros(len(bitmaps), np.uint64)
    for start in range(0, len(bitmaps), _BLOCK_ROWS):
        block = bitmaps[start : start + _BLOCK_ROWS]
        total += block.sum(axis=0, dtype=np.float64)
        squares += np.square(block, dtype=np.float64).sum(axis=0)
        ink[start : start + len(block)] = block.mean(axis=(1, 2)) / 255
        digests[start : start + len(block)] = _digests(block)
        tick(len(block))
    mean = total / len(bitmaps)
    emptiest = ink.argsort(kind="stable")[:_EMPTIEST]
    return BitmapFigures(
        bitmaps=bitmaps,
        is_drawn=is_drawn,
        mean=mean,
        deviation=np.sqrt(np.maximum(squares / len(bitmaps) - mean**2, 0)),
        ink=Counter(np.rint(ink * 1000).astype(int).tolist()),
        digests=digests,
        near_empty=int((ink < NEAR_EMPTY).sum()),
        emptiest=tuple((int(row), float(ink[row])) for row in emptiest),
    )


def _digests(bitmaps: Bitmaps) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in bitmaps), "<u8")
