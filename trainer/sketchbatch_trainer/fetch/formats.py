"""Finds the whole drawings at the beginning of a file, in each of the bucket's four formats.

A fetched file is the beginning of one of Google's, byte for byte, but for the number of rows in a .npy's header.
The formats: https://github.com/googlecreativelab/quickdraw-dataset#the-raw-moderated-dataset and the sections after it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from sketchbatch_client.drawings.drawing import record_end

NPY_ROW_BYTES = 784

# Not NumPy's own parser: it warns of headers that Python 2 wrote (`784L`), and a warning's filter is not for threads.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+)L?, 784L?\), \} *\n", re.DOTALL
)
_RECOGNISED_AT = 10  # place of the flag, 0 or 1, in a binary record


class FormatName(StrEnum):
    """As the command says them."""

    NPY = "npy"
    SIMPLIFIED = "simplified"
    RAW = "raw"
    BINARY = "binary"


class NotDrawings(ValueError):
    """The bytes are not of the format; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """The whole drawings that a file begins with."""

    rows: int
    end_bytes: int
    """Where the last of them ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One of the ways in which the bucket keeps drawings."""

    name: FormatName
    folder: str
    """In the bucket, and so in every folder of drawings."""
    suffix: str
    row_bytes: int
    """Of one drawing: exact for npy, else somewhat more than the mean, so that one request mostly suffices."""
    least_bytes: int
    """Worth a request where `row_bytes` proves too few."""
    count: Callable[[BinaryIO, int | None], Beginning]
    """The first drawings of a file, at most so many (None = all). Raises NotDrawings."""


def count_npy(file: BinaryIO, limit: int | None) -> Beginning:
    """Whole rows of uint8 (rows, 784), no more than the header states."""
    start, stated = _npy_header(file)
    held = (file.seek(0, 2) - start) // NPY_ROW_BYTES
    rows = min(held, stated if limit is None else min(limit, stated))
    return Beginning(rows, start + rows * NPY_ROW_BYTES)


def count_lines(file: BinaryIO, limit: int | None) -> Beginning:
    """Whole lines of ndjson; the last line of a file need not end in a newline."""
    rows = end_bytes = 0
    file.seek(0)
    for line in file:
        if not line.startswith(b"{"):
            raise NotDrawings(f"expected a line of JSON at byte {end_bytes}, got {line[:20]!r}")
        if rows == limit or not line.rstrip(b"\r\n").endswith(b"}"):  # a drawing has no } but its last
            break
        rows += 1
        end_bytes += len(line)
    return Beginning(rows, end_bytes)


def count_records(file: BinaryIO, limit: int | None) -> Beginning:
    """Whole binary records. Reads the file into memory: the bucket's are about 20 MB."""
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
    return Beginning(rows, end_bytes)


_FORMATS = (
    Format(
        name=FormatName.NPY,
        folder="numpy_bitmap",
        suffix=".npy",
        row_bytes=NPY_ROW_BYTES,
        least_bytes=1,
        count=count_npy,
    ),
    # The means: 475 and 117 bytes (8,600 drawings of 344 classes), 4,417 bytes raw (219 drawings of 10 animals).
    Format(
        name=FormatName.SIMPLIFIED,
        folder="simplified",
        suffix=".ndjson",
        row_bytes=600,
        least_bytes=1 << 16,
        count=count_lines,
    ),
    Format(
        name=FormatName.RAW,
        folder="raw",
        suffix=".ndjson",
        row_bytes=5000,
        least_bytes=1 << 18,
        count=count_lines,
    ),
    Format(
        name=FormatName.BINARY,
        folder="binary",
        suffix=".bin",
        row_bytes=150,
        least_bytes=1 << 14,
        count=count_records,
    ),
)
FORMATS = {form.name: form for form in _FORMATS}
NPY = FORMATS[FormatName.NPY]


def state_rows(file: BinaryIO, rows: int) -> None:
    """Writes `rows` into the header of a .npy, which keeps its length."""
    start, _ = _npy_header(file)
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, {NPY_ROW_BYTES}), }}".encode()
    file.seek(10)  # after magic (6 bytes), version (2) and length (2)
    file.write(text.ljust(start - 11) + b"\n")


def _npy_header(file: BinaryIO) -> tuple[int, int]:
    """Its length in bytes, and the rows it states."""
    file.seek(0)
    head = file.read(512)
    if not (header := _NPY_HEADER.match(head)):
        raise NotDrawings(f"expected a .npy file of uint8 (rows, {NPY_ROW_BYTES}), got {head[:80]!r}")
    return 10 + int.from_bytes(header[1], "little"), int(header[2])
