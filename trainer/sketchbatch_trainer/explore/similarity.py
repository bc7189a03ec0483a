"""Finds bitmaps that are alike: exact copies, and classes whose drawings are each other's nearest neighbours.

The neighbours say what pixels alone would confuse, without training anything: each drawing of a sample is compared with
all the others, blurred so that a line a pixel away still counts as near.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.readers import Bitmaps

NEIGHBOURS = 10
"""Of 1, 5 and 10 these name most drawings right: 71 % of 1,000 bears, cats and dogs each, 69 % of 400 each of ten
classes (5-fold cross-validation on ../shared/data/quickdraw). The nearest class mean names 59 and 56 %, a linear
discriminant 68 and 60 %."""

_COMPARED = 20_000  # drawings in all: about 20 s on two cores
_COMPARED_PER_CLASS = 1000
_SHOWN_COPIES = 12  # groups
_SHOWN_COUPLES = 3  # of each pair of classes
_BLOCK_ROWS = 512  # 512 x 20,000 distances are 41 MB

Place = tuple[int, int]  # class index, row
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Bitmaps that occur more than once, byte for byte."""

    extra: tuple[int, ...]
    """By class: bitmaps of which an earlier copy stands in the same class."""
    shared: int
    """Different bitmaps that stand in two classes or more."""
    groups: tuple[tuple[Place, ...], ...]
    """The places of each of the largest groups of copies, those across classes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two classes, by index, and how much they are alike."""

    first: int
    second: int
    share: float
    """Of a drawing's nearest neighbours, those in the other class: mean over both classes, 0 to 1."""
    couples: tuple[tuple[Place, Place], ...]
    """Drawings of the first and second that are each other's near neighbours, nearest first; no drawing twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Which classes the nearest neighbours of a drawing belong to."""

    compared: tuple[int, ...]
    """Drawings compared, by class."""
    shares: NDArray[np.float64]
    """(classes, classes): of the neighbours of a row's drawings, the share in each class; rows sum to 1."""
    pairs: tuple[Pair, ...]
    """Every pair with a share above 0, most alike first."""


def find_copies(digests: Sequence[NDArray[np.uint64]]) -> Copies:
    """Finds equal digests within and across classes; `digests` has one array (rows,) for each class."""
    every = np.concatenate(digests)
    class_index = np.repeat(np.arange(len(digests)), [len(each) for each in digests])
    row = np.concatenate([np.arange(len(each)) for each in digests])
    values, counts = np.unique(every, return_counts=True)
    found: dict[int, list[Place]] = {}
    for at in np.flatnonzero(np.isin(every, values[counts > 1])):
        found.setdefault(int(every[at]), []).append((int(class_index[at]), int(row[at])))
    groups = sorted(found.values(), key=lambda group: (_classes(group) == 1, -len(group)))
    extra = [0] * len(digests)
    for group in groups:
        for index in {index for index, _ in group}:
            extra[index] += sum(each == index for each, _ in group) - 1
    return Copies(
        extra=tuple(extra),
        shared=sum(_classes(group) > 1 for group in groups),
        groups=tuple(tuple(group) for group in groups[:_SHOWN_COPIES]),
    )


def find_neighbours(classes: Sequence[Bitmaps]) -> Neighbours:
    """Compares a sample of each class, evenly spaced over its rows, with all the rest; each needs a row or more.

    Copies within a class are compared once. A neighbour counts for 1 / (drawings of its class), so that no class
    is near only because it has more of them.
    """
    limit = min(_COMPARED_PER_CLASS, max(2, _COMPARED // len(classes)))
    places, bitmaps = _sampled(classes, limit)
    of_class = places[:, 0]
    found, distances = _nearest(_blurred(bitmaps))
    counts = np.bincount(of_class, minlength=len(classes))
    shares = np.zeros((len(classes), len(classes)))
    np.add.at(shares, (np.repeat(of_class, found.shape[1]), of_class[found].ravel()), 1)
    shares /= counts
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    couples = _couples(places, found, distances)
    pairs = [
        Pair(first=a, second=b, share=float(shares[a, b] + shares[b, a]) / 2, couples=couples.get((a, b), ()))
        for a in range(len(classes))
        for b in range(a + 1, len(classes))
        if shares[a, b] + shares[b, a]
    ]
    return Neighbours(
        compared=tuple(counts.tolist()), shares=shares, pairs=tuple(sorted(pairs, key=lambda pair: -pair.share))
    )


def _classes(group: Sequence[Place]) -> int:
    return len({index for index, _ in group})


def _sampled(classes: Sequence[Bitmaps], limit: int) -> tuple[NDArray[np.int64], Bitmaps]:
    """Places (drawings, 2) and bitmaps of at most `limit` different drawings of each class."""
    places, bitmaps, seen = [], [], set()
    for index, rows in enumerate(classes):
        for row in np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int):
            bitmap = rows[row]
            if (key := (index, bitmap.tobytes())) not in seen:
                seen.add(key)
                places.append((index, int(row)))
                bitmaps.append(bitmap)
    return np.array(places), np.stack(bitmaps)


def _blurred(bitmaps: Bitmaps) -> Floats:
    """As (drawings, 196): blurred twice by [1 2 1] / 4 along both axes, then every second pixel."""
    image: Floats = bitmaps.astype(np.float32) / np.float32(255)
    two, four = np.float32(2), np.float32(4)
    for _ in range(2):
        wide = np.pad(image, ((0, 0), (1, 1), (1, 1)))  # (drawings, 30, 30)
        tall = (wide[:, :-2] + two * wide[:, 1:-1] + wide[:, 2:]) / four  # (drawings, 28, 30)
        image = (tall[:, :, :-2] + two * tall[:, :, 1:-1] + tall[:, :, 2:]) / four  # (drawings, 28, 28)
    return image[:, ::2, ::2].reshape(len(image), -1)


def _nearest(points: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Of each point (points, features) its nearest others and their squared distances: (points, neighbours) both."""
    many = min(NEIGHBOURS, len(points) - 1)
    squares = np.square(points).sum(axis=1)
    found = np.zeros((len(points), many), np.int64)
    distances = np.zeros((len(points), many), np.float32)
    for start in range(0, len(points), _BLOCK_ROWS):
        block = slice(start, min(start + _BLOCK_ROWS, len(points)))
        apart = squares[block, None] + squares - 2 * points[block] @ points.T  # (block, points)
        apart[np.arange(len(apart)), np.arange(block.start, block.stop)] = np.inf  # not itself
        found[block] = apart.argpartition(many - 1, axis=1)[:, :many] if many else 0
        distances[block] = np.take_along_axis(apart, found[block], axis=1)
    return found, distances


def _couples(
    places: NDArray[np.int64], found: NDArray[np.int64], distances: Floats
) -> dict[tuple[int, int], tuple[tuple[Place, Place], ...]]:
    """The nearest couples of each pair of classes (a < b), first of a and then of b."""
    kept: dict[tuple[int, int], list[tuple[Place, Place]]] = {}
    for at in distances.argsort(axis=None, kind="stable"):
        one, other = sorted((int(at) // found.shape[1], int(found.flat[at])), key=lambda each: places[each, 0])
        first, second = (_place(places[one]), _place(places[other]))
        if first[0] == second[0]:
            continue
        couples = kept.setdefault((first[0], second[0]), [])
        if len(couples) < _SHOWN_COUPLES and not {first, second} & {place for couple in couples for place in couple}:
            couples.append((first, second))
    return {pair: tuple(couples) for pair, couples in kept.items()}


def _place(place: NDArray[np.int64]) -> Place:
    return int(place[0]), int(place[1])
