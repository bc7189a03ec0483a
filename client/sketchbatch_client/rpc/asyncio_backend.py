"""Waits by suspending the task that calls."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from .classification import Classification
from .coalescing_queue import HURRY_AFTER_S
from .concurrency import Gate, Requests
from .connections.credentials import Metadata
from .connections.targets import Options


class Tasks:
    """`Waits` of `AsyncClient`."""

    def __init__(self) -> None:
        self._senders: set[asyncio.Task[None]] = set()

    def open_channel(
        self, target: str, credentials: grpc.ChannelCredentials | None, options: Options
    ) -> grpc.aio.Channel:
        if credentials:
            return grpc.aio.secure_channel(target, credentials, options)
        return grpc.aio.insecure_channel(target, options)

    async def close_channels(self, channels: list[grpc.aio.Channel]) -> None:
        await asyncio.gather(*(channel.close() for channel in channels))

    async def call(self, rpc: Callable[..., Any], request: object, timeout_s: float, metadata: Metadata | None) -> Any:
        return await rpc(request, timeout=timeout_s, metadata=metadata)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    async def give_way(self) -> None:
        await asyncio.sleep(0)

    def gate(self) -> Gate:
        return _Gate()

    def requests(self, most: int) -> Requests:
        return _Requests()

    def start(self, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        sender = asyncio.create_task(send())
        self._senders.add(sender)  # or the loop would let it be collected
        sender.add_done_callback(self._senders.discard)

    def stop(self) -> None:
        """Those under way end with the channels."""


class _Gate:
    """One timer at a time, for hurrying and then for giving up: there is a gate for each small call."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[bool] = self._loop.create_future()

    def open(self) -> None:
        self._settle(True)

    async def wait(self, hurry: Callable[[], object], timeout_s: float) -> bool:
        self._timer = self._loop.call_later(min(HURRY_AFTER_S, timeout_s), self._lose_patience, hurry, timeout_s)
        try:
            return await self._opened
        finally:
            self._timer.cancel()

    def _lose_patience(self, hurry: Callable[[], object], timeout_s: float) -> None:
        hurry()
        self._timer = self._loop.call_later(max(0.0, timeout_s - HURRY_AFTER_S), self._settle, False)

    def _settle(self, is_open: bool) -> None:
        if not self._opened.done():  # its caller may have been cancelled
            self._opened.set_result(is_open)


class _Requests:
    def __init__(self) -> None:
        self._tasks: deque[asyncio.Task[Classification]] = deque()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, ask: Callable[[], Coroutine[Any, Any, Classification]]) -> None:
        self._tasks.append(asyncio.create_task(ask()))

    async def next(self) -> Classification:
        return await self._tasks.popleft()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
