"""Read the drawings of one input, block by block: good rows as bitmaps, bad rows as rejects with a reason.

A source knows its number of rows before it reads any, keeps few rows in memory, and can be sent to another process.
Row i of a source keeps the number i, even if rows before it are rejected.
"""

import os
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...drawings.npy import MISSING_PIXEL
from ...drawings.parquet.rows import ParquetRows
from ...drawings.readers import BitmapFile, Bitmaps, check_is_file, draw_strokes, stack_bitmaps
from ...drawings.stable_file import changed, hash_of, stamp_hash
from ...drawings.strokes import StrokeFile
from ...errors import FileRefused, message_of
from ...file_stamp import FileStamp


class Reject(NamedTuple):
    """A row that cannot be read as a drawing."""

    source: str
    row: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows of a source, as they were read: good rows as bitmaps, and rejects."""

    rows: NDArray[np.int64]  # (good rows,): row numbers in the source, ascending
    bitmaps: Bitmaps  # (good rows, 28, 28)
    key_ids: NDArray[np.uint64] | None = None
    """(good rows,): Google's identifiers, 0 = unknown; None if the source has none."""
    rejects: list[Reject] = field(default_factory=list)
    unread_metadata: int = 0  # number of good rows with a key or other metadata that cannot be read
    digest: int  # CRC-32 of the bytes that were read; detects changes of an input, but not an attack


class Source(ABC):
    """The drawings of one input of a job; each input format has a subclass."""

    is_slow = False  # whether reading a row costs more than scoring it; reader processes read such sources
    has_key_ids = False

    def __init__(self, name: str, stamp: str) -> None:
        self.name = name  # the name of the source in outputs
        self.stamp = stamp  # text that changes whenever the input is changed, and sometimes without a change

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def loses_key_ids(self) -> bool:
        """Whether an output without a column for keys would lose some; this may read the whole file."""
        return self.has_key_ids

    @abstractmethod
    def block(self, start: int, stop: int) -> Block:
        """Read rows `start` to `stop` - 1. Raises FileRefused if the file itself can no longer be read."""

    def digest(self, start: int, stop: int) -> int:
        """Return `Block.digest` of rows `start` to `stop` - 1."""
        return self.block(start, stop).digest

    def locate(self, rows: NDArray[np.int64]) -> tuple[str | list[str], NDArray[np.int64]]:
        """Return what an output contains for `rows`: the column `source` (one name, or one per row) and `row`."""
        return self.name, rows


class BitmapSource(Source):
    """A .npy file, or one array of a .npz; rows with a missing pixel are rejects."""

    def __init__(self, name: str, stamp: str, bitmaps: BitmapFile) -> None:
        super().__init__(name, stamp)
        self._bitmaps = bitmaps

    def __len__(self) -> int:
        return len(self._bitmaps)

    def block(self, start: int, stop: int) -> Block:
        if not self._bitmaps.may_miss_pixels:
            bitmaps = self._bitmaps[start:stop]
            return Block(rows=np.arange(start, stop), bitmaps=bitmaps, digest=zlib.crc32(bitmaps.data))
        rows, bitmaps = self._bitmaps.without_missing(start, stop)
        missing = sorted({*range(start, stop)} - {*rows.tolist()})
        digest = zlib.crc32(bitmaps.data)
        if missing:
            digest = zlib.crc32(np.array(missing).data, digest)
        rejects = [Reject(self.name, row, MISSING_PIXEL) for row in missing]
        return Block(rows=rows, bitmaps=bitmaps, rejects=rejects, digest=digest)


class StrokeSource(Source):
    """A file of strokes; malformed lines and records are rejects."""

    is_slow = True
    has_key_ids = True

    def __init__(self, name: str, stamp: str, file: StrokeFile, rows: int | None = None) -> None:
        super().__init__(name, stamp)
        self._file = file
        self._rows = file.line_count if rows is None else rows  # number of lines or records to read

    def __len__(self) -> int:
        return self._rows

    @property
    def loses_key_ids(self) -> bool:
        return self._file.may_have_key_ids

    def block(self, start: int, stop: int) -> Block:
        digest = unread = 0
        rows, key_ids, bitmaps, rejects = [], [], [], []
        for row, line in enumerate(self._file.lines(start, stop), start):
            digest = _line_digest(line, digest)
            try:
                drawing = self._file.parse(line)
                bitmaps.append(draw_strokes(drawing.strokes))
            except ValueError as exc:
                rejects.append(Reject(self.name, row, str(exc)))
            else:
                rows.append(row)
                key_ids.append(drawing.key_id)
                unread += bool(drawing.unread)
        self._file.release()
        numbers, keys = np.array(rows, np.int64), np.array(key_ids, np.uint64)
        return Block(
            rows=numbers,
            bitmaps=stack_bitmaps(bitmaps),
            key_ids=keys,
            rejects=rejects,
            unread_metadata=unread,
            digest=digest,
        )

    def digest(self, start: int, stop: int) -> int:
        digest = 0
        for line in self._file.lines(start, stop):
            digest = _line_digest(line, digest)
        self._file.release()
        return digest


def _line_digest(line: bytes, digest: int) -> int:
    """Add a line to a digest without its end: the last line of a file may have none until the file grows."""
    return zlib.crc32(line.rstrip(b"\r\n"), digest)


class ParquetSource(Source):
    """A Parquet file; rows without a drawing are rejects. A column `key_id` holds the identifiers."""

    def __init__(self, name: str, stamp: str, rows: ParquetRows) -> None:
        super().__init__(name, stamp)
        self._rows = rows
        self.has_key_ids = rows.has_key_ids

    def __len__(self) -> int:
        return len(self._rows)

    def block(self, start: int, stop: int) -> Block:
        read = self._rows.read(start, stop)
        return Block(
            rows=read.rows,
            bitmaps=read.bitmaps,
            key_ids=read.key_ids,
            rejects=[Reject(self.name, row, reason) for row, reason in read.rejects],
            unread_metadata=read.unread_keys,
            digest=read.digest,
        )


class PictureSource(Source):
    """Pictures of a folder, one row each, in the order of their names; pictures without a drawing are rejects."""

    is_slow = True

    def __init__(self, name: str, stamp: str, folder: Path, names: list[str], stamp_hashes: Sequence[int]) -> None:
        """`stamp_hashes` has `stamp_hash` of each picture: 8 bytes each, for millions of pictures."""
        super().__init__(name, stamp)
        self._folder = folder
        self._names = names
        self._stamp_hashes = stamp_hashes

    def __len__(self) -> int:
        return len(self._names)

    def block(self, start: int, stop: int) -> Block:
        from ...drawings.images import decode_image  # imports Pillow, which other formats do not need

        digest = 0
        rows, bitmaps, rejects = [], [], []
        for row in range(start, stop):
            path = self._folder / self._names[row]
            try:
                check_is_file(path)
                contents = path.read_bytes()
                digest = zlib.crc32(contents, zlib.crc32(os.fsencode(path.name), digest))
                bitmaps.append(decode_image(contents, str(path)))
            except (FileRefused, OSError) as exc:
                rejects.append(Reject(str(path), 0, message_of(exc)))
            else:
                rows.append(row)
            if stamp_hash(path) != self._stamp_hashes[row]:
                raise changed(path)
        return Block(rows=np.array(rows, np.int64), bitmaps=stack_bitmaps(bitmaps), rejects=rejects, digest=digest)

    def locate(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        return [str(self._folder / self._names[row]) for row in rows], np.zeros_like(rows)


def open_pictures(stamp: str, folder: Path, names: list[str], stamps: Iterable[FileStamp]) -> PictureSource:
    """Return the source of the pictures `names` of a folder, which have the stamps `stamps`."""
    return PictureSource(str(folder), stamp, folder, names, array("q", map(hash_of, stamps)))


def open_picture(path: Path, stamp: str) -> PictureSource:
    """Return the source of one picture."""
    return PictureSource(str(path), stamp, path.parent, [path.name], [stamp_hash(path)])
