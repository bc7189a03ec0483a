"""Downloads one file of the bucket into a partial file, from where that stops, for as long as a server deserves.

Flow: `open` asks for the first bytes and the size, `begin` makes a partial file agree with them, `extend` lengthens it.
A partial file needs no notes beside it: the last bytes it holds are asked for again, and must be what comes.
Knows neither classes nor drawings.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import requests
from urllib3.exceptions import MaxRetryError

from ..errors import BucketUnreachable, FetchFailed

HEAD_BYTES = 4096
OVERLAP_BYTES = 1024

_CHUNK_BYTES = 1 << 14  # of a cut answer, all but the last part of a chunk is kept
_LONGEST_WAIT_S = 60.0
_TRANSIENT = {408, 429, 500, 502, 503, 504}  # https://cloud.google.com/storage/docs/retry-strategy
_OFFLINE = "offline? `sketchbatch-train sketch` needs no network"
_PAGE = (b"<!doctype", b"<html", b"<?xml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How much of a server's trouble to put up with."""

    faults: int = 6
    """In a row, none of which brought anything, before giving up."""
    first_wait_s: float = 0.5
    """After the first fault; doubled after each, but what a server asks for (Retry-After) is granted, to 60 s."""
    connect_s: float = 10.0
    read_s: float = 30.0
    """Longest silence."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of the bucket, as the bucket describes it."""

    url: str
    head: bytes
    """Its first HEAD_BYTES, or all of it."""
    size_bytes: int
    md5: str
    """Base64 as in x-goog-hash, empty where the server does not say: not every object has one."""


@dataclass(slots=True)
class Shared:
    """What the threads of one fetch have in common."""

    on_bytes: Callable[[int], None]
    """Told how many bytes have come that were not held before."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set: whatever a thread is at ends by Stopped."""
    has_answered: bool = False
    """Until the bucket has once, a failed connection is no passing fault: we are offline."""


class Stopped(Exception):
    """The fetch was told to stop."""


class _Fault(Exception):
    """May pass by itself; trying again is worth while."""

    def __init__(self, message: str, *, wait_s: float = 0, is_unreachable: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.is_unreachable = is_unreachable


@dataclass(frozen=True, slots=True)
class _Answer:
    start: int
    size_bytes: int  # of the whole file
    response: requests.Response


class Downloader:
    """One thread's connection to the bucket. Use as a context manager."""

    received_bytes = 0
    """That were not held before."""

    def __init__(self, patience: Patience, shared: Shared) -> None:
        self._patience = patience
        self._shared = shared
        self._session = requests.Session()

    def __enter__(self) -> "Downloader":
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def open(self, url: str) -> Remote:
        """Asks for the beginning of the file.

        Raises:
            BucketUnreachable: Nobody answers.
            FetchFailed: The server refuses, sends a web page, or does not say how long the file is.
        """
        faults = 0
        while True:
            try:
                with self._get(url, 0, HEAD_BYTES) as answer:
                    return _remote(url, answer)
            except _Fault as fault:
                faults += 1
                self._wait_after(url, fault, faults)

    def begin(self, remote: Remote, file: BinaryIO, header_bytes: int) -> None:
        """Makes `file` begin as the remote file does, and drops all of it that could not be the same file's.

        The first `header_bytes` may differ: those of a .npy state how many rows are held.
        """
        file.seek(header_bytes)
        held = file.read(len(remote.head) - header_bytes)
        if held != remote.head[header_bytes:] or _size(file) > remote.size_bytes:
            file.truncate(0)
            self._count(len(remote.head))
        file.seek(0)
        file.write(remote.head)

    def extend(self, remote: Remote, file: BinaryIO, stop_bytes: int) -> None:
        """Lengthens `file`, which `begin` has prepared, to `stop_bytes` or somewhat more.

        Raises:
            BucketUnreachable: Nobody answers any more.
            FetchFailed: The server refuses, or faults came one after another. `file` keeps what has come.
        """
        faults = 0
        while (held := _size(file)) < stop_bytes:
            try:
                self._append(remote, file, stop_bytes)
            except _Fault as fault:
                faults = 1 if _size(file) > held else faults + 1
                self._wait_after(remote.url, fault, faults)

    def _append(self, remote: Remote, file: BinaryIO, stop_bytes: int) -> None:
        with self._get(remote.url, max(0, _size(file) - OVERLAP_BYTES), stop_bytes) as answer:
            if answer.size_bytes != remote.size_bytes:
                raise FetchFailed(
                    f"{remote.url}: changed from {remote.size_bytes} to {answer.size_bytes} bytes meanwhile"
                )
            file.seek(answer.start)
            for chunk in answer.response.iter_content(_CHUNK_BYTES):
                self._write(file, chunk)
                if file.tell() >= stop_bytes:
                    return
        raise _Fault(f"cut off after {_size(file)} of {stop_bytes} bytes")

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        """Writes what `file` does not hold of `chunk`, which begins where `file` stands."""
        if self._shared.stop.is_set():
            raise Stopped
        known = file.read(len(chunk))
        if not chunk.startswith(known):
            file.truncate(0)
            raise _Fault("what was held is not what the server has; beginning again")
        file.write(chunk[len(known) :])
        self._count(len(chunk) - len(known))

    def _count(self, received_bytes: int) -> None:
        self.received_bytes += received_bytes
        self._shared.on_bytes(received_bytes)

    @contextmanager
    def _get(self, url: str, start: int, stop: int) -> Iterator[_Answer]:
        """Bytes from `start` to before `stop`, or, from a server that ignores ranges, all from 0."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = (self._patience.connect_s, self._patience.read_s)
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                self._shared.has_answered = True
                yield _checked(url, response, start)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as exc:
            never_connected = bool(exc.args) and isinstance(exc.args[0], MaxRetryError)
            cause = _cause(exc)
            raise _Fault(cause if never_connected else f"cut off: {cause}", is_unreachable=never_connected) from exc
        except requests.RequestException as exc:
            raise FetchFailed(f"{url}: {exc}") from exc

    def _wait_after(self, url: str, fault: _Fault, faults: int) -> None:
        """Waits before the next attempt, or raises where there should be none."""
        is_last = faults >= self._patience.faults
        if fault.is_unreachable and (is_last or not self._shared.has_answered):
            raise BucketUnreachable(f"{url}: cannot be reached: {fault}; {_OFFLINE}") from fault
        if is_last:
            raise FetchFailed(f"{url}: {fault}; tried {faults} times; fetch again to go on from there") from fault
        wait_s = max(fault.wait_s, self._patience.first_wait_s * 2 ** (faults - 1))
        if self._shared.stop.wait(min(wait_s, _LONGEST_WAIT_S)):
            raise Stopped


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _checked(url: str, response: requests.Response, start: int) -> _Answer:
    """The answer, if it is of the bytes asked for and says how long the file is."""
    status = f"the server says {response.status_code} {response.reason}"
    if response.status_code in _TRANSIENT:
        asked = response.headers.get("Retry-After", "")
        raise _Fault(status, wait_s=int(asked) if asked.isdecimal() else 0)
    if response.status_code not in (200, 206):
        raise FetchFailed(f"{url}: {status}")
    if response.status_code == 200:
        start, size = 0, response.headers.get("Content-Length", "")
    else:
        said = re.fullmatch(rf"bytes {start}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        size = said[1] if said else ""
    if not size.isdecimal():
        raise FetchFailed(f"{url}: expected bytes from {start} and the file's size, got {dict(response.headers)}")
    return _Answer(start, int(size), response)


def _remote(url: str, answer: _Answer) -> Remote:
    head = b""
    for chunk in answer.response.iter_content(HEAD_BYTES):
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    if len(head) < min(HEAD_BYTES, answer.size_bytes):
        raise _Fault(f"cut off after {len(head)} of {answer.size_bytes} bytes")
    if head.lstrip().lower().startswith(_PAGE):
        raise FetchFailed(f"{url}: expected drawings, got a web page; is there a login or a proxy in between?")
    md5 = re.search(r"md5=([\w+/]+=*)", answer.response.headers.get("x-goog-hash", ""))
    return Remote(url, head[:HEAD_BYTES], answer.size_bytes, md5[1] if md5 else "")


def _cause(exc: BaseException) -> str:
    """The innermost reason, which says most: [Errno 111] Connection refused, not the pool's story around it."""
    while inner := exc.__cause__ or exc.__context__:
        exc = inner
    return str(exc)
