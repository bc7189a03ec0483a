"""Detect changes of a file without reading its content."""

from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """Identity, modification time and size of a file; if a file is written or replaced, its stamp changes."""

    inode: int
    mtime_ns: int
    size_bytes: int


def file_stamp(path: Path) -> FileStamp:
    """Return the stamp of the file that `path` leads to; follow links, since Kubernetes updates files by new links."""
    status = path.stat()
    return FileStamp(status.st_ino, status.st_mtime_ns, status.st_size)
