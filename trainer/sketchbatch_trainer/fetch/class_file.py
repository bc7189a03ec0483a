"""Completes the file of one class: keeps what is there, downloads what is missing, checks it, and renames it last.

Until then NAME.part holds the beginning of the bucket's file, byte for byte, for the next fetch to go on from.
"""

import base64
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from io import BufferedRandom, BufferedReader, BytesIO

from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_client.errors import FileRefused

from ..errors import FetchFailed
from .download import Downloader, Remote
from .fetch_request import Fetched, Order
from .formats import NPY, Beginning, NotDrawings, state_rows


class ClassFile:
    """The file of one class of an order."""

    def __init__(self, order: Order, label: str) -> None:
        self._form = order.form
        self._label = label
        self._url = order.url(label)
        self._path = order.path(label)
        self._part = self._path.with_name(self._path.name + ".part")
        self._wanted = order.rows_of(label)
        self._known = order.catalogue[label]

    def fetch(self, downloader: Downloader) -> Fetched:
        """Makes the file hold the rows asked for; one that does already is left alone.

        Raises:
            BucketUnreachable: Nobody answers.
            FetchFailed: The server refuses, or was given up (NAME.part keeps what came); or what came is not the
                bucket's file (nothing of it is kept).
        """
        rows = self._rows_held()
        received_before = downloader.received_bytes
        if rows is None:
            remote = downloader.open(self._url)
            try:
                rows = self._rows_if_whole(remote) or self._complete(remote, downloader)
            except NotDrawings as exc:
                raise FetchFailed(f"{self._url}: {exc}") from exc
        return Fetched(label=self._label, rows=rows, received_bytes=downloader.received_bytes - received_before)

    def _rows_held(self) -> int | None:
        """How many rows there are, if that is enough; None if it is not, or if only the bucket can tell."""
        if not self._path.is_file():
            return None
        try:
            rows = self._npy_rows() if self._form is NPY else self._other_rows()
        except (FileRefused, NotDrawings):
            return None
        return rows if rows and rows >= (self._wanted or 0) else None

    def _npy_rows(self) -> int | None:
        rows = len(read_bitmaps(self._path))
        with self._path.open("rb") as file:
            is_right = self._wanted is not None or _digest(file, hashlib.sha256).hex() == self._known.sha256
        return rows if is_right else None

    def _other_rows(self) -> int | None:
        if self._wanted is None:
            return None
        with self._path.open("rb") as file:
            return self._form.count(file, self._wanted).rows

    def _rows_if_whole(self, remote: Remote) -> int | None:
        """All rows, if all are there: without a digest in the catalogue only the bucket's size can tell."""
        if self._form is NPY or not self._path.is_file() or self._path.stat().st_size != remote.size_bytes:
            return None
        try:
            with self._path.open("rb") as file:
                return self._form.count(file, None).rows
        except NotDrawings:
            return None

    def _complete(self, remote: Remote, downloader: Downloader) -> int:
        """Downloads what is missing, and returns the rows that are there then."""
        self._form.count(BytesIO(remote.head), 1)  # before anything that is held gives way to what this is
        self._refuse_size(remote)
        self._part.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file() and not self._part.is_file():
            shutil.copyfile(self._path, self._part)  # the shorter file stays in use until the missing rows have come
        if self._part.is_file():
            with contextlib.suppress(NotDrawings):  # damaged here, or at the bucket: a new beginning tells
                return self._lengthen(remote, downloader)
        self._part.touch()
        return self._lengthen(remote, downloader)

    def _lengthen(self, remote: Remote, downloader: Downloader) -> int:
        """Makes the partial file hold the rows wanted, and then the file itself; a wrong one is deleted."""
        try:
            with self._part.open("r+b") as file:
                downloader.begin(remote, file, self._form.count(BytesIO(remote.head), 0).end_bytes)
                found = self._fill(file, remote, downloader)
                self._finish(file, found, remote)
                file.flush()
                os.fsync(file.fileno())
        except NotDrawings:
            self._part.unlink()
            raise
        self._part.replace(self._path)
        return found.rows

    def _refuse_size(self, remote: Remote) -> None:
        """Before the download of a whole .npy that cannot be right."""
        expected = self._known.size_bytes
        if self._form is NPY and self._wanted is None and remote.size_bytes != expected:
            raise FetchFailed(f"{self._url}: expected {expected} bytes, the server has {remote.size_bytes}")

    def _fill(self, file: BufferedRandom, remote: Remote, downloader: Downloader) -> Beginning:
        """Lengthens `file` until it holds the rows wanted, or all there are."""
        while True:
            found = self._form.count(file, self._wanted)
            held = file.seek(0, os.SEEK_END)
            if found.rows == self._wanted or held >= remote.size_bytes:
                return found
            stop = remote.size_bytes
            if self._wanted is not None:
                missing_bytes = (self._wanted - found.rows) * self._form.row_bytes
                stop = max(found.end_bytes + missing_bytes, held + self._form.least_bytes)
            downloader.extend(remote, file, min(stop, remote.size_bytes))

    def _finish(self, file: BufferedRandom, found: Beginning, remote: Remote) -> None:
        """Cuts `file` after the rows wanted, or checks the whole of it."""
        if found.rows == self._wanted:
            if self._form is NPY:
                state_rows(file, found.rows)
            file.truncate(found.end_bytes)
        elif self._form is not NPY:
            _check_whole(file, found, remote)
        elif self._wanted is not None:
            raise NotDrawings(f"expected {self._wanted} drawings or more, got {found.rows}")
        elif (got := _digest(file, hashlib.sha256).hex()) != self._known.sha256:
            raise NotDrawings(f"expected sha256 {self._known.sha256}, got {got}; nothing of it is kept")


def _check_whole(file: BufferedRandom, found: Beginning, remote: Remote) -> None:
    """Nobody has published digests of these; of most the bucket itself states one."""
    if found.end_bytes != remote.size_bytes:
        raise NotDrawings(f"expected whole drawings, got one cut off at byte {remote.size_bytes}")
    got = base64.b64encode(_digest(file, _md5)).decode()
    if remote.md5 and got != remote.md5:
        raise NotDrawings(f"expected md5 {remote.md5}, got {got}; nothing of it is kept")


def _digest(file: BufferedReader | BufferedRandom, algorithm: Callable[[], "hashlib._Hash"]) -> bytes:
    file.seek(0)
    return hashlib.file_digest(file, algorithm).digest()


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)  # against faults on the way
