"""Writes a file whole or not at all, also when the disk is full or the process is told to stop."""

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_LATE_S = 5.0
"""How long a process that was told to stop may take to tidy up."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it becomes `path` on leaving, or vanishes if leaving by an error.

    Raises:
        DiskFull: There is no room for it.
    """
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raises DiskFull, which names `path`, where the block cannot write for want of room."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _NO_ROOM:
            raise
        raise DiskFull(f"{path}: {exc.strerror}; make room there, then give the same command again") from exc


def unwind_on_signals() -> None:
    """Makes SIGTERM and SIGHUP leave as Ctrl-C does: partial files are removed, what was started is stopped.

    What cannot be stopped, such as a thread whose lock went with the code that was interrupted, is left after a while.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: _unwind(SystemExit(128 + received)))
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a job in the background
        signal.signal(signal.SIGINT, lambda *_: _unwind(KeyboardInterrupt()))


def _unwind(error: BaseException) -> None:
    threading.Thread(target=_end_late, daemon=True).start()
    raise error


def _end_late() -> None:
    time.sleep(_LATE_S)
    os._exit(1)
