"""Write files completely or not at all, even if the disk is full or the process receives a signal."""

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskFull

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLEANUP_S = 5.0  # longest time for the cleanup after a signal


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. At the end rename its file to `path`; after an error remove it.

    Raises DiskFull if there is no space for the file.
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
    """Raise DiskFull with the name of `path` if the block fails for lack of disk space."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _NO_SPACE:
            raise
        raise DiskFull(f"{path}: {exc.strerror}; free disk space, then run the same command again") from exc


def unwind_on_signals() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C: partial files are removed, and child processes are stopped.

    If the cleanup takes longer than `_CLEANUP_S`, for example because it waits for a lock, the process exits anyway.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: _unwind(SystemExit(128 + received)))
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell starts background jobs with SIGINT ignored
        signal.signal(signal.SIGINT, lambda *_: _unwind(KeyboardInterrupt()))


def _unwind(error: BaseException) -> None:
    threading.Thread(target=_exit_after_cleanup, daemon=True).start()
    raise error


def _exit_after_cleanup() -> None:
    time.sleep(_CLEANUP_S)
    os._exit(1)
