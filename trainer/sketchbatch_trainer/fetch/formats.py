"""Count the complete drawings at the beginning of a file, in each of Google's four formats.

A fetched file equals the beginning of Google's file byte for byte, except for the number of rows in the .npy header.
Google describes the formats from this section on: https://github.com/googlecreativelab/quickdraw-dataset#the-raw-moderated-dataset
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from sketchbatch_client.drawings.drawing import record_end

NPY_ROW_BYTES = 784

# A pattern instead of NumPy's parser: the parser warns about headers from Python 2 (`784L`), and filters against such
# warnings are not thread-safe.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+)L?, 784L?\), \} *\n", re.DOTALL
)
_RECOGNISED_AT = 10  # offset of the recognised flag (0 or 1) in a binary record


class FormatName(StrEnum):
    """Name of a format, as the flag `--format` takes it."""

    NPY = "npy"
    SIMPLIFIED = "simplified"
    RAW = "raw"
    BINARY = "binary"


class NotDrawings(ValueError):
    """The bytes do not have the expected format; the message states the expected and the actual content."""


@dataclass(frozen=True, slots=True)
class FilePrefix:
    """The complete drawings at the beginning of a file: their number, and the end of the last one."""

    rows: int
    end_bytes: int
    """Offset of the end of the last complete drawing."""


@dataclass(frozen=True, slots=True)
class Format:
    """A file format of Google's storage bucket."""

    folder: str
    """Name of the folder in the bucket and in every local copy."""
    suffix: str
    row_bytes: int
    """Bytes of one drawing: exact for npy, else slightly above the mean, so that one request is usually enough."""
    min_request_bytes: int
    """Size of the smallest further request, which is sent if the estimate `row_bytes` was too low."""
    count: Callable[[BinaryIO, int | None], FilePrefix]
    """Function that counts the first drawings of a file up to a limit (None = all). Raises NotDrawings."""


def count_npy(file: BinaryIO, limit: int | None) -> FilePrefix:
    """Count the complete rows of a .npy file of uint8 (rows, 784), at most as many as its header states."""
    start, stated_rows = _read_npy_header(file)
    held_rows = (file.seek(0, os.SEEK_END) - start) // NPY_ROW_BYTES
    rows = min(held_rows, stated_rows if limit is None else min(limit, stated_rows))
    return FilePrefix(rows, start + rows * NPY_ROW_BYTES)


def count_lines(file: BinaryIO, limit: int | None) -> FilePrefix:
    """Count the complete lines of an .ndjson file; the last line of a file may lack its newline."""
    rows = end_bytes = 0
    file.seek(0)
    for line in file:
        if not line.startswith(b"{"):
            raise NotDrawings(f"expected a line of JSON at byte {end_bytes}, got {line[:20]!r}")
        if rows == limit or not line.rstrip(b"\r\n").endswith(b"}"):  # } occurs only at the end of a complete line
            break
        rows += 1
        end_bytes += len(line)
    return FilePrefix(rows, end_bytes)


def count_records(file: BinaryIO, limit: int | None) -> FilePrefix:
    """Count the complete records of a binary file, read into memory: the bucket's binary files have about 20 MB."""
    file.seek(0)
    content = file.read()
    rows = end_bytes = 0
    while rows != limit:
        if content[end_bytes + _RECOGNISED_AT : end_bytes + _RECOGNISED_AT + 1] > b"\x01":
            raise NotDrawings(f"expected a drawing at byte {end_bytes}, got {content[end_bytes : end_bytes + 20]!r}")
        if (end := record_end(content, end_bytes)) > len(content):
            break
        rows += 1
        end_bytes = end
    return FilePrefix(rows, end_bytes)


# Measured mean bytes per drawing: simplified 475 and binary 117 (8,600 drawings of 344 classes), raw 4,417 (219
# drawings of 10 animals).
FORMATS = {
    FormatName.NPY: Format("numpy_bitmap", ".npy", row_bytes=NPY_ROW_BYTES, min_request_bytes=1, count=count_npy),
    FormatName.SIMPLIFIED: Format("simplified", ".ndjson", row_bytes=600, min_request_bytes=1 << 16, count=count_lines),
    FormatName.RAW: Format("raw", ".ndjson", row_bytes=5000, min_request_bytes=1 << 18, count=count_lines),
    FormatName.BINARY: Format("binary", ".bin", row_bytes=150, min_request_bytes=1 << 14, count=count_records),
}
NPY = FORMATS[FormatName.NPY]


def write_row_count(file: BinaryIO, rows: int) -> None:
    """Write `rows` into the header of a .npy without changing the header's length."""
    start, _ = _read_npy_header(file)
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, {NPY_ROW_BYTES}), }}".encode()
    file.seek(10)  # the text of the header follows magic (6 bytes), version (2) and length (2)
    file.write(text.ljust(start - 11) + b"\n")


def _read_npy_header(file: BinaryIO) -> tuple[int, int]:
    """Return the length of the .npy header in bytes, and the number of rows that the header states."""
    file.seek(0)
    head = file.read(512)
    if not (header := _NPY_HEADER.match(head)):
        raise NotDrawings(f"expected a .npy file of uint8 (rows, {NPY_ROW_BYTES}), got {head[:80]!r}")
    return 10 + int.from_bytes(header[1], "little"), int(header[2])
