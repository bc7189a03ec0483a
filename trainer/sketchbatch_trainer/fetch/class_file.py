"""Complete the file of one class: download the missing bytes, verify the content, and rename the partial file last.

The partial file, NAME.part, holds the beginning of the file in Google's storage bucket, byte for byte, so that the
next fetch can resume.
"""

import base64
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from io import BufferedRandom, BufferedReader, BytesIO

from sketchbatch_client.drawings.readers import open_bitmaps, read_bitmaps
from sketchbatch_client.errors import FileRefused

from ..errors import FetchFailed
from .download import Downloader, RemoteFile
from .fetch_request import FetchRequest, FetchResult
from .formats import NPY, FilePrefix, NotDrawings, write_row_count


class ClassFile:
    """Completes the local file of one class of a fetch request."""

    def __init__(self, request: FetchRequest, label: str) -> None:
        self._form = request.form
        self._label = label
        self._url = request.url(label)
        self._path = request.path(label)
        self._partial = self._path.with_name(self._path.name + ".part")
        self._rows = request.rows_of(label)
        self._expected = request.catalogue[label]

    def fetch(self, downloader: Downloader) -> FetchResult:
        """Download the missing rows; send no request if the file is already complete.

        Raises:
            BucketUnreachable: The bucket accepts no connection.
            FetchFailed: The server refuses the request or fails repeatedly (NAME.part keeps the received bytes), or
                the received content is not the bucket's file (NAME.part is deleted), or the local file has other
                drawings than the bucket's file (it stays).
        """
        rows = self._complete_rows()
        received_before = downloader.received_bytes
        if rows is None:
            remote = downloader.open(self._url)
            try:
                rows = self._rows_if_same_size(remote) or self._download(remote, downloader)
            except NotDrawings as exc:
                raise FetchFailed(f"{self._url}: {exc}") from exc
        return FetchResult(label=self._label, rows=rows, received_bytes=downloader.received_bytes - received_before)

    def _complete_rows(self) -> int | None:
        """Return the number of rows of a complete file; None if rows are missing.

        Also return None if a whole file other than a .npy is requested: the size in the bucket must be compared first.
        """
        if not self._path.is_file() or (self._rows is None and self._form is not NPY):
            return None
        try:
            rows = self._npy_rows() if self._form is NPY else self._count_rows(self._rows)
        except (FileRefused, NotDrawings):
            return None
        return rows if rows >= (self._rows or 1) else None

    def _npy_rows(self) -> int:
        """Return the number of rows in the .npy file; 0 if the whole file is requested and its digest is wrong."""
        rows = len(read_bitmaps(self._path))
        if self._rows is None:
            with self._path.open("rb") as file:
                return rows if _digest(file, hashlib.sha256).hex() == self._expected.sha256 else 0
        return rows

    def _count_rows(self, limit: int | None) -> int:
        with self._path.open("rb") as file:
            return self._form.count(file, limit).rows

    def _rows_if_same_size(self, remote: RemoteFile) -> int | None:
        """Return the number of rows of the local file if the bucket's file has the same size, else None.

        This rule is for formats other than npy: only npy has published digests, which are checked instead.
        """
        if self._form is NPY or not self._path.is_file() or self._path.stat().st_size != remote.size_bytes:
            return None
        with contextlib.suppress(NotDrawings):
            return self._count_rows(None)
        return None

    def _download(self, remote: RemoteFile, downloader: Downloader) -> int:
        """Download the missing bytes and return the number of rows in the complete file."""
        self._form.count(BytesIO(remote.head), 1)  # raises NotDrawings before a wrong response can replace stored bytes
        expected_bytes = self._expected.size_bytes
        if self._form is NPY and self._rows is None and remote.size_bytes != expected_bytes:
            raise FetchFailed(f"{self._url}: expected {expected_bytes} bytes, the server has {remote.size_bytes}")
        if self._path.is_file() and self._has_other_drawings(remote):
            raise FetchFailed(f"{self._path}: has other drawings than {self._url}; fetch into another folder")
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file() and not self._partial.is_file():
            shutil.copyfile(self._path, self._partial)  # the existing shorter file stays usable during the download
        if self._partial.is_file():
            with contextlib.suppress(NotDrawings):  # perhaps only NAME.part is damaged: download again from byte 0
                return self._complete_partial(remote, downloader)
        self._partial.touch()
        return self._complete_partial(remote, downloader)

    def _has_other_drawings(self, remote: RemoteFile) -> bool:
        """Return whether the local file has drawings that are not the first ones of the remote file."""
        start = self._form.count(BytesIO(remote.head), 0).end_bytes
        with self._path.open("rb") as file:
            try:
                if not self._form.count(file, 1).rows:
                    return False
                file.seek(self._form.count(file, 0).end_bytes)
            except NotDrawings:
                return self._is_readable()
            return not remote.head[start:].startswith(file.read(len(remote.head) - start))

    def _is_readable(self) -> bool:
        """Return whether the client could read the local file, such as a .npy of another shape than the bucket's."""
        try:
            return len(open_bitmaps(self._path)) > 0
        except FileRefused:
            return False

    def _complete_partial(self, remote: RemoteFile, downloader: Downloader) -> int:
        """Lengthen, verify and rename the partial file; delete it if its content is wrong."""
        try:
            with self._partial.open("r+b") as file:
                downloader.prepare(remote, file, self._form.count(BytesIO(remote.head), 0).end_bytes)
                prefix = self._extend(file, remote, downloader)
                self._finish(file, prefix, remote)
                file.flush()
                os.fsync(file.fileno())
        except NotDrawings:
            self._partial.unlink()
            raise
        self._partial.replace(self._path)
        return prefix.rows

    def _extend(self, file: BufferedRandom, remote: RemoteFile, downloader: Downloader) -> FilePrefix:
        """Lengthen `file` until it holds the requested rows or the whole remote file."""
        while True:
            prefix = self._form.count(file, self._rows)
            held_bytes = file.seek(0, os.SEEK_END)
            if prefix.rows == self._rows or held_bytes >= remote.size_bytes:
                return prefix
            stop = remote.size_bytes
            if self._rows is not None:
                missing_bytes = (self._rows - prefix.rows) * self._form.row_bytes
                stop = max(prefix.end_bytes + missing_bytes, held_bytes + self._form.min_request_bytes)
            downloader.extend(remote, file, min(stop, remote.size_bytes))

    def _finish(self, file: BufferedRandom, prefix: FilePrefix, remote: RemoteFile) -> None:
        """Cut `file` after the requested rows, or verify `file` if the whole remote file was requested."""
        if prefix.rows == self._rows:
            if self._form is NPY:
                write_row_count(file, prefix.rows)
            file.truncate(prefix.end_bytes)
        elif self._form is NPY and self._rows is not None:
            raise NotDrawings(f"expected {self._rows} drawings or more, got {prefix.rows}")
        elif self._form is NPY:
            _verify("sha256", self._expected.sha256, _digest(file, hashlib.sha256).hex())
        elif prefix.end_bytes != remote.size_bytes:
            raise NotDrawings(f"expected whole drawings, got one cut off at byte {remote.size_bytes}")
        elif remote.md5:  # only npy has published digests; for most other files the bucket states the MD5
            md5 = partial(hashlib.md5, usedforsecurity=False)
            _verify("md5", remote.md5, base64.b64encode(_digest(file, md5)).decode())


def _verify(algorithm: str, expected: str, got: str) -> None:
    if got != expected:
        raise NotDrawings(f"expected {algorithm} {expected}, got {got}; the download was deleted")


def _digest(file: BufferedReader | BufferedRandom, algorithm: Callable[[], "hashlib._Hash"]) -> bytes:
    file.seek(0)
    return hashlib.file_digest(file, algorithm).digest()
