"""Detect that a file was replaced, written or made readable, without reading it: the system call `stat` suffices."""

import os
from pathlib import Path

FileStamp = tuple[int, int, int, int]
"""Inode, size in bytes, and the times of the last write and of the last change in nanoseconds.

A program can set back the time of the write, as `touch -r` does, but not the time of the change. The latter also
changes with the permissions."""


def denied() -> str:
    """Return the cause for a file or folder that this process has no permission to read."""
    return f"cannot be read: permission denied (running as uid {os.geteuid()})"


def read_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of a file, after following links; None if the file is missing or access is denied.

    Raise OSError if the file system fails.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
