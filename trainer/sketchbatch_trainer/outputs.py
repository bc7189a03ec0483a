"""Refuse to write an output over something that no command of the trainer wrote, or over an input."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import OutputRefused

_EXPLORED_KEYS = {"source", "drawings", "classes", "copies", "neighbours"}
_PAGE_TITLE = b"<title>Sketchbatch: "
_HEAD_BYTES = 4096


def check_output(path: Path, is_own: Callable[[Path], bool], used: Iterable[Path] = ()) -> None:
    """Check that the file `path` may be written: it does not exist, or `is_own` accepts the file that would be lost.

    Raises:
        OutputRefused: `path` is one of `used`, the inputs and other outputs, compared by device and inode; or a link,
            folder, device or pipe; or another file.
    """
    if any(each.resolve() == path.resolve() or _is_same_file(each, path) for each in used):
        raise OutputRefused(f"{path}: the output must not be an input or another output; name another file")
    if path.is_symlink():
        raise OutputRefused(f"{path}: expected a new file, got a link to {path.readlink()}; name that file")
    if not path.exists():
        return
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or pipe"
        raise OutputRefused(f"{path}: expected a new file, got {kind}; name another file")
    if not is_own(path):
        raise OutputRefused(f"{path}: exists, and sketchbatch-train did not write it; name another file, or remove it")


def is_page(path: Path) -> bool:
    """Return whether a file begins like the pages of `explore` and `report`."""
    with path.open("rb") as file:
        return _PAGE_TITLE in file.read(_HEAD_BYTES)


def is_explored(path: Path) -> bool:
    """Return whether a file holds the figures of `explore`, as JSON."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() >= _EXPLORED_KEYS


def _is_same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)
