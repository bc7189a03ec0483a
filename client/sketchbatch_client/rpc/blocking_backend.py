"""Waits by blocking the thread that calls."""

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from .classification import Classification
from .coalescing_queue import HURRY_AFTER_S
from .concurrency import Gate, Requests
from .connections.credentials import Metadata
from .connections.targets import Options

_SENDERS = 32  # threads that send shared requests, started as needed; two a lane while the service answers in time

Result = TypeVar("Result")


def finished(work: Awaitable[Result]) -> Result:
    """What `work` returns, whose waits all block."""
    try:
        next(work.__await__())
    except StopIteration as done:
        result: Result = done.value
        return result
    raise RuntimeError("a wait of threads has suspended")


class Threads:
    """`Waits` of `Client`."""

    def __init__(self) -> None:
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="sketchbatch-shared")

    def open_channel(self, target: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.Channel:
        if credentials:
            return grpc.secure_channel(target, credentials, options)
        return grpc.insecure_channel(target, options)

    async def close_channels(self, channels: list[grpc.Channel]) -> None:
        for channel in channels:
            channel.close()

    async def call(self, rpc: Callable[..., Any], request: object, timeout_s: float, metadata: Metadata | None) -> Any:
        return rpc(request, timeout=timeout_s, metadata=metadata)

    async def sleep(self, delay_s: float) -> None:
        time.sleep(delay_s)

    async def give_way(self) -> None:
        """A thread that was woken goes when it can."""

    def gate(self) -> Gate:
        return _Gate()

    def requests(self, most: int) -> Requests:
        return _Requests(most)

    def start(self, send: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._senders.submit(lambda: finished(send()))

    def stop(self) -> None:
        self._senders.shutdown(wait=False)


class _Gate:
    __slots__ = ("_lock", "open")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.open: Callable[[], None] = self._lock.release

    async def wait(self, hurry: Callable[[], object], timeout_s: float) -> bool:
        if self._lock.acquire(timeout=min(HURRY_AFTER_S, timeout_s)):
            return True
        hurry()
        return self._lock.acquire(timeout=max(0.0, timeout_s - HURRY_AFTER_S))


class _Requests:
    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="sketchbatch")
        self._futures: deque[Future[Classification]] = deque()

    def __len__(self) -> int:
        return len(self._futures)

    def start(self, ask: Callable[[], Coroutine[Any, Any, Classification]]) -> None:
        self._futures.append(self._pool.submit(lambda: finished(ask())))

    async def next(self) -> Classification:
        return self._futures.popleft().result()

    async def aclose(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
