"""Implement `Concurrency` for `AsyncClient`: every wait suspends the calling task."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import ModuleType
from typing import Any

import grpc.aio

from ..errors import Unavailable
from .classification import Classification
from .coalescing_queue import MAX_WAIT_S
from .connections.credentials import Metadata


class AsyncioEvent:
    """One-shot event that needs only one timer at a time, to cost little: each small call creates an event."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] = self._loop.create_future()

    def set(self) -> None:
        self._settle(True)

    async def wait(self, bypass: Callable[[], object], timeout_s: float) -> bool:
        self._timer = self._loop.call_later(min(MAX_WAIT_S, timeout_s), self._bypass, bypass, timeout_s)
        try:
            return await self._future
        finally:
            self._timer.cancel()

    def _bypass(self, bypass: Callable[[], object], timeout_s: float) -> None:
        bypass()
        self._timer = self._loop.call_later(max(0.0, timeout_s - MAX_WAIT_S), self._settle, False)

    def _settle(self, is_set: bool) -> None:
        if not self._future.done():  # done if the waiting task was cancelled
            self._future.set_result(is_set)


class AsyncioRequests:
    """`OrderedRequests` with one asyncio task for each request in flight."""

    def __init__(self) -> None:
        self._tasks: deque[asyncio.Task[Classification]] = deque()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, call: Callable[[], Coroutine[Any, Any, Classification]]) -> None:
        self._tasks.append(asyncio.create_task(call()))

    async def next(self) -> Classification:
        return await self._tasks.popleft()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class AsyncioBackend:
    """The backend of `AsyncClient`: implements `Concurrency` with the tasks of one event loop."""

    channel_module: ModuleType = grpc.aio
    event = AsyncioEvent

    def __init__(self) -> None:
        self._senders: set[asyncio.Task[None]] = set()
        self._is_stopped = asyncio.Event()

    async def close_channels(self, channels: list[grpc.aio.Channel]) -> None:
        await asyncio.gather(*(channel.close() for channel in channels))

    async def send(
        self, rpc: Callable[..., Any], request: object, timeout_s: float | None, metadata: Metadata | None
    ) -> Any:
        """Send an RPC; raise Unavailable if its channel is closed, which cancels the RPC, but not the calling task."""
        task = asyncio.current_task()
        assert task
        cancellations = task.cancelling()
        try:
            return await rpc(request, timeout=timeout_s, metadata=metadata)
        except asyncio.CancelledError:
            if task.cancelling() > cancellations:
                raise
            raise Unavailable("the client was closed") from None

    async def sleep(self, delay_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._is_stopped.wait()

    async def yield_control(self) -> None:
        await asyncio.sleep(0)

    def ordered_requests(self, max_in_flight: int) -> AsyncioRequests:
        return AsyncioRequests()

    def start_sender(
        self, send: Callable[[], Coroutine[Any, Any, None]], on_failure: Callable[[BaseException], object]
    ) -> None:
        def on_end(sender: asyncio.Task[None]) -> None:
            self._senders.discard(sender)
            # A task that is cancelled before its first step runs no line of `send`.
            if error := asyncio.CancelledError() if sender.cancelled() else sender.exception():
                on_failure(error)

        sender = asyncio.create_task(send())
        self._senders.add(sender)  # the event loop keeps only a weak reference to a task
        sender.add_done_callback(on_end)

    def stop(self) -> None:
        self._is_stopped.set()  # the senders end when the channels are closed
