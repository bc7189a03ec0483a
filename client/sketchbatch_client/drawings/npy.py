"""Read bitmaps from .npy files and .npz archives; never unpickle, and check each header against the file's size.

Flow: first bytes -> header -> size check -> rows on access.
"""

import io
import tempfile
import warnings
import zipfile
import zlib
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..atomic import room_for
from ..errors import FileRefused, reason_of
from ..file_kind import HEAD_BYTES, got
from .passed_over import PassedOver
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
MISSING_PIXEL = "a pixel is missing (null or NaN); leave the row out, or fill the pixel with 0"
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
    def remedy(self) -> str:
        """What to do with an array of another type than uint8."""
        if self.dtype == np.bool_:
            return "convert it: np.uint8(255) * x; `sketchbatch score --scale 255` reads it"
        if self.dtype.kind == "f":
            convert = "convert it: (x * 255).round().astype(np.uint8) if the numbers are 0 to 1"
            return f"{convert}; `sketchbatch score` reads it with --scale 255, and numbers from 0 to 255 with --scale 1"
        if self.dtype == np.object_:
            return "convert it: np.stack(x).astype(np.uint8) if each entry is a bitmap of 0 to 255"
        return "convert it: x.astype(np.uint8) if the numbers are 0 to 255; `sketchbatch score --scale 1` reads it"

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}{', Fortran order' if self.is_fortran else ''}"[:_SHOWN]


class BitmapFile:
    """The bitmaps of a .npy file, or of one array of a .npz: uint8, (rows, 28, 28), read on access.

    Reading raises FileChanged if the file is not as it was when it was opened, and FileRefused if a number times the
    scale is not within 0 to 255.
    """

    def __init__(self, file: StableFile, name: str, start: int, header: _Header, scale: float) -> None:
        self._file = file
        self._name = name  # in error messages
        self._start = start  # of the first number, in bytes
        self._header = header
        self._scale = scale
        self._rows = header.rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> Bitmaps:
        """Return a copy of the rows of a slice, or of the given rows, in their order."""
        wanted = range(self._rows)[rows] if isinstance(rows, slice) else rows
        if isinstance(wanted, range) and wanted.step == 1:
            numbers = self._read(wanted.start, len(wanted))
        else:
            each = [self._read(int(row), 1) for row in wanted]
            numbers = np.concatenate(each) if each else np.empty((0, _ROW_BYTES), self._header.dtype)
        self._file.check()
        return self._converted(numbers).reshape(-1, 28, 28)

    def without_missing(self, start: int, stop: int) -> tuple[NDArray[np.int64], Bitmaps]:
        """Return rows `start` to `stop` - 1, without those that have a missing pixel (NaN): numbers and bitmaps."""
        numbers = self._read(start, stop - start)
        self._file.check()
        is_whole = ~np.isnan(numbers).any(axis=1)
        return start + np.flatnonzero(is_whole), self._converted(numbers[is_whole]).reshape(-1, 28, 28)

    @property
    def may_miss_pixels(self) -> bool:
        """Whether a pixel may be missing, because the numbers are floats."""
        return self._header.dtype.kind == "f"

    def head(self, rows: int | None) -> "BitmapFile":
        """Return the first `rows` rows; all of them if `rows` is None."""
        part = copy(self)
        part._rows = len(range(self._rows)[:rows])
        return part

    def _read(self, start: int, count: int) -> NDArray[Any]:
        """Read rows as they are stored: (count, 784) numbers of the type of the file."""
        size = self._header.dtype.itemsize
        if not self._header.is_fortran:
            numbers = np.empty((count, _ROW_BYTES), self._header.dtype)
            self._file.fill(numbers.view(np.uint8), self._start + start * _ROW_BYTES * size)
            return numbers
        columns = np.empty((_ROW_BYTES, count), self._header.dtype)  # one pixel of all rows after the other
        for pixel, column in enumerate(columns):
            self._file.fill(column.view(np.uint8), self._start + (pixel * self._header.rows + start) * size)
        if self._header.shape[-1:] == (_ROW_BYTES,):
            return columns.T
        return columns.reshape(28, 28, count).T.reshape(count, _ROW_BYTES)  # the first axis of the file is y

    def _converted(self, numbers: NDArray[Any]) -> NDArray[np.uint8]:
        try:
            return np.ascontiguousarray(scaled(numbers, self._scale))
        except ValueError as exc:
            raise FileRefused(f"{self._name}: {exc}; score inputs with other numbers apart") from exc


def remedy_for_bytes(size: int) -> str:
    """Return what to do with bytes of a bitmap whose numbers are wider than a byte; empty for other sizes."""
    width, rest = divmod(size, _ROW_BYTES)
    if rest or width not in (2, 4, 8):
        return ""
    whole, share = "x.astype(np.uint8).tobytes()", "np.rint(255 * x).astype(np.uint8).tobytes()"
    return (
        f"these {size:,} bytes are probably {_ROW_BYTES} numbers of {width} bytes: convert numbers from 0 to 255 with "
        f"{whole}, and numbers from 0 to 1 with {share}"
    )


def scaled(numbers: NDArray[Any], scale: float) -> NDArray[np.uint8]:
    """Return `numbers` times `scale`, rounded, as uint8. Raises ValueError if a product is not within 0 to 255.

    Numbers of type uint8 are returned as they are if `scale` is 1, or 0 = not given.
    """
    if numbers.dtype == np.uint8 and scale in (0, 1):
        return numbers
    products = np.rint(numbers * np.float64(scale))
    if not ((products >= 0) & (products <= 255)).all():  # NaN is not, either
        raise ValueError(f"numbers times {scale:g} must be 0 to 255, got {products.min():g} to {products.max():g}")
    return products.astype(np.uint8)


def axes_remedy(shape: tuple[int, ...]) -> str:
    """Return how to convert an array whose rows are its last axis; empty for other shapes."""
    if len(shape) == 3 and shape[:2] == (28, 28) and shape[2] in (3, 4):
        ink = "x[..., 3] with transparent paper, else 255 - x[..., 0]" if shape[2] == 4 else "255 - x[..., 0]"
        return (
            f"; of a picture in colour, with values from 0 to 255, pass the ink: {ink}; of {shape[2]} bitmaps, "
            "x.transpose(2, 0, 1)"
        )
    if len(shape) == 3 and shape[:2] == (28, 28):
        return "; convert it: x.transpose(2, 0, 1)"
    return "; convert it: x.T" if len(shape) == 2 and shape[0] == _ROW_BYTES else ""


def stack_bitmaps(bitmaps: list[NDArray[np.uint8]]) -> Bitmaps:
    """Return (rows, 28, 28) from any number of bitmaps, 0 included."""
    return np.stack(bitmaps) if bitmaps else np.empty((0, 28, 28), np.uint8)


def read_bitmaps(path: Path | str, *, scale: float = 0) -> BitmapFile:
    """Open a .npy file of uint8 (rows, 784) or (rows, 28, 28); an axis for one channel or one row may differ.

    `scale` multiplies the numbers: 255 for 0..1, 1 for 0..255. 0 = files of other types than
    uint8 are refused.

    Raises FileRefused if the file does not exist, is not a .npy of bitmaps, or has another size than its header states.
    """
    file = StableFile(Path(path))
    return _bitmaps_in(file, str(path), 0, len(file), scale)


class NpzContents(NamedTuple):
    """The arrays of a .npz."""

    arrays: dict[str, BitmapFile]  # of drawings, by name
    passed_over: list[PassedOver]  # the others


def open_npz(path: Path, *, scale: float = 0) -> NpzContents:
    """Open every array of bitmaps in a .npz; pass over arrays of other shapes, such as labels. `scale` as for .npy.

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
                _check_type(f"{path}:{member.filename}", header, scale)
            arrays = {
                each.filename.removesuffix(".npy"): _member(path, archive, each, header, scale)
                for each, header in wanted
            }
            return NpzContents(arrays, [_left_out(path, *each) for each in headers if each not in wanted])
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


def _left_out(path: Path, member: zipfile.ZipInfo, header: _Header) -> PassedOver:
    """Return why an array is not read. One with three or more axes may have drawings; labels have one or two axes."""
    name = f"{path}:{member.filename.removesuffix('.npy')}"
    return PassedOver(name, f"expected {EXPECTED}, got {header}", len(header.shape) > 2)


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header, scale: float) -> BitmapFile:
    name = f"{path}:{member.filename}"
    if member.compress_type == zipfile.ZIP_STORED:
        with archive.open(member) as stored:  # compares the CRC-32 at the end
            while stored.read(_CHUNK_BYTES):
                pass
        file = StableFile(path)
        local = file.read(member.header_offset, member.header_offset + _LOCAL_HEADER_BYTES)
        lengths = np.frombuffer(local, "<u2", 2, 26)  # of the name and of the extra field
        start = member.header_offset + _LOCAL_HEADER_BYTES + int(lengths.sum())
        return _bitmaps_in(file, name, start, member.file_size, scale)
    _check_size(name, header, member.file_size)  # before unpacking
    if member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size):
        raise FileRefused(
            f"{name}: an array must be compressed at most {_BOMB_RATIO} times, got {member.file_size:,} bytes in "
            f"{member.compress_size:,}; store it uncompressed"
        )
    unpacked = StableFile(path, _unpack(archive, member, name))
    return _bitmaps_in(unpacked, name, 0, len(unpacked), scale)


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
                raise FileRefused(
                    f"{name}: must unpack to {member.file_size:,} bytes, got more; copy or download it again"
                )
        file.flush()
        unfinished.pop_all()
        return file


def _bitmaps_in(file: StableFile, name: str, start: int, size: int, scale: float) -> BitmapFile:
    """Open the .npy that begins at byte `start` of a file and is `size` bytes long."""
    header = _read_header(name, file.read(start, start + min(size, _HEADER_BYTES)))
    if header.rows < 0:
        raise FileRefused(f"{name}: expected {EXPECTED}, got {header}{axes_remedy(header.shape)}")
    _check_type(name, header, scale)
    _check_size(name, header, size)
    return BitmapFile(file, name, start + header.bytes, header, scale)


def _check_type(name: str, header: _Header, scale: float) -> None:
    if header.dtype == np.uint8 or (scale and header.dtype.kind in "bfiu"):
        return
    raise FileRefused(f"{name}: expected {EXPECTED}, got {header}; {header.remedy}")


def _check_size(name: str, header: _Header, size: int) -> None:
    row_bytes = _ROW_BYTES * header.dtype.itemsize
    expected, got = header.rows * row_bytes, size - header.bytes
    if got != expected:
        problem = "truncated" if got < expected else "too long"
        rows = f"{header.rows} rows of {row_bytes}"
        raise FileRefused(f"{name}: {problem}: {rows} are {expected} bytes, got {got}; copy or download it again")


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
