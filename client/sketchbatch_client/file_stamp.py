"""Detect changes of a file without reading its content."""

from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """Identity, modification time and size of a file; every ordinary change of the file changes the stamp."""

    inode: int
    mtime_ns: int
    size_bytes: int


def file_stamp(path: Path) -> FileStamp:
    """Return the stamp of a file; follow symbolic links, because Kubernetes replaces projected files by new links."""
    status = path.stat()
    return FileStamp(status.st_ino, status.st_mtime_ns, status.st_size)
