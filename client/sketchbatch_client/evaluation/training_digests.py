"""Recognise drawings that trained a model by a sample of the digests of its training drawings.

The sample holds the lowest digests of all training drawings (bottom-k sketch, Cohen and Kaplan 2007,
doi:10.1145/1281100.1281133). Every training drawing whose digest is at most the last digest of the sample is in it.
Therefore each judged drawing in this range is known to be a training drawing or not. The drawings in the range are a
random sample of all judged drawings.

A training that began with the weights of another model stores two samples: of its own drawings, and of all drawings
that trained the weights. One sample would hold few digests of few own drawings.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..drawings.readers import Bitmaps
from .stats.intervals import wilson

Digests = NDArray[np.uint64]  # sorted, without duplicates: BLAKE2b of 8 bytes, little-endian, of the 784 bytes

SAMPLE_ROWS = 4096
"""Most digests in a sample: 32 KiB."""

_ESTIMATED_ROWS = 30  # fewest compared drawings from which the text estimates the share of all
_HIGHEST = np.uint64(2**64 - 1)  # ends the sample of a training of fewer drawings, which holds all of them


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """How many of some judged drawings are training drawings of the model."""

    rows: int = 0
    """All judged drawings."""
    compared: int = 0
    """Drawings in the range of the sample."""
    matches: int = 0
    """Training drawings among these."""

    @property
    def share(self) -> float | None:
        """Share of training drawings, estimated from those in the range; None = unknown."""
        return self.matches / self.compared if self.compared else None

    def add(self, digests: Digests, sample: Digests) -> "TrainedOn":
        """Return the counts with the digests of some more drawings, in any order; `sample` is not empty."""
        compared = digests[digests <= sample[-1]]
        matches = int(np.isin(compared, sample).sum())
        return TrainedOn(self.rows + len(digests), self.compared + len(compared), self.matches + matches)

    def __str__(self) -> str:
        if self.compared == self.rows:
            found = f"{self.matches:,} of {self.rows:,}"
        elif self.compared < _ESTIMATED_ROWS:
            found = f"{self.matches:,} of the {self.compared:,} that could be compared, of {self.rows:,} in all"
        else:
            share = f"{self.share or 0:.0%}"
            found = f"about {share} of {self.rows:,} ({self.matches:,} of {self.compared:,} compared)"
        return f"training drawings of the model among these: {found}"


def highest(counts: Sequence[TrainedOn]) -> TrainedOn:
    """Return the first counts, or later ones whose share is certainly larger: by the low end of its 95 % interval."""
    found = counts[0]
    for each in counts[1:]:
        low, _ = wilson(np.array([each.share or 0.0]), np.array([float(each.compared)]))
        if low[0] > (found.share or 0.0):
            found = each
    return found


def digest_each(bitmaps: Bitmaps) -> Digests:
    """Return the digest of each bitmap, uint8 (rows, 28, 28), in order."""
    content = np.ascontiguousarray(bitmaps).tobytes()
    digests = (hashlib.blake2b(content[at : at + 784], digest_size=8).digest() for at in range(0, len(content), 784))
    return np.frombuffer(b"".join(digests), "<u8")


def sample_of(digests: Digests) -> Digests:
    """Return the sample of a training with drawings of these digests, in any order."""
    lowest = np.unique(digests)
    return lowest[:SAMPLE_ROWS] if len(lowest) > SAMPLE_ROWS else np.union1d(lowest, [_HIGHEST])


def merged(samples: Iterable[Digests]) -> Digests:
    """Return the sample of a training with all drawings of one or more trainings."""
    parts = list(samples)
    found: Digests = np.unique(np.concatenate(parts))
    bound: np.uint64 = min(part[-1] for part in parts)
    return found[found <= bound][:SAMPLE_ROWS]


def joined(own: Digests, earlier: Digests | None) -> Digests:
    """Return what a training stores: its own sample and, if its weights have `earlier` digests, that of all drawings.

    Both have at most 64 KiB.
    """
    if earlier is None:
        return own
    return np.concatenate([own, merged([own, split(earlier)[-1]])[: SAMPLE_ROWS - 1]])


def split(stored: Digests) -> list[Digests]:
    """Return the samples that a training stored one after another; each is ascending."""
    parts = np.split(stored, np.flatnonzero(stored[1:] <= stored[:-1]) + 1)
    return [part for part in parts if len(part)]


def encoded(stored: Digests) -> str:
    """Return stored samples as text, for the metadata of a model file."""
    return base64.b64encode(stored.astype("<u8").tobytes()).decode()


def decoded(content: bytes) -> Digests:
    """Return the stored samples of `ModelInfo.training_digests`."""
    return np.frombuffer(content[: len(content) // 8 * 8], "<u8")
