"""Reads files again when they change: certificates and tokens are replaced while the service runs.

Kubernetes replaces the files of a Secret by turning a symbolic link, so what is compared is what stands behind the
path. Must not know what is in the files.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from ..errors import CredentialsUnusable

log = structlog.get_logger()

_Content = TypeVar("_Content")


class FileReloader(Generic[_Content]):
    """What `read` makes of some files, made again after one of them has changed. From any thread.

    Files that are unusable when the service starts keep it from starting; later, the log says so once, and what was
    read before goes on.

    Raises:
        CredentialsUnusable: From `read`, the first time.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], _Content]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._poll()
        self.content = read()

    def changed(self) -> _Content | None:
        """What they hold now; None if they have not changed since the last look, or are unusable."""
        with self._lock:
            seen = self._poll()
            if seen == self._seen:
                return None
            self._seen = seen  # before reading: what changes meanwhile is read at the next look
            files = list(map(str, self._paths))
            try:
                self.content = self._read()
            except CredentialsUnusable as exc:
                log.error("not reloaded, what was read before stays", files=files, cause=str(exc))
                return None
            log.info("reloaded", files=files)
            return self.content

    def _poll(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file is another, or was written; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
