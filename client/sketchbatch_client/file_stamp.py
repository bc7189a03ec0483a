"""Detect that a file has changed without reading it."""

from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """Identity, modification time and size of a file; differs after every ordinary change."""

    inode: int
    mtime_ns: int
    size_bytes: int


def file_stamp(path: Path) -> FileStamp:
    """Return the stamp of a file; follows symbolic links, which Kubernetes swaps to replace a projected file."""
    status = path.stat()
    return FileStamp(status.st_ino, status.st_mtime_ns, status.st_size)
