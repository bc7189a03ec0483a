"""Detect that a file was replaced or written, from its directory entry alone."""

from pathlib import Path

FileStamp = tuple[int, int, int]  # inode, nanoseconds of the last change, and size in bytes


def read_stamp(path: Path) -> FileStamp | None:
    """Follow links and return the stamp of a file, or None without access; raise OSError if the file system fails."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
