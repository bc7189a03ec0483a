"""Read files again after they have changed: certificates and tokens are replaced while the service runs.

Kubernetes replaces the files of a Secret by changing a symbolic link, so the files behind the links are compared. The
module does not know what the files contain.
"""

import codecs
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from ..background import Component, ComponentName
from ..errors import CredentialsUnusable
from ..file_stamp import FileStamp, read_stamp

log = structlog.get_logger()

_Content = TypeVar("_Content")


def read_credentials(path: Path) -> bytes:
    """Return the bytes of a certificate, key or token file, without the byte order mark that Windows editors add.

    Raise CredentialsUnusable if the file cannot be read, or is UTF-16, as PowerShell writes it.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise CredentialsUnusable(f"{path}: cannot be read: {exc.strerror}") from exc
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CredentialsUnusable(f"{path}: must be ASCII or UTF-8, got UTF-16; write it again as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


class FileReloader(Generic[_Content]):
    """Keep what `read` returns for some files, and call `read` again after one of them has changed. Thread-safe.

    At the start, `read` may raise CredentialsUnusable. Later, every error is counted, and logged once per file and
    cause. The previous content stays, and `read` is called again after a delay: a file system may fail, or file
    descriptors may be short, for a moment. Health ignores these errors, because the previous content may still work.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], _Content], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._read = read
        self._clock = clock
        self._component = Component(ComponentName.CREDENTIALS, first_delay_s=1.0, max_delay_s=60.0)
        self._retry_at = math.inf  # seconds of the clock; infinite after success
        self._last_cause = ""
        self._reloading = threading.Lock()  # held during reading; no thread waits for it
        self._stamps = self._read_stamps()
        self.failures = 0  # failed attempts to read changed files
        self.content = read()

    @property
    def is_stale(self) -> bool:
        """Return whether a changed file could not be read, so that the previous content is in use."""
        return self._retry_at < math.inf

    def reload_if_changed(self) -> _Content | None:
        """Return the new content; None if no file has changed since the last call, or the new content is unusable.

        Return None also while another thread reads the files, which may take long.
        """
        if not self._reloading.acquire(blocking=False):
            return None
        try:
            return self._reload_if_changed()
        finally:
            self._reloading.release()

    def _reload_if_changed(self) -> _Content | None:
        stamps = self._read_stamps()
        if stamps != self._stamps:
            self._last_cause = ""  # the next error is another file's
        elif self._clock() < self._retry_at:
            return None
        self._stamps = stamps  # before reading: a change during the reading is found by the next call
        try:
            self.content = self._read()
        except Exception as exc:  # raised to gRPC or to the thread that polls, it would reject the connection
            self._record(exc)
            return None
        self._retry_at, self._last_cause = math.inf, ""
        self._component.record_success()
        log.info("reloaded", files=list(map(str, self._paths)))
        return self.content

    def _record(self, error: Exception) -> None:
        """Count the error, log it unless it is the same as before, and set the time of the next attempt."""
        self.failures += 1
        self._retry_at = self._clock() + self._component.count_error()
        cause = str(error) if isinstance(error, CredentialsUnusable) else f"{type(error).__name__}: {error}"
        if cause != self._last_cause:
            self._last_cause = cause
            log.error(
                "not reloaded, what was read before stays",
                files=list(map(str, self._paths)),
                cause=cause,
                exc_info=None if isinstance(error, CredentialsUnusable) else error,
            )

    def _read_stamps(self) -> list[FileStamp | None]:
        try:
            return [read_stamp(path) for path in self._paths]
        except OSError:
            return []  # differs from any earlier stamps: `read` then reports the cause
