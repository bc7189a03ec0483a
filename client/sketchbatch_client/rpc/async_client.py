"""Classify bitmaps from asyncio: the methods of `client` as coroutines."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable

from ..drawings.readers import Bitmaps
from .asyncio_backend import AsyncioBackend
from .classification import Classification, ModelInfo
from .request import request_key
from .row_client import RowClient


class AsyncClient(RowClient):
    """Client for the tasks of one event loop. Use it as an async context manager, or close it.

    The arguments of the constructor are those of `BaseClient`. The methods are those of `Client`, as coroutines. A
    cancelled task does not disturb the calls of other tasks.
    """

    _make_backend = AsyncioBackend

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests in flight raise Unavailable, as all later calls do."""
        await self._close()

    async def classify(
        self, bitmaps: Bitmaps, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        return await self._classify(bitmaps, request_key(top_k, model_name, model_version))

    def score(
        self,
        batches: Iterable[Bitmaps] | AsyncIterable[Bitmaps],
        *,
        top_k: int = 0,
        model_name: str = "",
        model_version: str = "",
        allow_non_finite: bool = False,
    ) -> AsyncGenerator[Classification, None]:
        key = request_key(top_k, model_name, model_version)
        return self._score(batches, key, allow_non_finite=allow_non_finite)

    async def models(self) -> list[ModelInfo]:
        return await self._list_models()

    async def model(self, name: str = "", version: str = "", *, with_training_digests: bool = False) -> ModelInfo:
        return await self._get_model(name, version, with_training_digests=with_training_digests)

    async def health(self, service: str = "") -> str:
        return await self._check_health(service)
