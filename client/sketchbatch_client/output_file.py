"""Check the path of an output before a command begins to work, so that no output destroys another file."""

import os
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from .atomic import is_stream
from .drawings.readers import PICTURE_SUFFIXES
from .errors import FileRefused, OutputRefused

HTML_MARK = b'<meta name="generator" content="Sketchbatch">'
"""Marks the HTML pages of Sketchbatch; later commands may replace them."""

JSON_MARK = b'"matthews_corrcoef"'
"""Is found near the beginning of the JSON files of `evaluate`; later commands may replace them."""

PLOT_MARK = b"Sketchbatch"
"""Is in the metadata of the pictures of `evaluate`; later commands may replace them."""

_MARKED_BYTES = 4096  # at the beginning of a file, among which its mark must be
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def local_text(text: str) -> str:
    """Return the value of an option that names files. Raises FileRefused for a URL: `Path` makes a folder of it."""
    if _URL.match(text):
        remedy = "mount the storage, or copy the file; `sketchbatch score` also reads and writes pipes: `-`"
        raise FileRefused(f"{text}: expected a path on this machine, got a URL; {remedy}")
    return text


def local_path(text: str) -> Path:
    """Return the path that an option names; raises FileRefused for a URL."""
    return Path(local_text(text))


def checked_output(path: Path) -> Path:
    """Return the path of the file to write: `path`, or the file that the symbolic link `path` leads to.

    Raises OutputRefused if `path` is a folder, a device, a pipe or a socket, or a link that leads nowhere, or if no
    file can be written to its folder.
    """
    if path.is_dir():
        raise OutputRefused(f"{path}: expected a file, got a folder; name a file in it")
    if path.is_symlink():
        if not path.exists():
            raise OutputRefused(f"{path}: expected a file, got a link that leads nowhere; remove it")
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise OutputRefused(f"{path}: expected a file, got a pipe, socket or device; name another output")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise OutputRefused(f"{path}: {folder} must be a folder, got a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputRefused(f"{path}: cannot be written, because the folder {folder} is read-only for this user")
    return path


def check_is_no_input(outputs: Iterable[Path], given: Path) -> None:
    """Raise OutputRefused if an output is the same file as an input, whatever the names and links that lead to it.

    `given` is a file, a folder of pictures, or "-" = standard input.
    """
    present = [(output, output.stat()) for output in outputs if output.exists()]
    for found in _statuses(given) if present else ():
        for output, status in present:
            if os.path.samestat(found, status):
                raise OutputRefused(f"{output}: must not be one of the inputs, got {given}; name another output")


def _statuses(given: Path) -> Iterable[os.stat_result]:
    if str(given) == "-":
        with suppress(OSError):  # it is closed
            yield os.fstat(0)
    elif given.is_dir():
        with os.scandir(given) as entries:
            for entry in entries:
                if entry.name.lower().endswith(PICTURE_SUFFIXES) and os.path.exists(entry):  # noqa: PTH110 - an entry
                    yield entry.stat()
    elif given.exists():
        yield given.stat()


def check_reports(reports: Iterable[tuple[Path | None, bytes]], inputs: Collection[Path]) -> None:
    """Check the files to which reports will be written, each with the mark by which earlier reports are recognised.

    A report may replace an earlier report or an empty file, and may be written to a stream such as /dev/stdout.

    Raises OutputRefused if a report cannot be written, is one of the inputs, or would replace another file.
    """
    seen: set[Path] = set()
    for path, mark in reports:
        if not path or is_stream(path):
            continue
        check_replaceable(path, lambda file, mark=mark: mark in _head(file), "report", inputs)  # type: ignore[misc]
        if path.resolve() in seen:
            raise OutputRefused(f"{path}: must not be the file of two reports; name another file for one of them")
        seen.add(path.resolve())


def check_replaceable(path: Path, is_own: Callable[[Path], bool], kind: str, inputs: Iterable[Path] = ()) -> None:
    """Raise OutputRefused if `path` cannot be written, is one of `inputs`, or is a file that `is_own` does not accept.

    `kind` names in the error what the file should be. An empty file may be replaced.
    """
    file = checked_output(path)
    for given in inputs:
        check_is_no_input([file], given)
    if file.exists() and file.stat().st_size and not is_own(file):
        raise OutputRefused(f"{path}: exists, and is no {kind} of Sketchbatch; remove it, or name another file")


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_MARKED_BYTES)
