"""Find exact copies of bitmaps, and classes whose bitmaps are similar.

Two classes are similar if drawings of one are often nearest neighbours of drawings of the other. No model is trained.
The bitmaps of a sample are blurred before they are compared, so that equal lines one pixel apart count as near.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.readers import BitmapFile, Bitmaps

NEIGHBOURS = 10
"""Number of nearest neighbours that are counted for each drawing.

Ten neighbours classified drawings more accurately than 1 or 5 neighbours. Each method below has two accuracies: for
three classes of 1,000 drawings, and for ten classes of 400 (5-fold cross-validation, ../shared/data/quickdraw). Ten
neighbours: 71 and 69 %. Nearest class mean: 59 and 56 %. Linear discriminant: 68 and 60 %.
"""

_MAX_COMPARED = 20_000  # drawings of all classes together: comparing them takes about 20 s on two cores
_MAX_COMPARED_PER_CLASS = 1000
_COPY_GROUPS_SHOWN = 12
_COUPLES_SHOWN = 3  # couples of similar drawings for each pair of classes
_BLOCK_ROWS = 512  # 512 x 20,000 distances take 41 MB

Origin = tuple[int, int]  # class index of a bitmap, and its row in the file of this class
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Bitmaps that occur more than once, byte for byte."""

    extra: tuple[int, ...]
    """Number of bitmaps of each class that are a copy of an earlier bitmap of the class."""
    shared: int
    """Number of different bitmaps that occur in two or more classes."""
    groups: tuple[tuple[Origin, ...], ...]
    """The origins of the bitmaps in the largest groups of equal bitmaps; groups with several classes come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Similarity of two classes, which are given by class index."""

    first: int
    second: int
    share: float
    """Share of a drawing's neighbours that are in the other class, 0 to 1; the mean over both classes."""
    couples: tuple[tuple[Origin, Origin], ...]
    """Similar drawings, one of each class, the most similar couple first; no drawing occurs twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """How often the nearest neighbours of the drawings of one class belong to each class."""

    compared: tuple[int, ...]
    """Number of compared drawings of each class."""
    shares: NDArray[np.float64]
    """(classes, classes): rows = class of the drawing, columns = class of its neighbours; each row sums to 1."""
    pairs: tuple[Pair, ...]
    """Every pair of classes with a share above 0, most similar first."""


def find_copies(digests: Sequence[NDArray[np.uint64]]) -> Copies:
    """Find equal digests within and across classes; `digests` has one array, (rows,), for each class."""
    every = np.concatenate(digests)
    class_index = np.repeat(np.arange(len(digests)), [len(each) for each in digests])
    row = np.concatenate([np.arange(len(each)) for each in digests])
    values, counts = np.unique(every, return_counts=True)
    found: dict[int, list[Origin]] = {}
    for index in np.flatnonzero(np.isin(every, values[counts > 1])):
        found.setdefault(int(every[index]), []).append((int(class_index[index]), int(row[index])))
    groups = sorted(found.values(), key=lambda group: (_class_count(group) == 1, -len(group)))
    extra = [0] * len(digests)
    for group in groups:
        for class_in_group, times in Counter(index for index, _ in group).items():
            extra[class_in_group] += times - 1
    return Copies(
        extra=tuple(extra),
        shared=sum(_class_count(group) > 1 for group in groups),
        groups=tuple(tuple(group) for group in groups[:_COPY_GROUPS_SHOWN]),
    )


def find_neighbours(classes: Sequence[BitmapFile | Bitmaps]) -> Neighbours:
    """Find the nearest neighbours of an evenly spaced sample of each class; each class needs at least one row.

    If bitmaps of a class are equal, only one of them is compared. A neighbour has the weight 1 / (number of compared
    drawings of its class), so that a class with more drawings does not count as more similar.
    """
    limit = min(_MAX_COMPARED_PER_CLASS, max(2, _MAX_COMPARED // len(classes)))
    origins, bitmaps = _sampled(classes, limit)
    of_class = origins[:, 0]
    found, distances = _nearest(_blurred(bitmaps))
    counts = np.bincount(of_class, minlength=len(classes))
    shares = np.zeros((len(classes), len(classes)))
    np.add.at(shares, (np.repeat(of_class, found.shape[1]), of_class[found].ravel()), 1)
    shares /= counts
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    mutual = (shares + shares.T) / 2
    couples = _couples(origins, found, distances)
    pairs = [
        Pair(first=first, second=second, share=float(mutual[first, second]), couples=couples.get((first, second), ()))
        for first, second in zip(*np.triu(mutual, 1).nonzero(), strict=True)
    ]
    return Neighbours(
        compared=tuple(counts.tolist()), shares=shares, pairs=tuple(sorted(pairs, key=lambda pair: -pair.share))
    )


def _class_count(group: Sequence[Origin]) -> int:
    return len({index for index, _ in group})


def _sampled(classes: Sequence[BitmapFile | Bitmaps], limit: int) -> tuple[NDArray[np.int64], Bitmaps]:
    """Return origins, (drawings, 2), and bitmaps of at most `limit` different drawings of each class."""
    found: dict[tuple[int, bytes], tuple[int, int]] = {}
    for index, rows in enumerate(classes):
        for row in np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int):
            found.setdefault((index, rows[row : row + 1].tobytes()), (index, int(row)))
    bitmaps = np.frombuffer(b"".join(content for _, content in found), np.uint8)
    return np.array(list(found.values())), bitmaps.reshape(-1, 28, 28)


def _blurred(bitmaps: Bitmaps) -> Floats:
    """Blur twice by [1 2 1] / 4 along both axes and keep every second pixel: (drawings, 196)."""
    image: Floats = bitmaps.astype(np.float32) / np.float32(255)
    two, four = np.float32(2), np.float32(4)
    for _ in range(2):
        wide = np.pad(image, ((0, 0), (1, 1), (1, 1)))  # (drawings, 30, 30)
        tall = (wide[:, :-2] + two * wide[:, 1:-1] + wide[:, 2:]) / four  # (drawings, 28, 30)
        image = (tall[:, :, :-2] + two * tall[:, :, 1:-1] + tall[:, :, 2:]) / four  # (drawings, 28, 28)
    return image[:, ::2, ::2].reshape(len(image), -1)


def _nearest(points: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the nearest other points of each point, and the squared distances, each as (points, neighbours)."""
    many = min(NEIGHBOURS, len(points) - 1)
    squares = np.square(points).sum(axis=1)
    found = np.zeros((len(points), many), np.int64)
    distances = np.zeros((len(points), many), np.float32)
    for start in range(0, len(points), _BLOCK_ROWS):
        block = slice(start, min(start + _BLOCK_ROWS, len(points)))
        apart = squares[block, None] + squares - 2 * points[block] @ points.T  # (block, points)
        apart[np.arange(len(apart)), np.arange(block.start, block.stop)] = np.inf  # a point is not its own neighbour
        found[block] = apart.argpartition(many - 1, axis=1)[:, :many] if many else 0
        distances[block] = np.take_along_axis(apart, found[block], axis=1)
    return found, distances


def _couples(
    origins: NDArray[np.int64], found: NDArray[np.int64], distances: Floats
) -> dict[tuple[int, int], tuple[tuple[Origin, Origin], ...]]:
    """Return the most similar drawings for each pair of classes, as couples; the lower class index is first in each."""
    kept: dict[tuple[int, int], list[tuple[Origin, Origin]]] = {}
    for index in distances.argsort(axis=None, kind="stable"):
        first, second = sorted(map(tuple, origins[[index // found.shape[1], found.flat[index]]].tolist()))
        if first[0] == second[0]:
            continue
        couples = kept.setdefault((first[0], second[0]), [])
        if len(couples) < _COUPLES_SHOWN and not {first, second} & {origin for couple in couples for origin in couple}:
            couples.append((first, second))
    return {pair: tuple(couples) for pair, couples in kept.items()}
