"""Read the labelled drawings on which scalings are compared: some of a folder, or synthetic sketches."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.readers import Bitmaps, label_of
from sketchbatch_client.evaluation.labelled import open_labelled

from .. import synthetic
from .labels import Labels

MAX_DRAWINGS = 1000
"""Largest number of drawings in total: enough to see a wrong scaling, few enough for some seconds."""

_SKETCHES = 200  # of each class; drawing one takes a millisecond
_SEED = 1  # the sketches differ from those of `sketchbatch-train sketch`, whose default seed is 0


@dataclass(frozen=True, slots=True)
class TrialDrawings:
    """Drawings with their classes."""

    bitmaps: Bitmaps
    """uint8, (rows, 28, 28), 0 = paper, 255 = ink; sorted by class."""
    class_index: NDArray[np.int64]
    """(rows,): the index of each drawing's label."""
    source: str
    """Origin of the drawings, as text for people."""
    are_sketches: bool = False
    """True = synthetic sketches, which may differ from the drawings that the model was trained on."""


def read_drawings(folder: Path, labels: Labels) -> TrialDrawings:
    """Read the first drawings of each label, an equal number per label, `MAX_DRAWINGS` at most in total.

    The folder has one of the layouts of `sketchbatch_client.drawings.readers.labelled_files`.

    Raises:
        FileRefused: The folder has no drawings of the labels, or a file is malformed.
    """
    opened = open_labelled(folder, labels)
    by_file = list(opened.bitmaps.items())
    by_file = by_file[:: -(-len(by_file) // MAX_DRAWINGS)]  # with more labels than drawings: labels at equal distances
    bitmaps = [rows[: MAX_DRAWINGS // len(by_file)] for _, rows in by_file]
    index = [labels.index(label_of(file)) for file, _ in by_file]
    return TrialDrawings(np.concatenate(bitmaps), np.repeat(index, list(map(len, bitmaps))), opened.source)


@cache  # drawing takes a second
def sketch_drawings(labels: Labels) -> TrialDrawings | None:
    """Draw synthetic sketches of bear, cat and dog; None if these are not among the labels."""
    if not set(synthetic.LABELS) <= set(labels):
        return None
    bitmaps = [synthetic.draw(label, _SKETCHES, _SEED) for label in synthetic.LABELS]
    index = np.repeat([labels.index(label) for label in synthetic.LABELS], _SKETCHES)
    return TrialDrawings(np.concatenate(bitmaps), index, "synthetic sketches", are_sketches=True)
