"""Classify bitmaps from asyncio: the methods of `client` as coroutines."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing

from ..drawings.bitmap_arrays import Drawings
from ..errors import RequestRefused
from .asyncio_backend import AsyncioBackend
from .classification import Classification, ModelInfo
from .request import Batches, RequestKey, request_key
from .row_client import RowClient


class AsyncClient(RowClient):
    """Client for the tasks of one event loop at a time. Use it as an async context manager, or close it.

    In another event loop, for example of a second `asyncio.run`, the client has new connections to the same targets.

    The methods are those of `Client`, as coroutines. A cancelled task does not disturb the calls of other tasks.
    """

    _make_backend = AsyncioBackend

    def _connect(self) -> None:
        self._loop = _running_loop()
        if self._loop:
            super()._connect()
        else:  # gRPC's channels need a loop; the first call replaces those of this one
            with closing(asyncio.new_event_loop()) as loop:
                loop.run_until_complete(self._connect_in_loop())

    async def _connect_in_loop(self) -> None:
        super()._connect()

    def _enter_loop(self) -> None:
        """Open new connections if those of the client belong to an event loop that has ended, or to none."""
        if self._loop is asyncio.get_running_loop() or self._pool.is_closed:
            return
        if self._loop and self._loop.is_running():
            raise RequestRefused("an AsyncClient must be used in one event loop at a time, got a second: open another")
        self._connect()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests in flight raise Unavailable, as all later calls do."""
        if self._loop is _running_loop():
            await self._close()
        else:  # the connections ended with their event loop
            self._pool.close()

    async def classify(
        self, bitmaps: Drawings, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        """Classify any number of bitmaps; arguments and errors as for `Client.classify`."""
        self._enter_loop()
        return await self._classify(bitmaps, request_key(top_k, model_name, model_version))

    def score(
        self,
        batches: Batches,
        *,
        top_k: int = 0,
        model_name: str = "",
        model_version: str = "",
        allow_non_finite: bool = False,
    ) -> AsyncGenerator[Classification, None]:
        """Classify any number of batches of bitmaps; arguments, results and errors as for `Client.score`.

        Batches may also come from an asynchronous iterable.
        """
        key = request_key(top_k, model_name, model_version)
        return self._score_in_loop(batches, key, allow_non_finite)

    async def _score_in_loop(
        self, batches: Batches, key: RequestKey, allow_non_finite: bool
    ) -> AsyncGenerator[Classification, None]:
        self._enter_loop()
        async with aclosing(self._score(batches, key, allow_non_finite=allow_non_finite)) as parts:
            async for part in parts:
                yield part

    async def models(self) -> list[ModelInfo]:
        """Return every served version of every model, the default model first."""
        self._enter_loop()
        return await self._list_models()

    async def model(self, name: str = "", version: str = "", *, with_training_digests: bool = False) -> ModelInfo:
        """Return one model; arguments and errors as for `Client.model`."""
        self._enter_loop()
        return await self._get_model(name, version, with_training_digests=with_training_digests)

    async def health(self, service: str = "") -> str:
        """Return the health of a gRPC service, as `Client.health` does."""
        self._enter_loop()
        return await self._check_health(service)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread; None outside of coroutines."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
