"""Declare the operations that `Client` and `AsyncClient` implement differently: with threads, or with asyncio tasks.

`BaseClient` and `RowClient` are written once, as coroutines that wait only through a `Concurrency`. With
`BlockingBackend` every wait blocks the thread. The coroutines then never suspend, and `run_blocking` runs each of them
in one step (docs/decisions/0015).
"""

from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any, Protocol

from .classification import Classification
from .connections.credentials import Metadata


class OneShotEvent(Protocol):
    """An event that one caller waits for and another thread or task sets once."""

    def set(self) -> None: ...

    async def wait(self, bypass: Callable[[], object], timeout_s: float) -> bool:
        """Return whether the event was set within `timeout_s`; call `bypass` if it was not set within `MAX_WAIT_S`."""


class OrderedRequests(Protocol):
    """The requests in flight of one bulk call, in the order in which they were started."""

    def __len__(self) -> int: ...

    def start(self, call: Callable[[], Coroutine[Any, Any, Classification]]) -> None: ...

    async def next(self) -> Classification:
        """Return the response to the oldest request."""

    async def aclose(self) -> None:
        """Cancel the requests that have no response yet."""


class Concurrency(Protocol):
    """The operations of a backend: send RPCs, sleep, and run work concurrently with the caller."""

    channel_module: ModuleType  # `grpc` or `grpc.aio`, whose functions open the channels

    async def close_channels(self, channels: list[Any]) -> None: ...

    async def send(
        self, rpc: Callable[..., Any], request: object, timeout_s: float | None, metadata: Metadata | None
    ) -> Any:
        """Send an RPC and return its response; `timeout_s` None = no limit."""

    async def sleep(self, delay_s: float) -> None:
        """Wait for `delay_s`, or until `stop`."""

    async def yield_control(self) -> None:
        """Suspend the caller for a moment, so that other callers run whose responses have just arrived."""

    def event(self) -> OneShotEvent: ...

    def ordered_requests(self, max_in_flight: int) -> OrderedRequests: ...

    def start_sender(
        self, send: Callable[[], Coroutine[Any, Any, None]], on_failure: Callable[[BaseException], object]
    ) -> None:
        """Run `send` in a thread or task of its own, so that a cancelled caller does not interrupt it.

        If no thread can be started, because the client was closed or the interpreter ends, the caller runs `send`. If
        `send` is cancelled or raises an exception, `on_failure` is called once, from any thread.
        """

    def stop(self) -> None:
        """End all sleeps, and keep no thread for senders; later senders find a closed connection pool."""
