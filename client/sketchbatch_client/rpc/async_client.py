"""Calls the service from asyncio: as `client`, with tasks for threads."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing

from ..drawings.readers import Bitmaps
from .asyncio_backend import Tasks
from .classification import Classification, ModelInfo
from .request import question
from .row_client import RowsCaller


class AsyncClient(RowsCaller):
    """Connections to a service, for the tasks of one event loop. Use it as an async context manager, or close it.

    Takes what `Caller` takes. Cancelling a task that awaits one of its calls disturbs no other.
    """

    _make_waits = Tasks

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drops the connections; requests under way fail."""
        await self._close()

    async def classify(
        self, bitmaps: Bitmaps, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        """Classifies any number of bitmaps; arguments and errors as `Client.classify`."""
        return await self._classify(bitmaps, question(top_k, model_name, model_version))

    async def score(
        self,
        batches: Iterable[Bitmaps] | AsyncIterable[Bitmaps],
        *,
        top_k: int = 0,
        model_name: str = "",
        model_version: str = "",
    ) -> AsyncIterator[Classification]:
        """Classifies a stream of batches of any size in constant memory, as `Client.score`."""
        async with aclosing(self._score(_each(batches), question(top_k, model_name, model_version))) as parts:
            async for part in parts:
                yield part

    async def models(self) -> list[ModelInfo]:
        """Every model and version being served, the default first."""
        return await self._list_models()

    async def model(self, name: str = "", version: str = "") -> ModelInfo:
        """One model; "" = the default, or the newest version. Raises `ModelNotFound`."""
        return await self._get_model(name, version)

    async def health(self, service: str = "") -> str:
        """What grpc.health.v1 says, as `Client.health`."""
        return await self._check_health(service)


async def _each(batches: Iterable[Bitmaps] | AsyncIterable[Bitmaps]) -> AsyncGenerator[Bitmaps, None]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch
