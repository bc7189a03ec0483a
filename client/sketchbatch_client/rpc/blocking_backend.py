"""Implement `Concurrency` for `Client`: every wait blocks the calling thread."""

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeVar

import grpc

from .classification import Classification
from .coalescing_queue import MAX_WAIT_S
from .connections.credentials import Metadata
from .connections.fork_gate import gate

_SIGNAL_CHECK_S = 0.5
"""Longest single wait. If a signal, such as Ctrl-C, arrives at the moment in which a wait begins, Python handles the
signal only after this wait."""

# Most sender threads; they are started on demand. A coalescing queue needs two if the service responds within
# MAX_WAIT_S.
_MAX_SENDERS = 32

Result = TypeVar("Result")


def run_blocking(work: Awaitable[Result]) -> Result:
    """Return the result of `work`, a coroutine whose waits all block."""
    try:
        next(work.__await__())
    except StopIteration as done:
        result: Result = done.value
        return result
    raise RuntimeError("a coroutine of the blocking client has suspended")


class BlockingEvent:
    """One-shot event made of a locked lock, which costs less than `threading.Event`: each small call creates one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        self._lock.release()

    async def wait(self, bypass: Callable[[], object], timeout_s: float) -> bool:
        if self._lock.acquire(timeout=min(MAX_WAIT_S, timeout_s)):
            return True
        bypass()
        ends_at = time.monotonic() + timeout_s - MAX_WAIT_S
        while (remaining_s := ends_at - time.monotonic()) > 0:
            if self._lock.acquire(timeout=min(_SIGNAL_CHECK_S, remaining_s)):
                return True
        return False


class BlockingRequests:
    """`OrderedRequests` with one thread for each request in flight."""

    def __init__(self, max_in_flight: int) -> None:
        self._pool = ThreadPoolExecutor(max_in_flight, thread_name_prefix="sketchbatch")
        self._futures: deque[Future[Classification]] = deque()

    def __len__(self) -> int:
        return len(self._futures)

    def start(self, call: Callable[[], Coroutine[Any, Any, Classification]]) -> None:
        try:
            future = self._pool.submit(lambda: run_blocking(call()))
        except RuntimeError:  # the interpreter ends, or the system allows no more threads
            future = _completed(call)
        self._futures.append(future)

    async def next(self) -> Classification:
        return self._futures.popleft().result()

    async def aclose(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _completed(call: Callable[[], Coroutine[Any, Any, Classification]]) -> Future[Classification]:
    """Run a call in this thread, and return its result or error as a future."""
    future: Future[Classification] = Future()
    try:
        future.set_result(run_blocking(call()))
    except Exception as exc:  # raised by `Future.result`
        future.set_exception(exc)
    return future


class BlockingBackend:
    """The backend of `Client`: implements `Concurrency` with threads."""

    channel_module: ModuleType = grpc
    event = BlockingEvent
    ordered_requests = BlockingRequests

    def __init__(self) -> None:
        self._senders = ThreadPoolExecutor(_MAX_SENDERS, thread_name_prefix="sketchbatch-shared")
        self._is_stopped = threading.Event()

    async def close_channels(self, channels: list[grpc.Channel]) -> None:
        for channel in channels:
            channel.close()

    async def send(
        self, rpc: Callable[..., Any], request: object, timeout_s: float | None, metadata: Metadata | None
    ) -> Any:
        with gate:
            return rpc(request, timeout=timeout_s, metadata=metadata)

    async def sleep(self, delay_s: float) -> None:
        self._is_stopped.wait(delay_s)

    async def yield_control(self) -> None:
        """Do nothing: the operating system schedules the threads."""

    def start_sender(
        self, send: Callable[[], Coroutine[Any, Any, None]], on_failure: Callable[[BaseException], object]
    ) -> None:
        has_begun = threading.Lock()

        def begin() -> None:
            if has_begun.acquire(blocking=False):
                try:
                    run_blocking(send())
                except BaseException as exc:
                    on_failure(exc)
                    if not isinstance(exc, Exception):  # Ctrl-C, if the caller runs `send`
                        raise

        try:
            self._senders.submit(begin)
        except RuntimeError:  # the client was closed, the interpreter ends, or the system allows no more threads
            begin()  # a thread of the pool may begin it, too: `submit` may have queued it before it failed

    def stop(self) -> None:
        self._is_stopped.set()
        self._senders.shutdown(wait=False)
