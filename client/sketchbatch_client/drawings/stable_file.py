"""Read parts of a file while other programs may write it: a change is an error, not a mixture of contents or a crash.

A memory map would crash: if its file is cut short, the operating system ends the process with SIGBUS.
"""

import threading
import weakref
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import FileChanged, FileRefused, reason_of
from ..file_stamp import FileStamp, file_stamp

_WINDOW_BYTES = 1 << 18  # are read at once for consecutive short slices


class StableFile:
    """The bytes of a file, read on access as they were when the file was opened.

    Every read raises FileChanged if inode, modification time or size differ from those at the opening; writes through
    a memory map may not change them. Threads may share the object. It can be pickled, unless it reads an unpacked copy:
    the pickled object opens the file again, and notices changes since the first opening, too.
    """

    def __init__(self, path: Path, unpacked: BinaryIO | None = None) -> None:
        """Open the file. Raises FileRefused if it cannot be read.

        `unpacked` is read in place of `path`: an unnamed temporary file, which no other program can change.
        """
        self.path = path
        self._unpacked = unpacked
        self._lock = threading.Lock()
        self._window = (0, b"")  # place and content of the bytes that were read last
        self._file: BinaryIO | None = None
        try:
            self._stamp = file_stamp(path)
            self._size = self._opened().seek(0, 2)
        except OSError as exc:
            raise FileRefused(f"{path}: cannot be read: {reason_of(exc)}") from exc

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        """Return the bytes of `place`, a slice with positive ends; many consecutive short slices are one read."""
        start, stop, _ = place.indices(self._size)
        content, at = self.window(start, stop - start)
        return content[at : at + stop - start]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_window": (0, b""), "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def window(self, start: int, least: int) -> tuple[bytes, int]:
        """Return some bytes of the file, and the place in them of the byte `start`.

        At least `least` bytes follow, if the file has so many.
        """
        first, content = self._window
        if not first <= start <= min(start + least, self._size) <= first + len(content):
            content = self.read(start, start + max(least, _WINDOW_BYTES))
            first, self._window = start, (start, content)
        return content, start - first

    def find(self, byte: bytes, start: int) -> int:
        """Return the place of the first `byte` from `start` on; -1 if there is none."""
        while start < self._size:
            content, at = self.window(start, 1)
            if (found := content.find(byte, at)) >= 0:
                return start + found - at
            start += len(content) - at
        return -1

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop` - 1, or to the end of the file."""
        content = np.empty(max(0, min(stop, self._size) - start), np.uint8)
        self.fill(content, start)
        self.check()
        return content.tobytes()

    def fill(self, array: NDArray[np.uint8], start: int) -> None:
        """Fill a contiguous array with the bytes from `start` on; `check` tells whether they are those of the opening.

        Raises FileChanged if the file is too short by now.
        """
        view, done = array.reshape(-1).data, 0
        try:
            while done < len(view):
                with self._lock:
                    file = self._opened()
                    file.seek(start + done)
                    count = file.readinto(view[done:])  # type: ignore[attr-defined]  # every file of `open` has it
                if not count:
                    raise self._changed()
                done += count
        except OSError as exc:
            self.check()  # a network volume reports a removed file as an error
            raise FileRefused(f"{self.path}: cannot be read: {reason_of(exc)}") from exc

    def check(self) -> None:
        """Raise FileChanged if the file has been written, replaced or removed since it was opened."""
        if self._unpacked is None and not is_unchanged(self.path, self._stamp):
            raise self._changed()

    def release(self) -> None:
        """Release the memory of what was read last."""
        self._window = (0, b"")

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._unpacked or self.path.open("rb", buffering=0)
            weakref.finalize(self, self._file.close)
        return self._file

    def _changed(self) -> FileChanged:
        return changed(self.path)


def is_unchanged(path: Path, stamp: FileStamp) -> bool:
    """Return whether a file still has a stamp."""
    try:
        return file_stamp(path) == stamp
    except OSError:
        return False


def changed(path: Path) -> FileChanged:
    """Return the error for a file that is not as it was when it was opened."""
    return FileChanged(f"{path}: changed while it was read; run the command again once no program writes the file")


def stamp_hash(path: Path) -> int:
    """Return a number that changes whenever a file is written, replaced, created or removed."""
    try:
        return hash_of(file_stamp(path))
    except OSError:
        return hash_of(FileStamp(0, 0, 0))


def hash_of(stamp: FileStamp) -> int:
    """Return a hash of time and size: some network volumes give a file that is not open another inode now and then."""
    return hash((stamp.mtime_ns, stamp.size_bytes))
