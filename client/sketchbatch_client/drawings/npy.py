"""Read bitmaps from .npy files and .npz archives; never unpickle, and check each header against the file's size.

Flow: first bytes -> header -> size check -> rows on access.
"""

import io
import tempfile
import warnings
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..atomic import room_for
from ..errors import FileRefused, reason_of
from ..file_kind import HEAD_BYTES, got
from .stable_file import StableFile

Bitmaps = NDArray[np.uint8]  # (rows, 28, 28), 0 = paper, 255 = ink

_ROW_BYTES = 784
ROW_SHAPES = ((_ROW_BYTES,), (28, 28), (28, 28, 1), (1, 28, 28))
EXPECTED = "uint8 (rows, 784) or (rows, 28, 28)"
_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # with members, and without
# Only these bytes are given to NumPy: 12 with magic, version and length, then at most 10,000 with the header. NumPy
# rejects a longer header, but first reads as many bytes as the file states.
_HEADER_BYTES = 12 + 10_000
_LOCAL_HEADER_BYTES = 30  # bytes before the file name in the header of a zip member: APPNOTE.TXT, 4.3.7
_CHUNK_BYTES = 1 << 20
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 200  # deflate shrinks drawings 2 to 10 times, and blank data up to 1,032 times
_SHOWN = 200  # most characters of a file's content that an error message quotes


class _Header(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[np.generic]
    bytes: int

    @property
    def rows(self) -> int:
        """The number of drawings, by the shape; -1 if it is no shape of drawings."""
        if self.shape in ROW_SHAPES:
            return 1
        return self.shape[0] if self.shape[1:] in ROW_SHAPES else -1

    @property
    def problem(self) -> str:
        """Why an array with a shape of drawings is none, and what to do; empty if it is one."""
        if self.dtype == np.bool_:
            return "convert it: np.uint8(255) * x"
        if self.dtype.kind == "f":
            return "convert it: (x * 255).round().astype(np.uint8) if the numbers are 0 to 1"
        if self.dtype != np.uint8:
            return "convert it: x.astype(np.uint8) if the numbers are 0 to 255"
        return "convert it: np.ascontiguousarray(x)" if self.is_fortran and len(self.shape) > 1 else ""

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}{', Fortran order' if self.is_fortran else ''}"[:_SHOWN]


class BitmapFile:
    """The bitmaps of a .npy file, or of one array of a .npz: uint8, (rows, 28, 28), read on access.

    Reading raises FileChanged if the file is not as it was when it was opened.
    """

    def __init__(self, file: StableFile, start: int, rows: int) -> None:
        self._file = file
        self._start = start  # of the first bitmap, in bytes
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Bitmaps:
        """Return a copy of the rows of a slice, or of the given rows, in their order."""
        wanted = range(self._rows)[rows] if isinstance(rows, slice) else rows
        bitmaps = np.empty((len(wanted), 28, 28), np.uint8)
        if isinstance(wanted, range) and wanted.step == 1:
            self._file.fill(bitmaps, self._start + wanted.start * _ROW_BYTES)
        else:
            for bitmap, row in zip(bitmaps, wanted, strict=True):
                self._file.fill(bitmap, self._start + int(row) * _ROW_BYTES)
        self._file.check()
        return bitmaps

    def head(self, rows: int | None) -> "BitmapFile":
        """Return the first `rows` rows; all of them if `rows` is None."""
        return BitmapFile(self._file, self._start, len(range(self._rows)[:rows]))


def read_bitmaps(path: Path) -> BitmapFile:
    """Open a .npy file of uint8 (rows, 784) or (rows, 28, 28), C order; an axis for one channel or one row may differ.

    Raises FileRefused if the file does not exist, is not a .npy of bitmaps, or has another size than its header states.
    """
    file = StableFile(path)
    return _bitmaps_in(file, str(path), 0, len(file))


def open_npz(path: Path) -> dict[str, BitmapFile]:
    """Open every array of bitmaps in a .npz, by its name; skip arrays of other shapes, such as labels.

    Uncompressed arrays are read once to check their CRC-32, then again on access. Compressed arrays are unpacked to
    temporary files, up to the size that their headers state.

    Raises FileRefused if the file does not exist, is not a .npz, or has no bitmaps, or if an array is damaged. Raises
    DiskFull if the disk has no space for an unpacked array.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if not head.startswith(_ZIP_MAGIC):
            raise FileRefused(f"{path}: expected a .npz file, got {got(head, str(path))}")
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            if not members:
                raise FileRefused(f"{path}: expected a .npz file with an array, got {got(head, str(path))}")
            headers = [(member, _header_of(archive, member)) for member in members]
            wanted = [(member, header) for member, header in headers if header.shape[1:] in ROW_SHAPES]
            wanted = wanted or [(member, header) for member, header in headers if header.rows >= 0]
            if not wanted:
                found = ", ".join(f"{member.filename} {header}" for member, header in headers)
                raise FileRefused(f"{path}: expected an array of {EXPECTED}, got {found[:500]}")
            for member, header in wanted:
                _check_type(f"{path}:{member.filename}", header)
            return {each.filename.removesuffix(".npy"): _member(path, archive, each, header) for each, header in wanted}
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, zlib.error) as exc:
        # RuntimeError: encrypted; ValueError: a name is not UTF-8, or an offset is negative
        raise FileRefused(f"{path}: cannot be read as a .npz: {' '.join(str(exc).split())[:_SHOWN]}") from exc
    except OSError as exc:
        raise FileRefused(f"{path}: cannot be read: {reason_of(exc)}") from exc


def _header_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the methods that NumPy writes
        raise zipfile.BadZipFile(f"{member.filename} must be stored or deflated, got method {member.compress_type}")
    with archive.open(member) as file:
        return _read_header(f"{archive.filename}:{member.filename}", file.read(_HEADER_BYTES))


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header) -> BitmapFile:
    name = f"{path}:{member.filename}"
    if member.compress_type == zipfile.ZIP_STORED:
        with archive.open(member) as stored:  # compares the CRC-32 at the end
            while stored.read(_CHUNK_BYTES):
                pass
        file = StableFile(path)
        local = file.read(member.header_offset, member.header_offset + _LOCAL_HEADER_BYTES)
        lengths = np.frombuffer(local, "<u2", 2, 26)  # of the name and of the extra field
        start = member.header_offset + _LOCAL_HEADER_BYTES + int(lengths.sum())
        return _bitmaps_in(file, name, start, member.file_size)
    _check_size(name, header, member.file_size)  # before unpacking
    if member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size):
        raise FileRefused(
            f"{name}: an array must be compressed at most {_BOMB_RATIO} times, got {member.file_size:,} bytes in "
            f"{member.compress_size:,}; store it uncompressed"
        )
    unpacked = StableFile(path, _unpack(archive, member, name))
    return _bitmaps_in(unpacked, name, 0, len(unpacked))


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> BinaryIO:
    """Return a temporary file with the contents of a member of an archive."""
    with ExitStack() as stack:
        stack.enter_context(room_for(Path(tempfile.gettempdir())))
        packed = stack.enter_context(archive.open(member))
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by the file that reads it
        unfinished = stack.enter_context(ExitStack())
        unfinished.callback(file.close)
        while chunk := packed.read(_CHUNK_BYTES):
            file.write(chunk)
            if file.tell() > member.file_size:
                raise FileRefused(f"{name}: must unpack to {member.file_size:,} bytes, got more; fetch it again")
        file.flush()
        unfinished.pop_all()
        return file


def _bitmaps_in(file: StableFile, name: str, start: int, size: int) -> BitmapFile:
    """Open the .npy that begins at byte `start` of a file and is `size` bytes long."""
    header = _read_header(name, file.read(start, start + min(size, _HEADER_BYTES)))
    if header.rows < 0:
        raise FileRefused(f"{name}: expected {EXPECTED}, got {header}")
    _check_type(name, header)
    _check_size(name, header, size)
    return BitmapFile(file, start + header.bytes, header.rows)


def _check_type(name: str, header: _Header) -> None:
    if header.problem:
        raise FileRefused(f"{name}: expected {EXPECTED}, got {header}; {header.problem}")


def _check_size(name: str, header: _Header, size: int) -> None:
    expected, got = header.rows * _ROW_BYTES, size - header.bytes
    if got != expected:
        problem = "truncated" if got < expected else "too long"
        rows = f"{header.rows} rows of {_ROW_BYTES}"
        raise FileRefused(f"{name}: {problem}: {rows} are {expected} bytes, got {got}; fetch it again")


def _read_header(name: str, head: bytes) -> _Header:
    if not head.startswith(_MAGIC):
        raise FileRefused(f"{name}: expected a .npy file, got {got(head, name)}")
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    readers[3, 0] = readers[2, 0]  # differs in the encoding of field names, which drawings have not
    file = io.BytesIO(head)
    try:
        with warnings.catch_warnings(action="ignore"):  # NumPy warns of headers that Python 2 wrote
            shape, is_fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as exc:  # NumPy parses the header as a Python literal, which raises many types of errors
        raise FileRefused(f"{name}: its .npy header cannot be read; write it again with np.save") from exc
    return _Header(shape, is_fortran, dtype, file.tell())
