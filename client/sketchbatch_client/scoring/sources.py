"""The drawings of one input, read a block at a time: good rows as bitmaps, bad ones with their reason.

A source knows how many rows it has before any is read, keeps little of them in memory, and can be sent to another
process. Row i of a source stays row i whatever else is wrong with it.
"""

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..drawings.readers import Bitmaps, draw_strokes, give_back
from ..drawings.strokes import StrokeFile
from ..errors import FileRefused


class Reject(NamedTuple):
    """A row that is no drawing."""

    source: str
    row: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some consecutive rows of a source."""

    rows: NDArray[np.int64]
    """(good rows,), their numbers in the source, ascending."""
    bitmaps: Bitmaps
    """(good rows, 28, 28)."""
    key_ids: NDArray[np.uint64] | None = None
    """(good rows,), Google's names for the drawings, 0 = not said; None where the source has none."""
    rejects: list[Reject] = field(default_factory=list)
    """The other rows."""
    digest: int
    """CRC-32 of what was read, to tell whether an input has changed; no secret."""


class Source(Protocol):
    """Drawings that a job scores."""

    name: str
    """As outputs name it."""
    stamp: str
    """Changes whenever the input may have changed."""
    is_drawn: bool
    """Whether reading it costs more than scoring it: strokes and pictures are read by other processes."""
    has_key_ids: bool

    def __len__(self) -> int: ...

    def block(self, start: int, stop: int) -> Block:
        """Rows start to stop. Raises FileRefused when the file itself cannot be read any more."""

    def place(self, rows: NDArray[np.int64]) -> tuple[str | list[str], NDArray[np.int64]]:
        """What outputs call rows: their source, or the source of each, and their numbers there."""


class BitmapSource:
    """Bitmaps as they are: a .npy file, or one array of a .npz."""

    is_drawn = False
    has_key_ids = False

    def __init__(self, name: str, bitmaps: Bitmaps, stamp: str) -> None:
        self.name = name
        self.stamp = stamp
        self._bitmaps = bitmaps

    def __len__(self) -> int:
        return len(self._bitmaps)

    def block(self, start: int, stop: int) -> Block:
        bitmaps = np.array(self._bitmaps[start:stop])  # read once: from the map each use would fault its pages in again
        give_back(self._bitmaps)
        return Block(rows=np.arange(start, stop), bitmaps=bitmaps, digest=zlib.crc32(bitmaps.data))

    def place(self, rows: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
        return self.name, rows


class StrokeSource:
    """A file of strokes; a malformed line or record is a reject."""

    is_drawn = True
    has_key_ids = True

    def __init__(self, name: str, file: StrokeFile, stamp: str) -> None:
        self.name = name
        self.stamp = stamp
        self._file = file

    def __len__(self) -> int:
        return self._file.line_count

    def block(self, start: int, stop: int) -> Block:
        digest = 0
        rows, key_ids, bitmaps = [], [], []
        rejects = []
        for row, line in enumerate(self._file.lines(start, stop), start):
            digest = zlib.crc32(line, digest)
            try:
                drawing = self._file.parse(line)
                bitmaps.append(draw_strokes(drawing.strokes))
            except ValueError as exc:
                rejects.append(Reject(self.name, row, str(exc)))
            else:
                rows.append(row)
                key_ids.append(drawing.key_id)
        self._file.give_back()
        return Block(
            rows=np.array(rows, np.int64),
            bitmaps=stacked(bitmaps),
            key_ids=np.array(key_ids, np.uint64),
            rejects=rejects,
            digest=digest,
        )

    def place(self, rows: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
        return self.name, rows


class PictureSource:
    """Pictures, each a row, in the order of their names; one that shows no drawing is a reject."""

    is_drawn = True
    has_key_ids = False

    def __init__(self, folder: Path, names: list[str], stamp: str) -> None:
        self.name = str(folder)
        self.stamp = stamp
        self._folder = folder
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def block(self, start: int, stop: int) -> Block:
        from ..drawings.images import decode_image  # Pillow, which files of other kinds do not need

        digest = 0
        rows, bitmaps, rejects = [], [], []
        for row in range(start, stop):
            path = self._folder / self._names[row]
            try:
                contents = path.read_bytes()
                digest = zlib.crc32(contents, zlib.crc32(os.fsencode(path.name), digest))
                bitmaps.append(decode_image(contents, str(path)))
            except (FileRefused, OSError) as exc:
                rejects.append(Reject(str(path), 0, str(exc)))
            else:
                rows.append(row)
        return Block(rows=np.array(rows, np.int64), bitmaps=stacked(bitmaps), rejects=rejects, digest=digest)

    def place(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        return [str(self._folder / self._names[row]) for row in rows], np.zeros_like(rows)


def stacked(bitmaps: list[NDArray[np.uint8]]) -> Bitmaps:
    """(rows, 28, 28), also of none."""
    return np.stack(bitmaps) if bitmaps else np.empty((0, 28, 28), np.uint8)
