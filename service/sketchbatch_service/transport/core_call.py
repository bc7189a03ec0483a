"""One RPC as a handler sees it: `DirectCall` for the hot ones, `AsyncCall` for all others.

Both sit on a call of grpcio's C core. Its operations may be started from any thread; their events arrive on the
thread that watches (`CoreServer.watch`), each at the function that it was started with.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # not public, so without types

Trailers = Sequence[tuple[str, str | bytes]]

_NO_FLAGS = 0
_CODES: dict[grpc.StatusCode, int] = {code: code.value[0] for code in grpc.StatusCode}
_OK = _CODES[grpc.StatusCode.OK]


class CallEnds:
    """How the calls of one method ended: counts by status. Any thread may add to them."""

    def __init__(self) -> None:
        self._counts = [0] * len(_CODES)
        self._counting = threading.Lock()

    def add(self, code: int, call: "DirectCall | None" = None) -> None:
        """Counts one more; the end of a `call` that has ended before is not counted again."""
        with self._counting:
            if call:
                if call.is_over:
                    return
                call.is_over = True
            self._counts[code] += 1

    def counts(self) -> dict[str, int]:
        """By the names of the statuses that there were."""
        return {code.name: count for code, number in _CODES.items() if (count := self._counts[number])}


class UnaryCall(Protocol):
    """What a handler may do with a `DirectCall`."""

    def time_remaining(self) -> float: ...
    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...
    def on_cancel(self, cancel: Callable[[], object]) -> None: ...
    def respond(self, response: Any) -> None: ...
    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None: ...


class DirectCall:
    """A unary call whose handler runs on the watching thread, returns at once, and has it answered from any thread.

    A handler that takes one is an ordinary method: `def Classify(self, request, call: DirectCall) -> None`. It must end
    in one `answer` or `refuse`, sooner or later.
    """

    def __init__(self, event: Any, handler: Any, ends: CallEnds) -> None:
        self.is_over = False
        """Answered, refused, or left by its caller."""
        self._call: Any = event.call  # None once it is over and the core has said so
        self._metadata = event.invocation_metadata
        self._serialize: Callable[[Any], bytes] = handler.response_serializer
        self._deadline: float = event.call_details.deadline
        self._ends = ends
        self._on_cancel: Callable[[], object] | None = None
        self._is_cancelled = False

    def time_remaining(self) -> float:
        """Seconds until the caller's deadline; infinite without one."""
        return _remaining_s(self._deadline)

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the caller sent beside the request."""
        return tuple(self._metadata)

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """Calls `cancel` if the caller leaves before the end, at once if it has."""
        self._on_cancel = cancel
        if self._is_cancelled:  # looked at after that, since it may happen at any time
            cancel()
            self._on_cancel = None

    def respond(self, response: Any) -> None:
        """Sends the response and ends the call well."""
        self._ends.add(_OK, self)
        self._on_cancel = None  # else we stand in a circle, for which Python has to look
        core = self._call
        if core is None:
            return  # its caller has left
        _start(
            core,
            _ignore,
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            cygrpc.SendMessageOperation(self._serialize(response), _NO_FLAGS),
            _status(grpc.StatusCode.OK),
        )

    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        """Ends the call with an error."""
        self._ends.add(_CODES[code], self)
        self._on_cancel = None
        core = self._call
        if core is not None:
            abort_core_call(core, code, details, trailers)

    def listen(self) -> None:
        """Hears from now on of a caller that leaves; not worth it for a call that is over."""
        if not self.is_over:
            receive_close(self._call, self._leave)

    def _leave(self) -> None:
        self._is_cancelled = True
        self._ends.add(_CODES[_left(self._deadline)], self)
        if cancel := self._on_cancel:
            cancel()
        self._on_cancel = None
        # Whoever is to answer us may keep us for a while; the core's call counts among the connection's
        # `--max-calls-per-connection` until it is let go of.
        self._call = None


class AsyncCall:
    """A call of any kind whose handler is a coroutine, or a generator of them, on the event loop.

    To the handler it is what a `grpc.aio.ServicerContext` would be, as far as our servicers use one.
    """

    def __init__(self, event: Any, handler: Any, ends: CallEnds, loop: asyncio.AbstractEventLoop) -> None:
        self._call: Any = event.call  # None once it is over
        self._ends = ends
        self._handler = handler
        self._deadline: float = event.call_details.deadline
        self._metadata = event.invocation_metadata
        self._loop = loop
        self._trailers: Trailers = ()
        self._has_begun = False  # whether initial metadata has been sent

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        remaining_s = _remaining_s(self._deadline)
        return None if math.isinf(remaining_s) else remaining_s

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the caller sent beside the request."""
        return tuple(self._metadata)

    def set_trailing_metadata(self, trailers: Trailers) -> None:
        """What a good end will carry."""
        self._trailers = trailers

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> NoReturn:
        """Ends the call with an error, and the handler, too."""
        raise _Aborted(code, details, trailing_metadata)

    async def run(self) -> None:
        """Runs the handler to its end, and tells the caller how it ended.

        Raises:
            Exception: The handler broke in a way of its own; the caller has heard UNKNOWN.
        """
        try:
            await self._respond()
        except _Aborted as aborted:
            await self._end(aborted.code, aborted.details, aborted.trailers)
        except asyncio.CancelledError:
            self._ends.add(_CODES[_left(self._deadline)])
            raise
        except Exception:
            await self._end(grpc.StatusCode.UNKNOWN, "the handler broke")
            raise
        else:
            await self._end(grpc.StatusCode.OK, "", self._trailers)
        finally:
            self._call = None  # as above: a handler's frames and their error may be in a circle that knows us

    async def _respond(self) -> None:
        handler = self._handler
        request = self._requests() if handler.request_streaming else await self._one_request()
        if handler.response_streaming:
            behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
            async with aclosing(behavior(request, self)) as responses:
                async for response in responses:
                    await self._send(response)
        else:
            behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
            await self._send(await behavior(request, self))

    async def _one_request(self) -> Any:
        async for request in self._requests():
            return request
        return await self.abort(*NO_REQUEST)

    async def _requests(self) -> AsyncIterator[Any]:
        """The caller's messages, each taken off the connection when it is asked for: HTTP/2 holds back the rest."""
        while True:
            (received,) = await self._perform(cygrpc.ReceiveMessageOperation(_NO_FLAGS))
            message = received.message()
            if message is None:
                return
            try:
                request = self._handler.request_deserializer(message)
            except Exception as exc:  # protobuf's own; the caller must hear
                raise _Aborted(*unreadable(exc), ()) from exc
            yield request

    async def _send(self, response: Any) -> None:
        message = cygrpc.SendMessageOperation(self._handler.response_serializer(response), _NO_FLAGS)
        await self._perform(*self._beginning(), message)

    async def _end(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        self._ends.add(_CODES[code])
        await self._perform(*self._beginning(), _status(code, details, trailers))

    def _beginning(self) -> tuple[Any, ...]:
        if self._has_begun:
            return ()
        self._has_begun = True
        return (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),)

    async def _perform(self, *operations: Any) -> Any:
        """Starts operations of the C core, waits for their end and returns them."""
        done: asyncio.Future[Any] = self._loop.create_future()

        def settle(event: Any) -> None:
            if not done.done():
                # Not the event, which knows us: in a circle, a received message would live until Python looks for them.
                done.set_result(event.batch_operations)

        _start(self._call, lambda event: self._loop.call_soon_threadsafe(settle, event), *operations)
        return await done


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, details: str, trailers: Trailers) -> None:
        super().__init__(details)
        self.code, self.details, self.trailers = code, details, trailers


NO_REQUEST = (grpc.StatusCode.INVALID_ARGUMENT, "a request was expected, got none")
"""How a unary call without a message ends."""


def unreadable(error: Exception) -> tuple[grpc.StatusCode, str]:
    """How a call ends whose bytes are no message of its method."""
    return grpc.StatusCode.INVALID_ARGUMENT, f"the request is not the protobuf message of this method: {error}"


def abort_core_call(call: Any, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
    """Ends a call of the C core with an error."""
    _start(
        call,
        _ignore,
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        _status(code, details, trailers),
    )


def receive_message(call: Any, on_message: Callable[[bytes | None], object]) -> None:
    """Calls `on_message` on the watching thread with the next message; None = there is none."""
    _start(
        call,
        lambda event: on_message(event.batch_operations[0].message()),
        cygrpc.ReceiveMessageOperation(_NO_FLAGS),
    )


def receive_close(call: Any, on_cancel: Callable[[], object]) -> None:
    """Calls `on_cancel` on the watching thread if the caller leaves, or its deadline passes, before the end."""

    def closed(event: Any) -> None:
        if event.batch_operations[0].cancelled():
            on_cancel()

    _start(call, closed, cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))


def _start(call: Any, on_event: Callable[[Any], object], *operations: Any) -> None:
    call.start_server_batch(operations, on_event)


def _status(code: grpc.StatusCode, details: str = "", trailers: Trailers = ()) -> Any:
    return cygrpc.SendStatusFromServerOperation(tuple(trailers), _CODES[code], details.encode(), _NO_FLAGS)


def _left(deadline: float) -> grpc.StatusCode:
    """How a call ended whose caller did not wait for its end."""
    return grpc.StatusCode.CANCELLED if _remaining_s(deadline) else grpc.StatusCode.DEADLINE_EXCEEDED


def _remaining_s(deadline: float) -> float:
    return max(0.0, deadline - time.time())


def _ignore(event: Any) -> None:
    """Nothing follows from this event."""
