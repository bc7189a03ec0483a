"""Classify bitmaps from threads; the methods block until the service has responded."""

import os
from collections.abc import AsyncGenerator, Generator, Iterable
from functools import cache
from weakref import WeakSet

from ..drawings.bitmap_arrays import Drawings
from .blocking_backend import BlockingBackend, run_blocking
from .classification import Classification, ModelInfo
from .request import request_key
from .row_client import RowClient

_clients: WeakSet["Client"] = WeakSet()  # all clients of this process

_inherited: list[object] = []
"""Connections of the parent process. They are never freed: freeing them could wait for ever for a lock that a thread of
the parent held at the fork."""


class Client(RowClient):
    """Client that many threads may share. Use it as a context manager, or close it.

    In a forked process, the client has new connections to the same targets; iterators of `score` that the parent has
    begun belong to the parent.
    """

    _make_backend = BlockingBackend

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; requests in flight raise Unavailable, as all later calls do."""
        run_blocking(self._close())

    def _connect(self) -> None:
        super()._connect()
        _clients.add(self)
        _handle_forks()

    def _reconnect(self) -> None:
        """Replace all that the parent's threads may have locked at the fork."""
        _inherited.append((self._pool, self._unwatched_connections, self._backend, self._queues))
        is_closed = self._pool.is_closed
        if is_closed:  # opens no connection: gRPC may still end those of the parent, and block new ones in the child
            self._targets = self._targets[:0]
        self._connect()
        if is_closed:
            self.close()

    def classify(
        self, bitmaps: Drawings, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        """Classify any number of bitmaps.

        Args:
            bitmaps: Integers from 0 to 255, (rows, 28, 28), (rows, 784), (rows, 28, 28, 1) or (rows, 1, 28, 28), or one
                bitmap; 0 = paper, 255 = ink. An array, a list, or a series of pandas or polars, whose entries may also
                be 784 bytes each. Bitmaps that look inverted cause an `InkWarning`.
            top_k: Number of best classes to return; 0 = the scores of all classes.
            model_name: "" = the default model of the service.
            model_version: "" = the newest version.

        Raises:
            RequestRefused: There are no rows, their type, shape or values are wrong, or `top_k` is too large.
            ServerFailed: The scores of a row are not finite, or the model call failed.
            SketchbatchError: The service cannot respond; the module `errors` lists the reasons.
        """
        return run_blocking(self._classify(bitmaps, request_key(top_k, model_name, model_version)))

    def score(
        self,
        batches: Iterable[Drawings] | Drawings,
        *,
        top_k: int = 0,
        model_name: str = "",
        model_version: str = "",
        allow_non_finite: bool = False,
    ) -> Generator[Classification, None, None]:
        """Classify any number of batches of bitmaps in constant memory; other arguments and errors as for `classify`.

        One array or series instead of several is one batch.

        Yields one `Classification` for each request of up to `rows_per_request` rows, in order. With
        `allow_non_finite`, a row whose scores are NaN or infinite does not raise ServerFailed; it has no label
        (`Classification.finite_rows`).
        """
        key = request_key(top_k, model_name, model_version)
        return _yielded(self._score(batches, key, allow_non_finite=allow_non_finite))

    def models(self) -> list[ModelInfo]:
        """Return every served version of every model, the default model first."""
        return run_blocking(self._list_models())

    def model(self, name: str = "", version: str = "", *, with_training_digests: bool = False) -> ModelInfo:
        """Return one model; "" = the default model, or its newest version. Raises `ModelNotFound`.

        `with_training_digests` requests `ModelInfo.training_digests`, by which `evaluate` recognises drawings that
        trained the model.
        """
        return run_blocking(self._get_model(name, version, with_training_digests=with_training_digests))

    def health(self, service: str = "") -> str:
        """Return SERVING, NOT_SERVING or SERVICE_UNKNOWN for a gRPC service; "" = the server as a whole.

        With several servers, one SERVING server is enough.
        """
        return run_blocking(self._check_health(service))


@cache
def _handle_forks() -> None:
    """Make forked child processes reconnect their copies of all clients; further calls have no effect."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reconnect_all)


def _reconnect_all() -> None:
    for client in list(_clients):
        client._reconnect()


def _yielded(parts: AsyncGenerator[Classification, None]) -> Generator[Classification, None, None]:
    """Yield the results of a generator whose waits all block."""
    try:
        while True:
            try:
                part = run_blocking(anext(parts))
            except StopAsyncIteration:
                return
            yield part
    finally:
        run_blocking(parts.aclose())
