"""Read files again after they have changed: certificates and tokens are replaced while the service runs.

Kubernetes replaces the files of a Secret by changing a symbolic link, so the files behind the links are compared. The
module does not know what the files contain.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from ..errors import CredentialsUnusable
from ..file_stamp import FileStamp, read_stamp

log = structlog.get_logger()

_Content = TypeVar("_Content")


def read_credentials(path: Path) -> bytes:
    """Return the bytes of a certificate, key or token file; raise CredentialsUnusable if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CredentialsUnusable(f"{path}: cannot be read: {exc.strerror}") from exc


class FileReloader(Generic[_Content]):
    """Keep what `read` returns for some files, and call `read` again after one of them has changed. Thread-safe.

    At the start, `read` may raise CredentialsUnusable. Later, the error is logged once and the previous content stays.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], _Content]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamps = self._read_stamps()
        self.content = read()

    def reload_if_changed(self) -> _Content | None:
        """Return the new content; None if no file has changed since the last call, or the new content is unusable."""
        with self._lock:
            stamps = self._read_stamps()
            if stamps == self._stamps:
                return None
            self._stamps = stamps  # before reading: a change during the reading is found by the next call
            files = list(map(str, self._paths))
            try:
                self.content = self._read()
            except CredentialsUnusable as exc:
                log.error("not reloaded, what was read before stays", files=files, cause=str(exc))
                return None
            log.info("reloaded", files=files)
            return self.content

    def _read_stamps(self) -> list[FileStamp | None]:
        try:
            return [read_stamp(path) for path in self._paths]
        except OSError:
            return []  # differs from any earlier stamps: `read` then reports the cause
