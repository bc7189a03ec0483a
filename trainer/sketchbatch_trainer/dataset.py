"""Prepares labelled drawings: opens them by class and splits them into train, validation and test.

The side of a drawing follows from its bitmap alone (BLAKE2b of its 784 bytes), so it is the same in every run, on every
machine and for any choice of classes, and copies of one bitmap never stand on two sides. Bitmaps stay in their
memory-mapped files until a step takes them: all 50 million drawings cost 8 bytes each.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import (
    SOURCE_NOTE,
    Bitmaps,
    label_of,
    labelled_files,
    open_bitmaps,
    read_bitmaps,
    source_of,
)
from sketchbatch_client.evaluation.labelled import Flags, RecognizedFlags

from .errors import DrawingsRefused

TEST_PERCENT = 10
VALIDATION_PERCENT = 10

_BLOCK_ROWS = 16384  # 12.8 MB


@dataclass(frozen=True, slots=True)
class Rows:
    """Drawings with their classes, in order of class, then of row."""

    files: tuple[Bitmaps, ...]
    """For each class the bitmaps of its file, memory-mapped: uint8, (rows, 28, 28), 0 = paper, 255 = ink."""

    class_index: NDArray[np.int32]
    """(rows,), index into the labels."""

    row: NDArray[np.int32]
    """(rows,), index into the file of the class."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: NDArray[np.int64] | slice) -> tuple[Bitmaps, NDArray[np.int32]]:
        """Reads the bitmaps at some places, and their class index, in the order asked for."""
        class_index, row = self.class_index[places], self.row[places]
        bitmaps = np.empty((len(row), 28, 28), np.uint8)
        for index in np.unique(class_index):
            here = class_index == index
            bitmaps[here] = self.files[index][row[here]]
        return bitmaps, class_index

    def blocks(self, rows: int = _BLOCK_ROWS) -> Iterator[tuple[Bitmaps, NDArray[np.int32]]]:
        """Reads all of them, in order, some at a time."""
        for start in range(0, len(self), rows):
            yield self.take(slice(start, start + rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawings:
    """The three sides of one split."""

    labels: tuple[str, ...]
    source: str
    """Where the drawings come from, for people."""
    digest: str
    """SHA-256 of every bitmap and label, all sides, in order."""
    train: Rows
    validation: Rows
    test: Rows
    recognized: tuple[NDArray[np.int8], ...]
    """For each class, for each of its test rows in order: 1 = the game recognised it, 0 = not, -1 = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which drawings to read."""

    folder: Path
    """In Google's layout; or any other that `sketchbatch_client.drawings.readers.labelled_files` knows."""
    labels: tuple[str, ...]
    rows_per_class: int | None = None
    """The first so many of each label; None = all."""
    source: str = ""
    """Where they come from; empty = what the folder says."""
    drawn: Path | None = None
    """Where to draw those that are not bitmaps yet (strokes, pictures); None = they are refused."""
    skip_malformed: bool = False
    """Leave out lines and pictures that are no drawing."""


def read_drawings(wanted: Wanted, progress: Callable[[int], object] = lambda rows: None) -> Drawings:
    """Opens the drawings wanted and splits them; `progress` hears of rows done.

    Raises:
        FileRefused: A file is not what it should be.
        DrawingsRefused: A label has no file, is named twice, or has too few drawings for three sides; or `source`
            would hide that the drawings are synthetic.
    """
    labels = wanted.labels
    paths = labelled_files(wanted.folder)
    _check_labels(wanted.folder, labels, paths)
    noted = source_of(wanted.folder)
    if wanted.source and noted.startswith("synthetic"):
        raise DrawingsRefused(f"{wanted.folder}: its drawings are {noted}; they cannot pass for {wanted.source}")
    files = tuple(_mapped(paths[label], wanted)[: wanted.rows_per_class] for label in labels)
    digest = hashlib.sha256()
    sides = []
    for label, bitmaps in zip(labels, files, strict=True):
        digest.update(label.encode() + b"\0")
        sides.append(_sides(bitmaps, digest.update, progress))
        if not {0, 1, 2} <= set(np.unique(sides[-1]).tolist()):
            raise DrawingsRefused(
                f"{paths[label]}: expected drawings enough for training, validation and test, got {len(bitmaps)}"
            )
    train, validation, test = (_side(files, sides, number) for number in range(3))
    return Drawings(
        labels=labels,
        source=wanted.source or noted,
        digest=digest.hexdigest(),
        train=train,
        validation=validation,
        test=test,
        recognized=tuple(
            _recognized(wanted, paths[label], test.row[test.class_index == index]) for index, label in enumerate(labels)
        ),
    )


def count_rows(wanted: Wanted) -> int:
    """About how many drawings `read_drawings` will read, for a bar."""
    paths = labelled_files(wanted.folder)
    rows = [
        len(open_bitmaps(paths[label], skip_malformed=wanted.skip_malformed))
        for label in wanted.labels
        if label in paths
    ]
    return sum(min(each, wanted.rows_per_class or each) for each in rows)


def write_labelled(folder: Path, rows: Rows, labels: tuple[str, ...], source: str) -> None:
    """Writes NAME.npy, uint8 (rows, 784), for each label, and a note of where the drawings come from."""
    for index, label in enumerate(labels):
        write_bitmaps(folder / f"{label}.npy", rows.take(np.flatnonzero(rows.class_index == index))[0])
    write_source(folder, source)


def write_bitmaps(path: Path, bitmaps: Bitmaps) -> None:
    """Writes one .npy in Google's layout, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, bitmaps.reshape(len(bitmaps), -1))


def write_source(folder: Path, source: str) -> None:
    """Notes where the drawings of `folder` come from."""
    with replacing(folder / SOURCE_NOTE) as partial:
        partial.write_text(source + "\n", encoding="utf-8")


def _check_labels(folder: Path, labels: tuple[str, ...], paths: dict[str, Path]) -> None:
    missing = [label for label in labels if label not in paths]
    if missing:
        raise DrawingsRefused(f"{folder}: no drawings of {', '.join(missing)}; there are {len(paths)} classes there")
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise DrawingsRefused(f"expected two or more different classes, got {', '.join(labels)}")


def _mapped(path: Path, wanted: Wanted) -> Bitmaps:
    """The bitmaps of a file, memory-mapped; strokes and pictures are drawn first."""
    if path.suffix == ".npy":
        return read_bitmaps(path)
    if wanted.drawn is None:
        raise DrawingsRefused(f"{path}: expected bitmaps (.npy); there is no folder to draw these into")
    rows = open_bitmaps(path, skip_malformed=wanted.skip_malformed)
    count = min(len(rows), wanted.rows_per_class or len(rows))
    copy = wanted.drawn / f"{label_of(path)}.npy"
    with replacing(copy) as partial:
        bitmaps = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, 784))
        for start in range(0, count, _BLOCK_ROWS):
            block = rows[start : min(start + _BLOCK_ROWS, count)]
            bitmaps[start : start + len(block)] = block.reshape(len(block), -1)
        bitmaps.flush()
    return read_bitmaps(copy)


def _recognized(wanted: Wanted, path: Path, rows: NDArray[np.int32]) -> Flags:
    """Return the recognised flags of some rows of a file."""
    bitmaps = open_bitmaps(path, skip_malformed=wanted.skip_malformed)
    return RecognizedFlags({path: bitmaps}, skip_malformed=wanted.skip_malformed).read(path, rows)


def _sides(bitmaps: Bitmaps, digest: Callable[[bytes], object], progress: Callable[[int], object]) -> NDArray[np.int8]:
    """0 = train, 1 = validation, 2 = test, for each row; `digest` hears of every byte, in order."""
    sides = np.empty(len(bitmaps), np.int8)
    for start in range(0, len(bitmaps), _BLOCK_ROWS):
        block = bitmaps[start : start + _BLOCK_ROWS].tobytes()
        digest(block)
        hashed = b"".join(
            hashlib.blake2b(block[at : at + 784], digest_size=8).digest() for at in range(0, len(block), 784)
        )
        percent = np.frombuffer(hashed, "<u8") % 100
        side = np.where(percent < TEST_PERCENT, 2, np.where(percent < TEST_PERCENT + VALIDATION_PERCENT, 1, 0))
        sides[start : start + len(side)] = side
        progress(len(side))
    return sides


def _side(files: tuple[Bitmaps, ...], sides: list[NDArray[np.int8]], number: int) -> Rows:
    rows = [np.flatnonzero(side == number).astype(np.int32) for side in sides]
    class_index = np.repeat(np.arange(len(files), dtype=np.int32), [len(each) for each in rows])
    return Rows(files, class_index, np.concatenate(rows))
