"""Detect that a file was replaced or written, without reading it: the system call `stat` suffices."""

from pathlib import Path

FileStamp = tuple[int, int, int]  # inode, nanoseconds of the last change, and size in bytes


def read_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of a file, after following links; None if the file is missing or access is denied.

    Raise OSError if the file system fails.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
