"""What a client of threads and one of asyncio's tasks do differently: `Threads` and `Tasks` are the two ways to wait.

The rules (`caller`, `rows`) are written once, as coroutines that wait through this. With `Threads` every wait blocks:
none of them ever suspends, and `finished` runs them to their end in one step (docs/decisions/0015).
"""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import grpc

from .classification import Classification
from .connections.credentials import Metadata
from .connections.targets import Options


class Gate(Protocol):
    """What one caller waits at for an answer that another thread or task brings."""

    def open(self) -> None:
        """Ends the wait; called once, from any thread."""

    async def wait(self, hurry: Callable[[], object], timeout_s: float) -> bool:
        """Whether it was opened in time; calls `hurry` when it is not within `HURRY_AFTER_S`."""


class Requests(Protocol):
    """The requests of one bulk call under way, in the order started."""

    def __len__(self) -> int: ...

    def start(self, ask: Callable[[], Coroutine[Any, Any, Classification]]) -> None:
        """Sends one more."""

    async def next(self) -> Classification:
        """The first one's answer."""

    async def aclose(self) -> None:
        """Sends nothing more, and waits for no answer."""


class Waits(Protocol):
    """How to open channels, call, sleep and do something meanwhile."""

    def open_channel(self, target: str, credentials: grpc.ChannelCredentials | None, options: Options) -> Any: ...

    async def close_channels(self, channels: list[Any]) -> None: ...

    async def call(
        self, rpc: Callable[..., Any], request: object, timeout_s: float, metadata: Metadata | None
    ) -> Any: ...

    async def sleep(self, delay_s: float) -> None: ...

    async def give_way(self) -> None:
        """Lets callers that were just answered go first."""

    def gate(self) -> Gate: ...

    def requests(self, most: int) -> Requests: ...

    def start(self, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a sender of shared requests, in a thread or task that is no caller's."""

    def stop(self) -> None:
        """Starts no more of them."""
