"""Prepares labelled drawings: reads them by class and splits them into train, validation and test.

The side of a drawing follows from its bitmap alone (BLAKE2b of its 784 bytes), so it is the same in every run, on every
machine and for any choice of classes, and copies of one bitmap never stand on two sides.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.readers import SOURCE_NOTE, Bitmaps, labelled_files, read_bitmaps, source_of

from .errors import DrawingsRefused

TEST_PERCENT = 10
VALIDATION_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Rows:
    """Drawings with their classes."""

    bitmaps: Bitmaps
    """uint8, (rows, 28, 28), 0 = paper, 255 = ink."""

    class_index: NDArray[np.int64]
    """(rows,), index into the labels."""

    def __len__(self) -> int:
        return len(self.bitmaps)


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


def read_drawings(
    folder: Path, labels: tuple[str, ...], rows_per_class: int | None = None, source: str = ""
) -> Drawings:
    """Reads the first `rows_per_class` drawings (None = all) of each label from `folder` and splits them.

    `source` says where they come from; empty = what the folder says.

    Raises:
        FileRefused: A file is not what it should be.
        DrawingsRefused: A label has no file, is named twice, or has too few drawings for three sides; or `source`
            would hide that the drawings are synthetic.
    """
    files = labelled_files(folder)
    _check_labels(folder, labels, files)
    noted = source_of(folder)
    if source and noted.startswith("synthetic"):
        raise DrawingsRefused(f"{folder}: its drawings are {noted}; they cannot pass for {source}")
    digest = hashlib.sha256()
    sides: list[list[tuple[Bitmaps, int]]] = [[], [], []]  # train, validation, test
    for index, label in enumerate(labels):
        bitmaps = np.array(read_bitmaps(files[label])[:rows_per_class])
        digest.update(label.encode() + b"\0" + bitmaps.tobytes())
        side = _sides(bitmaps)
        for number, rows in enumerate(sides):
            rows.append((bitmaps[side == number], index))
        if not set(side) >= {0, 1, 2}:
            raise DrawingsRefused(
                f"{files[label]}: expected drawings enough for training, validation and test, got {len(bitmaps)}"
            )
    train, validation, test = map(_gathered, sides)
    return Drawings(
        labels=labels,
        source=source or noted,
        digest=digest.hexdigest(),
        train=train,
        validation=validation,
        test=test,
    )


def write_labelled(folder: Path, rows: Rows, labels: tuple[str, ...], source: str) -> None:
    """Writes NAME.npy, uint8 (rows, 784), for each label, and a note of where the drawings come from."""
    for index, label in enumerate(labels):
        write_bitmaps(folder / f"{label}.npy", rows.bitmaps[rows.class_index == index])
    write_source(folder, source)


def write_bitmaps(path: Path, bitmaps: Bitmaps) -> None:
    """Writes one .npy in Google's layout, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, bitmaps.reshape(len(bitmaps), -1))


def write_source(folder: Path, source: str) -> None:
    """Notes where the drawings of `folder` come from."""
    with replacing(folder / SOURCE_NOTE) as partial:
        partial.write_text(source + "\n", encoding="utf-8")


def _check_labels(folder: Path, labels: tuple[str, ...], files: dict[str, Path]) -> None:
    missing = [label for label in labels if label not in files]
    if missing:
        raise DrawingsRefused(f"{folder}: no drawings of {', '.join(missing)}; there are {len(files)} classes there")
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise DrawingsRefused(f"expected two or more different classes, got {', '.join(labels)}")


def _sides(bitmaps: Bitmaps) -> NDArray[np.int64]:
    """0 = train, 1 = validation, 2 = test, for each row."""
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in bitmaps)
    percent = np.frombuffer(digests, "<u8") % 100
    return np.where(percent < TEST_PERCENT, 2, np.where(percent < TEST_PERCENT + VALIDATION_PERCENT, 1, 0))


def _gathered(classes: list[tuple[Bitmaps, int]]) -> Rows:
    return Rows(
        np.concatenate([bitmaps for bitmaps, _ in classes]),
        np.concatenate([np.full(len(bitmaps), index) for bitmaps, index in classes]),
    )
