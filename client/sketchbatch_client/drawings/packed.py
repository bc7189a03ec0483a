"""Open packed files: gzip, bzip2 and Zstandard."""

import bz2
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..file_kind import HEAD_BYTES

UNPACKERS: dict[str, Callable[[Path], Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".zst": lambda path: pa.CompressedInputStream(pa.PythonFile(path.open("rb")), "zstd"),
}
"""By ending, the functions that return the contents of a packed file as a binary file."""

DAMAGED = (EOFError, OSError, zlib.error, pa.ArrowException)
"""Exceptions of reading a damaged file; OSError: of gzip, bz2 and Arrow, and of the operating system, which has an
errno."""


def unpacked_head(path: Path) -> bytes:
    """Return the first bytes of the contents of a packed file; b"" if it cannot be unpacked."""
    try:
        with UNPACKERS[path.suffix.lower()](path) as packed:
            head: bytes = packed.read(HEAD_BYTES)
            return head
    except DAMAGED:
        return b""
