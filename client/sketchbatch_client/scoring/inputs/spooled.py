"""Copy standard input and packed files to disk, because a job reads rows in any order, and again when it resumes."""

import hashlib
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from ...atomic import replacing, room_for
from ...drawings.passed_over import open_packed
from ...drawings.stable_file import changed, is_unchanged
from ...errors import FileRefused, reason_of
from ...file_kind import HEAD_BYTES
from ...file_stamp import file_stamp

_CHUNK_BYTES = 1 << 20
_MAX_BYTES, _MAX_RATIO = 1 << 30, 200  # unpacked, and per packed byte: strokes shrink 3 to 10 times, drawings 2 to 10


class Spooled(NamedTuple):
    """A copy on disk."""

    path: Path
    digest: str  # SHA-256 of the contents, in hex: the copy has a new modification time in each run


def spool(file: IO[bytes], suffix_of: Callable[[bytes], str], folder: Path, name: str) -> Spooled:
    """Copy an open pipe to the file `name` in `folder`, with the ending that `suffix_of` returns for its first bytes.

    Raises DiskFull if the disk has no space for it.
    """
    head = file.read(HEAD_BYTES)
    return _copied(head, file, folder / f"{name}{suffix_of(head)}")


def unpack(path: Path, folder: Path) -> Spooled:
    """Unpack a file, whose suffix is one of PACKED_SUFFIXES, to a file in `folder` with the suffix before it.

    Raises DiskFull if the disk has no space for it, FileChanged if the file changes meanwhile, and FileRefused if it is
    damaged.
    """
    inner = Path(path.stem)
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    before = file_stamp(path)
    if not before.size_bytes:
        raise FileRefused(f"{path}: cannot be unpacked: an empty file; copy or download it again")
    try:
        with open_packed(path) as packed:
            target = folder / f"unpacked-{name}{inner.suffix.lower()}"
            copy = _copied(b"", packed, target, max(_MAX_BYTES, _MAX_RATIO * before.size_bytes), str(path))
    except (EOFError, OSError, zlib.error, pa.ArrowException) as exc:  # OSError: of gzip, bz2 and Arrow, too
        if not is_unchanged(path, before):
            raise changed(path) from exc
        if isinstance(exc, OSError) and exc.errno is not None:  # of the operating system
            raise FileRefused(f"{path}: cannot be unpacked: {reason_of(exc)}") from exc
        raise FileRefused(f"{path}: cannot be unpacked: damaged or cut off; copy or download it again") from exc
    if not is_unchanged(path, before):
        raise changed(path)
    return copy


def _copied(head: bytes, rest: IO[bytes], target: Path, most_bytes: float = math.inf, source: str = "") -> Spooled:
    """Write `head` and the rest of a file to `target`; without it, if an error occurs or the rest is too long."""
    digest = hashlib.sha256()
    with room_for(target), replacing(target) as partial, partial.open("wb") as file:
        chunk = head or rest.read(_CHUNK_BYTES)
        while chunk:
            file.write(chunk)
            digest.update(chunk)
            if file.tell() > most_bytes:
                raise FileRefused(f"{source}: must unpack to at most {most_bytes:,} bytes, got more; unpack it first")
            chunk = rest.read(_CHUNK_BYTES)
    return Spooled(target, digest.hexdigest())
