"""Write files completely or not at all, even if the disk is full or the process receives a signal."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from .errors import DiskFull

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLEANUP_S = 5.0  # longest time for the cleanup after a signal
# SIGHUP does not exist on Windows.
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_DESCRIPTOR = re.compile(r"/dev/(?:std(?P<name>in|out|err)|fd/(?P<number>\d+))|/proc/self/fd/(?P<own>\d+)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. At the end rename its file to `path`; after an error remove it.

    If `path` is a symbolic link, the link stays, and the file that it leads to is replaced. If `path` is a stream, the
    content of the temporary file is written to it at the end.

    Raises DiskFull if there is no space for the file.
    """
    with room_for(path):
        if is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                yield (partial := Path(folder) / "partial")
                with partial.open("rb") as content, open_stream(path) as stream:
                    shutil.copyfileobj(content, stream)
            return
        target = path.resolve() if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe, a terminal or another character device, or an open file such as /dev/stdout."""
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = 0
    return is_open_file(path) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def is_open_file(path: Path) -> bool:
    """Return whether a path names an open file of this process, such as /dev/stdout or that of `>(command)`."""
    return bool(_DESCRIPTOR.fullmatch(str(path)))


def open_stream(path: Path) -> BinaryIO:
    """Open a stream for writing; for a named pipe, wait for its reader. Raises OSError with the name of the path."""
    found = _DESCRIPTOR.fullmatch(str(path))
    if not found:
        return path.open("wb")
    number = {"in": 0, "out": 1, "err": 2}[found["name"]] if found["name"] else int(found["number"] or found["own"])
    try:
        return os.fdopen(os.dup(number), "wb")  # to open /dev/stdout would empty the file that it leads to
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc


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

    Later signals are ignored, since they would interrupt the cleanup. If the cleanup takes longer than `_CLEANUP_S`,
    for example because a call of a C library does not return, the process exits anyway.
    """
    for number in _STOPPING:
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # of background jobs of a shell
            signal.signal(number, _unwind)
    _limit_cleanup()


def _unwind(received: int, _: object) -> None:
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    for child in multiprocessing.active_children():  # they hold no files, and some first finish a long call
        child.kill()
    raise KeyboardInterrupt if received == signal.SIGINT else SystemExit(128 + received)


@cache
def _limit_cleanup() -> None:
    """Start the thread that ends the process after a signal.

    Python calls a signal handler once the main thread returns from C code, but writes to the pipe at once.
    """
    received, arriving = os.pipe()
    os.set_blocking(arriving, False)
    signal.set_wakeup_fd(arriving, warn_on_full_buffer=False)
    threading.Thread(target=_exit_after_cleanup, args=(received,), daemon=True).start()


def _exit_after_cleanup(received: int) -> None:
    """End the process 5 s after a stopping signal, unless another part of the program has set a handler for it."""
    while True:
        number = os.read(received, 1)[0]
        if number in _STOPPING and signal.getsignal(number) in (_unwind, signal.SIG_IGN):
            time.sleep(_CLEANUP_S)
            os._exit(128 + number)
