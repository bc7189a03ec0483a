"""Open labelled drawings by class and divide them into a training, a validation and a test split (`hold_out`).

Bitmaps stay in their files until a step reads them. Each drawing takes 8 bytes of memory, so that 50 million drawings
fit.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import (
    SOURCE_NOTE,
    BitmapFile,
    Bitmaps,
    label_of,
    labelled_files,
    malformed_in,
    open_bitmaps,
    read_bitmaps,
    source_of,
)
from sketchbatch_client.evaluation.labelled import Flags, RecognizedFlags
from sketchbatch_client.evaluation.training_digests import Digests, digest_each, merged, sample_of
from sketchbatch_client.label_names import nfc

from .errors import DrawingsRefused
from .folder_contents import check_labels
from .hold_out import HELD_OUT_TENTH, TEST, TRAIN, VALIDATION, HoldOut, Splits

MIN_DRAWINGS = 3
"""Least number of different drawings of a class: one for each split."""
USEFUL_DRAWINGS = 50
"""Drawings of a class that make a useful model if the training starts from 345 classes (docs/training.md)."""
MEASURED_TEST_ROWS = 4000
"""Most test drawings that a training measures after each epoch, for the learning curves."""

_BLOCK_ROWS = 16384  # bitmaps that are read at once: 12.8 MB


@dataclass(frozen=True, slots=True)
class Split:
    """The drawings of one split with their classes; they are sorted by class, then by row in the file."""

    files: tuple[BitmapFile, ...]
    """The bitmaps of each class, read on access: uint8, (rows, 28, 28), 0 = paper, 255 = ink."""
    class_index: NDArray[np.int32]
    """(rows,): the index of each drawing's label."""
    row: NDArray[np.int32]
    """(rows,): the row of each drawing in the file of its class."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, indices: NDArray[np.int64] | slice) -> tuple[Bitmaps, NDArray[np.int32]]:
        """Read the bitmaps and class indices at `indices`, in the given order."""
        class_index, row = self.class_index[indices], self.row[indices]
        bitmaps = np.empty((len(row), 28, 28), np.uint8)
        for index in np.unique(class_index):
            is_of_class = class_index == index
            bitmaps[is_of_class] = self.files[index][row[is_of_class]]
        return bitmaps, class_index

    def spaced(self, rows: int) -> "Split":
        """Return at most `rows` drawings at equal distances, so that each class keeps its share."""
        kept = min(rows, len(self))
        indices = np.arange(kept) * len(self) // max(1, kept)
        return Split(self.files, self.class_index[indices], self.row[indices])

    def blocks(self, rows: int = _BLOCK_ROWS) -> Iterator[tuple[Bitmaps, NDArray[np.int32]]]:
        """Read all bitmaps and class indices in order, in blocks of at most `rows` drawings."""
        for start in range(0, len(self), rows):
            yield self.take(slice(start, start + rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The labelled drawings for one training, divided into a training, a validation and a test split."""

    labels: tuple[str, ...]
    source: str
    """Origin of the drawings, as text for people."""
    digest: str
    """SHA-256 over all labels and bitmaps of all splits, in order."""
    hold_out: HoldOut = HELD_OUT_TENTH
    train: Split
    validation: Split
    """Drawings that select the best epoch and the temperature; empty for folds of recipes without early stopping."""
    test: Split
    """Drawings that are held out; empty if all drawings train."""
    training_digests: Digests
    """Sample of the digests of the training split, of which a model file stores a copy."""
    recognized: tuple[NDArray[np.int8], ...]
    """For each class the flags of its test rows: 1 = recognised by the game, 0 = not recognised, -1 = unknown."""
    malformed: Mapping[str, int] = field(default_factory=dict)
    """Number of skipped lines or pictures of each class that has any."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of files of the folder that were not read, by ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """The drawings to read: folder, labels and limits."""

    folder: Path
    """A folder in Google's layout or another one that `sketchbatch_client.drawings.readers.labelled_files` accepts."""
    labels: tuple[str, ...]
    hold_out: HoldOut = HELD_OUT_TENTH
    needs_validation: bool = True
    """False = the folds of a cross-validation have no drawings for validation."""
    rows_per_class: int | None = None
    """Number of rows to read of each class, counted from the first row; None = all rows."""
    source: str = ""
    """Origin of the drawings; empty = the origin that the folder states."""
    rasterized: Path | None = None
    """Folder for the bitmaps rendered from strokes and pictures; None = strokes and pictures are refused."""
    skip_malformed: bool = False
    """True = leave out lines and pictures that are not drawings."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of files of the folder that are not read, by ending; see `folder_contents.find_others`."""


def read_dataset(request: DatasetRequest, progress: Callable[[int], object] = lambda rows: None) -> Dataset:
    """Open the requested drawings and split them; call `progress` with the number of rows of each finished block.

    Raises:
        FileRefused: A file has an unexpected format.
        DrawingsRefused: A label has no file, occurs twice, or has too few drawings for its splits; or
            `request.source` would replace the folder's note that its drawings are synthetic.
    """
    labels = tuple(map(nfc, request.labels))
    paths = labelled_files(request.folder)
    _check_labels(request.folder, labels, paths)
    noted = source_of(request.folder)
    if request.source and noted.startswith("synthetic"):
        raise DrawingsRefused(f"{request.folder}: the source must stay {noted!r}, got {request.source!r}")
    opened = [_open_bitmaps(paths[label], request) for label in labels]
    files = tuple(bitmaps.head(request.rows_per_class) for bitmaps, _ in opened)
    digest = hashlib.sha256()
    splits, samples = [], []
    for label, bitmaps in zip(labels, files, strict=True):
        digest.update(label.encode() + b"\0")
        digests = _digest(bitmaps, digest.update, progress)
        split = request.hold_out.assign(digests, needs_validation=request.needs_validation)
        _check_splits(paths[label], split, request)
        samples.append(sample_of(digests[split == TRAIN]))
        splits.append(split)
    train, validation, test = (_select(files, splits, split) for split in (TRAIN, VALIDATION, TEST))
    return Dataset(
        labels=labels,
        hold_out=request.hold_out,
        source=request.source or noted,
        digest=digest.hexdigest(),
        train=train,
        validation=validation,
        test=test,
        training_digests=merged(samples),
        recognized=tuple(
            _read_recognized(request, paths[label], test.row[test.class_index == index])
            for index, label in enumerate(labels)
        ),
        malformed={label: count for label, (_, count) in zip(labels, opened, strict=True) if count},
        passed_over=request.passed_over,
    )


def count_rows(request: DatasetRequest) -> int:
    """Estimate the number of drawings that `read_dataset` will read, for a progress bar."""
    paths = labelled_files(request.folder)
    found = [paths[label] for label in map(nfc, request.labels) if label in paths]
    rows = [len(open_bitmaps(path, skip_malformed=request.skip_malformed)) for path in found]
    return sum(min(each, request.rows_per_class or each) for each in rows)


def write_split(folder: Path, split: Split, labels: tuple[str, ...], source: str) -> None:
    """Write a file NAME.npy, uint8 (rows, 784), for each label, and a note on the origin of the drawings."""
    for index, label in enumerate(labels):
        write_bitmaps(folder / f"{label}.npy", split.take(np.flatnonzero(split.class_index == index))[0])
    write_source(folder, source)


def write_bitmaps(path: Path, bitmaps: Bitmaps) -> None:
    """Write bitmaps as a .npy file in Google's layout; replace an existing file atomically."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, bitmaps.reshape(len(bitmaps), -1))


def write_source(folder: Path, source: str) -> None:
    """Write the origin of the drawings into the note file of `folder`."""
    with replacing(folder / SOURCE_NOTE) as partial:
        partial.write_text(source + "\n", encoding="utf-8")


def _check_labels(folder: Path, labels: tuple[str, ...], paths: dict[str, Path]) -> None:
    check_labels(folder, labels, list(paths))
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise DrawingsRefused(
            f"expected two or more classes, got {', '.join(labels)}; name the folder above those of the classes"
        )


def _check_splits(path: Path, split: Splits, request: DatasetRequest) -> None:
    """Check that a class has drawings in every split that the division fills."""
    hold_out = request.hold_out
    wanted = {TRAIN} if hold_out.is_nothing else {TRAIN, VALIDATION, TEST}
    if hold_out.folds and not request.needs_validation:
        wanted.remove(VALIDATION)
    if wanted <= set(split):
        return
    if hold_out.folds:
        raise DrawingsRefused(
            f"{path}: expected drawings in every split of fold {hold_out}, got {len(split)} drawings in all; "
            "use fewer folds or more drawings"
        )
    raise DrawingsRefused(
        f"{path}: expected at least {MIN_DRAWINGS} different drawings, one each for training, "
        f"validation and test, got {len(split)}{' with copies' if len(split) >= MIN_DRAWINGS else ''}; "
        f"{USEFUL_DRAWINGS} or more make a useful model"
    )


def _open_bitmaps(path: Path, request: DatasetRequest) -> tuple[BitmapFile, int]:
    """Open the bitmaps of a file, and count its malformed drawings; first render strokes and pictures into a file."""
    if path.suffix.lower() == ".npy":
        return read_bitmaps(path), 0
    if request.rasterized is None:
        raise DrawingsRefused(f"{path}: must be bitmaps (.npy), because no folder for rendered bitmaps is named")
    rows = open_bitmaps(path, skip_malformed=request.skip_malformed)
    count = min(len(rows), request.rows_per_class or len(rows))
    write_source(request.rasterized, source_of(request.folder))
    rasterized = request.rasterized / f"{label_of(path)}.npy"
    with replacing(rasterized) as partial:
        bitmaps = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, 784))
        for start in range(0, count, _BLOCK_ROWS):
            block = rows[start : min(start + _BLOCK_ROWS, count)]
            bitmaps[start : start + len(block)] = block.reshape(len(block), -1)
        bitmaps.flush()
    return read_bitmaps(rasterized), sum(each.malformed_count for _, each in malformed_in(path, rows))


def _read_recognized(request: DatasetRequest, path: Path, rows: NDArray[np.int32]) -> Flags:
    """Return the recognised flags of the given rows of a file."""
    bitmaps = open_bitmaps(path, skip_malformed=request.skip_malformed)
    return RecognizedFlags({path: bitmaps}, skip_malformed=request.skip_malformed).read(path, rows)


def _digest(
    bitmaps: BitmapFile, update_digest: Callable[[bytes], object], progress: Callable[[int], object]
) -> Digests:
    """Return the digest of each row, and pass the bytes of all bitmaps to `update_digest` in order."""
    digests = np.empty(len(bitmaps), np.uint64)
    for start in range(0, len(bitmaps), _BLOCK_ROWS):
        block = bitmaps[start : start + _BLOCK_ROWS]
        update_digest(block.tobytes())
        digests[start : start + len(block)] = digest_each(block)
        progress(len(block))
    return digests


def _select(files: tuple[BitmapFile, ...], splits: list[Splits], wanted: int) -> Split:
    """Return the rows of the split `wanted`; `splits` has the split of each row of each file."""
    rows = [np.flatnonzero(split == wanted).astype(np.int32) for split in splits]
    class_index = np.repeat(np.arange(len(files), dtype=np.int32), [len(each) for each in rows])
    return Split(files, class_index, np.concatenate(rows))
