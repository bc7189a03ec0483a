"""Download a file of Google's storage bucket into a partial file; resume and retry after faults.

Flow: `open` reads the first bytes and the size of the remote file, `prepare` compares a partial file with these bytes,
`extend` lengthens the partial file. A partial file needs no metadata: its last bytes are requested again and compared.
This module knows neither classes nor drawings.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

import requests
from sketchbatch_client.file_kind import describe
from urllib3.exceptions import MaxRetryError

from ..errors import BucketUnreachable, FetchFailed

HEAD_BYTES = 4096
OVERLAP_BYTES = 1024

_CHUNK_BYTES = 1 << 14  # bytes that are written at once; an interrupted response loses at most one chunk
_MAX_WAIT_S = 60.0
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}  # source: https://cloud.google.com/storage/docs/retry-strategy
_OFFLINE = "offline? `sketchbatch-train sketch` needs no network"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """When to retry a request, and when to give up."""

    max_faults: int = 6
    """Number of consecutive faults, without a new byte in between, after which the download fails."""
    first_wait_s: float = 0.5
    """Wait after the first fault; each further fault doubles the wait. A longer Retry-After is obeyed, up to 60 s."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """Longest wait for the next byte of a response."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the bucket, as the server describes it."""

    url: str
    head: bytes
    """The first HEAD_BYTES bytes of the file, or the whole file if it is shorter."""
    size_bytes: int
    md5: str
    """MD5 in Base64, from the header x-goog-hash; empty if the server states no MD5, as for some objects."""


@dataclass(slots=True)
class FetchState:
    """State that all threads of one fetch share."""

    on_bytes: Callable[[int], None]
    """Called with the number of new bytes of each chunk."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Event that makes each thread raise FetchStopped at its next chunk or wait."""
    is_online: bool = False
    """True after the first response. If a connection fails before, the machine counts as offline: no retry."""


class FetchStopped(Exception):
    """`FetchState.stop` was set."""


class _TransientError(Exception):
    """A fault that a retry may overcome."""

    def __init__(self, message: str, *, wait_s: float = 0, is_unreachable: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.is_unreachable = is_unreachable


class Downloader(AbstractContextManager["Downloader"]):
    """The HTTP session of one download thread. Use the session as a context manager."""

    received_bytes = 0
    """Number of received bytes that were not in a partial file before."""

    def __init__(self, retry: RetrySettings, state: FetchState) -> None:
        self._retry_settings = retry
        self._state = state
        self._session = requests.Session()

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def open(self, url: str) -> RemoteFile:
        """Request the first bytes and the size of the file at `url`.

        Raises:
            BucketUnreachable: The bucket accepts no connection.
            FetchFailed: The server refuses the request, sends a web page, or does not state the size of the file.
        """
        return self._retry(url, lambda: self._read_head(url))

    def prepare(self, remote: RemoteFile, file: BinaryIO, header_bytes: int) -> None:
        """Write the head of the remote file into `file`; first empty `file` if it is not the remote file's beginning.

        The first `header_bytes` of `file` may differ from the remote file: a .npy header states the number of rows.
        """
        file.seek(header_bytes)
        held = file.read(len(remote.head) - header_bytes)
        if held != remote.head[header_bytes:] or _size(file) > remote.size_bytes:
            file.truncate(0)
            self._count(len(remote.head))
        file.seek(0)
        file.write(remote.head)

    def extend(self, remote: RemoteFile, file: BinaryIO, stop_bytes: int) -> None:
        """Lengthen `file`, which `prepare` has checked, to `stop_bytes` or slightly more.

        Raises:
            BucketUnreachable: The connection cannot be restored.
            FetchFailed: The server refuses, or `max_faults` consecutive faults occurred. `file` keeps the received
                bytes.
        """
        self._retry(remote.url, lambda: self._append(remote, file, stop_bytes))

    def _retry(self, url: str, attempt: Callable[[], _Result]) -> _Result:
        faults = 0
        while True:
            received_before = self.received_bytes
            try:
                return attempt()
            except _TransientError as error:
                faults = 1 if self.received_bytes > received_before else faults + 1
                self._wait_after(url, error, faults)

    def _wait_after(self, url: str, error: _TransientError, faults: int) -> None:
        """Wait before the next attempt, or raise an error if no further attempt is allowed."""
        settings = self._retry_settings
        is_last = faults >= settings.max_faults
        if error.is_unreachable and (is_last or not self._state.is_online):
            raise BucketUnreachable(f"{url}: cannot be reached: {error}; {_OFFLINE}") from error
        if is_last:
            raise FetchFailed(f"{url}: {error}; tried {faults} times; run the command again to resume") from error
        wait_s = max(error.wait_s, settings.first_wait_s * 2 ** (faults - 1))
        if self._state.stop.wait(min(wait_s, _MAX_WAIT_S)):
            raise FetchStopped

    def _read_head(self, url: str) -> RemoteFile:
        with self._get(url, 0, HEAD_BYTES) as (response, _, size_bytes):
            head = b""
            for chunk in response.iter_content(HEAD_BYTES):
                head += chunk
                if len(head) >= HEAD_BYTES:
                    break
        if len(head) < min(HEAD_BYTES, size_bytes):
            raise _TransientError(f"interrupted after {len(head)} of {size_bytes} bytes")
        if head.lstrip().startswith(b"<") and (
            kind := describe(head)
        ):  # not drawings, but records begin with any bytes
            raise FetchFailed(f"{url}: expected drawings, got {kind.name}; does a login or a proxy intervene?")
        md5 = re.search(r"md5=([\w+/]+=*)", response.headers.get("x-goog-hash", ""))
        return RemoteFile(url, head[:HEAD_BYTES], size_bytes, md5[1] if md5 else "")

    def _append(self, remote: RemoteFile, file: BinaryIO, stop_bytes: int) -> None:
        overlap_start = max(0, _size(file) - OVERLAP_BYTES)
        with self._get(remote.url, overlap_start, stop_bytes) as (response, start, size_bytes):
            if size_bytes != remote.size_bytes:
                raise FetchFailed(f"{remote.url}: changed from {remote.size_bytes} to {size_bytes} bytes in between")
            file.seek(start)
            for chunk in response.iter_content(_CHUNK_BYTES):
                self._write(file, chunk)
                if file.tell() >= stop_bytes:
                    return
        raise _TransientError(f"interrupted after {_size(file)} of {stop_bytes} bytes")

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        """Compare `chunk` with the bytes at the position of `file`, and append the bytes that `file` lacks."""
        if self._state.stop.is_set():
            raise FetchStopped
        held = file.read(len(chunk))
        if not chunk.startswith(held):
            file.truncate(0)
            raise _TransientError("the partial file differs from the server's file; starting again")
        file.write(chunk[len(held) :])
        self._count(len(chunk) - len(held))

    def _count(self, received_bytes: int) -> None:
        self.received_bytes += received_bytes
        self._state.on_bytes(received_bytes)

    @contextmanager
    def _get(self, url: str, start: int, stop: int) -> Iterator[tuple[requests.Response, int, int]]:
        """Request the bytes from `start` to before `stop`; yield the response, its offset and the file's size.

        A server without range support sends the whole file, and the yielded offset is 0.
        """
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = (self._retry_settings.connect_timeout_s, self._retry_settings.read_timeout_s)
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                self._state.is_online = True
                yield response, *_read_range(url, response, start)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as exc:
            is_unreachable = bool(exc.args) and isinstance(exc.args[0], MaxRetryError)
            cause = _innermost_cause(exc)
            message = cause if is_unreachable else f"interrupted: {cause}"
            raise _TransientError(message, is_unreachable=is_unreachable) from exc
        except requests.RequestException as exc:
            raise FetchFailed(f"{url}: {exc}") from exc


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read_range(url: str, response: requests.Response, start: int) -> tuple[int, int]:
    """Return the offset of the response in the file and the size of the whole file, from status and headers."""
    status = f"the server answered {response.status_code} {response.reason}"
    if response.status_code in _TRANSIENT_STATUSES:
        retry_after = response.headers.get("Retry-After", "")
        raise _TransientError(status, wait_s=int(retry_after) if retry_after.isdecimal() else 0)
    if response.status_code not in (200, 206):
        raise FetchFailed(f"{url}: {status}")
    if response.status_code == 200:
        start, size = 0, response.headers.get("Content-Length", "")
    else:
        content_range = re.fullmatch(rf"bytes {start}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        size = content_range[1] if content_range else ""
    if not size.isdecimal():
        raise FetchFailed(f"{url}: expected bytes from {start} and the file's size, got {dict(response.headers)}")
    return start, int(size)


def _innermost_cause(exc: BaseException) -> str:
    """Return the innermost exception's message, such as "[Errno 111] Connection refused" without the pool's text."""
    while inner := exc.__cause__ or exc.__context__:
        exc = inner
    return str(exc)
