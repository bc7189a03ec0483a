"""Adapt the methods of servicers to grpcio's public asyncio server.

Every method becomes a handler of raw bytes that reads its requests itself. So the service can choose the status of a
call whose message is missing or cannot be parsed. With the usual unary handler of grpcio 1.85, a client that sends no
message waits for ever, and a client that sends a wrong message receives UNKNOWN.
"""

import asyncio
import inspect
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog

from .interface import CallAborted, Metadata, PendingMessages, Trailers, wants_gzip
from .status import HANDLER_FAILED, MISSING_REQUEST, NUMBERS, StatusCounts, invalid_message

log = structlog.get_logger()

_CANCELLATION_S = 0.01
"""Seconds between the end of a client's messages and the end of the call. grpcio reports a cancelled stream first as
an end of its messages, then as a cancellation; without the pause, the call would count as OK."""

# Strings, because grpc's classes are generic in its type stubs only, not at run time.
_MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Run: TypeAlias = "Callable[[Any, _Context], Awaitable[Any]]"


class Answers:
    """Pass responses and errors from other threads to the event loop; one wake-up of the loop delivers all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self._lock = threading.Lock()

    def put(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` on the event loop; any thread may call this method."""
        with self._lock:
            self._waiting.append(deliver)
            if self._is_scheduled:
                return
            self._is_scheduled = True
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            self._is_scheduled = False
        for deliver in waiting:
            deliver()


class AioUnaryCall:
    """A `UnaryCall` whose response or error settles `answer`, a future of the event loop."""

    def __init__(self, context: _Context, answers: Answers, serialize: Callable[[Any], bytes]) -> None:
        self._context = context
        self._answers = answers
        self._serialize = serialize
        self._on_cancel: Callable[[], object] | None = None
        self._is_cancelled = False
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def time_remaining(self) -> float:
        return _remaining_s(self._context)

    def invocation_metadata(self) -> Metadata:
        return _metadata(self._context)

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        self._on_cancel = cancel
        if self._is_cancelled:  # checked after the assignment: the loop may cancel at any time
            self.cancel()

    def respond(self, response: Any) -> None:
        self._on_cancel = None  # breaks a reference cycle, which would be left to the garbage collector
        message = self._serialize(response)  # on this thread, so that the loop has less to do

        def settle() -> None:
            if not self.answer.done():  # it is done if the client has cancelled the call
                self.answer.set_result(message)

        self._answers.put(settle)

    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        self._on_cancel = None

        def settle() -> None:
            if not self.answer.done():
                self.answer.set_exception(CallAborted(code, details, trailers))

        self._answers.put(settle)

    def cancel(self) -> None:
        """Call the function of `on_cancel`: the client has cancelled the call, or its deadline has passed."""
        self._is_cancelled = True
        cancel, self._on_cancel = self._on_cancel, None
        if cancel:
            cancel()


class AioContext:
    """A `Context` on the context of grpcio."""

    def __init__(self, context: _Context) -> None:
        self._context = context

    def time_remaining(self) -> float | None:
        return self._context.time_remaining()

    def invocation_metadata(self) -> Metadata:
        return _metadata(self._context)

    def set_trailing_metadata(self, trailers: Trailers) -> None:
        self._context.set_trailing_metadata(tuple(trailers))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> NoReturn:
        raise CallAborted(code, details, trailing_metadata)


def adapted(handler: Any, answers: Answers, pending: PendingMessages) -> _MethodHandler:
    """Return a handler of raw bytes, for a `grpc.RpcMethodHandler` of the kinds that `interface.Server` describes."""
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(_with_status(_streaming(handler, pending)))
    return grpc.stream_unary_rpc_method_handler(_with_status(_unary(handler, answers, pending)))


def rejecting(code: grpc.StatusCode, details: str, counts: StatusCounts) -> _MethodHandler:
    """Return a handler that ends its call without reading a request; the end is counted in `counts`."""

    async def reject(requests: object, context: _Context) -> NoReturn:
        await context.abort(code, details)

    return counting(grpc.stream_unary_rpc_method_handler(reject), counts)


def counting(handler: Any, counts: StatusCounts) -> _MethodHandler:
    """Return a handler of raw bytes that counts the end of each call of `handler` in `counts`."""
    behavior = handler.stream_stream or handler.stream_unary

    async def counted(requests: object, context: _Context) -> Any:
        started_at = time.monotonic()
        counts.begin()
        code: grpc.StatusCode | None = None  # stays None if the client cancels the call or its deadline passes
        try:
            response = await behavior(requests, context)
            if not _is_cancelled():  # a handler may end normally after its cancellation
                code = grpc.StatusCode.OK
            return response
        except grpc.aio.AbortError:
            code = context.code()
            raise
        finally:
            _count(counts, code, seconds=time.monotonic() - started_at, remaining_s=_remaining_s(context))

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(counted)
    return grpc.stream_unary_rpc_method_handler(counted)


def _count(counts: StatusCounts, code: grpc.StatusCode | None, *, seconds: float, remaining_s: float) -> None:
    """Count a call by its status. With None, or after its deadline, the call counts as cancelled or expired."""
    if code is None or remaining_s == 0:
        counts.add_cancelled(seconds, remaining_s=remaining_s, timeout_s=seconds + remaining_s)
    else:
        counts.add(NUMBERS[code], seconds)


def _remaining_s(context: _Context) -> float:
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else remaining_s


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return bool(task and task.cancelling())


def _unary(handler: Any, answers: Answers, pending: PendingMessages) -> _Run:
    behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
    is_async = inspect.iscoroutinefunction(behavior)
    streams = handler.request_streaming

    async def run(_: object, context: _Context) -> Any:
        request = _requests(context, handler) if streams else await _one_request(context, handler, pending)
        if is_async:
            response = handler.response_serializer(await behavior(request, AioContext(context)))
        else:
            response = await _answer(behavior, request, AioUnaryCall(context, answers, handler.response_serializer))
        if wants_gzip(_metadata(context)):  # grpcio compresses a unary response only after its metadata were sent
            await context.send_initial_metadata(())
        return response

    return run


async def _answer(behavior: Callable[[Any, AioUnaryCall], None], request: Any, call: AioUnaryCall) -> bytes:
    behavior(request, call)
    try:
        return await call.answer
    except asyncio.CancelledError:
        call.cancel()
        raise
    finally:
        del call  # breaks a reference cycle: call -> its future -> an exception -> its traceback -> this frame


def _streaming(handler: Any, pending: PendingMessages) -> _Run:
    behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
    streams = handler.request_streaming

    async def run(_: object, context: _Context) -> None:
        request = _requests(context, handler) if streams else await _one_request(context, handler, pending)
        async with aclosing(behavior(request, AioContext(context))) as responses:
            async for response in responses:
                await context.write(handler.response_serializer(response))

    return run


def _with_status(run: _Run) -> _Run:
    """Turn the exceptions of `run` into the status of the call; the client never receives their text."""

    async def run_with_status(requests: object, context: _Context) -> Any:
        if wants_gzip(_metadata(context)):
            context.set_compression(grpc.Compression.Gzip)
        try:
            return await run(requests, context)
        except CallAborted as aborted:
            status = aborted.code, aborted.details, tuple(aborted.trailers)
        except grpc.aio.BaseError:  # the connection is lost
            raise
        except Exception as exc:
            log.error("RPC handler failed", exc_info=exc)
            status = (*HANDLER_FAILED, ())
        # Outside of `except`: grpcio keeps the exception that `abort` raises, which would keep the handled one, too.
        return await context.abort(*status)

    return run_with_status


async def _requests(context: _Context, handler: Any) -> AsyncIterator[Any]:
    """Yield the client's messages; each is read on demand, so that HTTP/2 flow control holds back the others."""
    while (message := await context.read()) is not grpc.aio.EOF:
        yield _parsed(message, handler)
    await asyncio.sleep(_CANCELLATION_S)


async def _one_request(context: _Context, handler: Any, pending: PendingMessages) -> Any:
    message = await pending.receive(context.read())
    if message is grpc.aio.EOF:
        raise CallAborted(*MISSING_REQUEST)
    return _parsed(message, handler)


def _parsed(message: Any, handler: Any) -> Any:
    try:
        return handler.request_deserializer(message)
    except Exception as exc:  # protobuf's own exception types; the client must receive a status
        raise CallAborted(*invalid_message(exc)) from exc


def _metadata(context: _Context) -> Metadata:
    metadata: Any = context.invocation_metadata()  # grpc's types name another class than the tuple that it returns
    return metadata or ()
