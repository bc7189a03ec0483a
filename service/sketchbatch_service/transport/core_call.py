"""Represent one RPC on grpcio's C core: `DirectCall` for frequent unary methods, `AsyncCall` for all others.

Any thread may start operations of the C core. The polling thread (`CoreServer.poll`) receives their completion events
and calls the function that was passed with each operation.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private, so without types

from .interface import CallAborted, Metadata, PendingMessages, Trailers, wants_gzip
from .status import HANDLER_FAILED, MESSAGE_REFUSED, MISSING_REQUEST, NUMBERS, StatusCounts, invalid_message

_NO_FLAGS = 0
_OK = NUMBERS[grpc.StatusCode.OK]
_GZIP = (("grpc-internal-encoding-request", "gzip"),)  # the C core then compresses the responses of this call


class _CoreCall:
    """The state that both kinds of calls share."""

    def __init__(self, event: Any, handler: Any, status_counts: StatusCounts) -> None:
        self._call: Any = event.call  # None once the call is over
        self._handler = handler
        self._metadata = event.invocation_metadata
        self._deadline: float = event.call_details.deadline  # Unix time in seconds
        self._status_counts = status_counts
        self.started_at = time.monotonic()
        status_counts.begin()

    def invocation_metadata(self) -> Metadata:
        return tuple(self._metadata)

    def _initial_metadata_operation(self) -> Any:
        return cygrpc.SendInitialMetadataOperation(_GZIP if wants_gzip(self._metadata) else None, _NO_FLAGS)

    def _remaining_s(self) -> float:
        return max(0.0, self._deadline - time.time())

    def _seconds(self) -> float:
        return time.monotonic() - self.started_at

    def _count(self, code: int, seconds: float, *, was_sent: bool) -> None:
        """Count the call by the status `code`, or as cancelled if the status could not be sent."""
        if was_sent:
            self._status_counts.add(code, seconds)
        else:
            self._count_cancelled(seconds)

    def _count_cancelled(self, seconds: float) -> None:
        remaining_s = self._remaining_s()
        self._status_counts.add_cancelled(seconds, remaining_s=remaining_s, timeout_s=self._seconds() + remaining_s)


class DirectCall(_CoreCall):
    """A `UnaryCall` whose handler runs on the polling thread, without the event loop.

    Its handler must not block, and is a method without `async`: `def Classify(self, request, call: UnaryCall) -> None`.
    """

    is_over = False  # answered, aborted or cancelled
    has_message = False  # whether its request has arrived completely
    _is_cancelled = False
    _on_cancel: Callable[[], object] | None = None

    def time_remaining(self) -> float:
        return self._remaining_s()

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        self._on_cancel = cancel
        if self._is_cancelled:  # checked after the assignment: the polling thread may cancel at any time
            cancel()
            self._on_cancel = None

    def respond(self, response: Any) -> None:
        message = self._handler.response_serializer(response)  # first: if it raises, the handler can still `abort`
        core_call = self._end()
        if core_call is None:
            return
        operations = (
            self._initial_metadata_operation(),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            _send_status(grpc.StatusCode.OK),
        )
        core_call.start_server_batch(operations, self._on_end(_OK))

    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        core_call = self._end()
        if core_call is not None:
            abort_core_call(core_call, code, details, trailers, self._on_end(NUMBERS[code]))

    def end_unread(self, code: grpc.StatusCode, details: str) -> None:
        if not self.has_message:
            self.abort(code, details)

    def reject_missing_message(self, *, was_refused: bool) -> None:
        """End a call without a message: gRPC has refused the message, or the client or the connection ended the call.

        A refused message is larger than the maximum; gRPC itself has then sent the status.
        """
        if not was_refused:
            self.abort(*MISSING_REQUEST)
        elif self._end() is not None:
            self._status_counts.add(NUMBERS[MESSAGE_REFUSED], self._seconds())

    def subscribe_to_cancellation(self) -> None:
        """Subscribe to cancellation, unless the call is over: a subscription costs an operation of the C core."""
        if not self.is_over:
            receive_close(self._call, self._cancel)

    def _cancel(self) -> None:
        self._is_cancelled = True
        if self._status_counts.end(self):
            self._count_cancelled(self._seconds())
        if cancel := self._on_cancel:
            cancel()
        self._on_cancel = None
        # A queued request may keep this object in memory for a while. The C core's call must be released now, because
        # it counts towards the connection's `--max-calls-per-connection`.
        self._call = None

    def _end(self) -> Any | None:
        """Mark the call as over, and return the C core's call; None if it was over or is cancelled by the client."""
        self._on_cancel = None  # breaks a reference cycle, which would be left to the garbage collector
        core_call = self._call
        return core_call if self._status_counts.end(self) else None

    def _on_end(self, code: int) -> Callable[[Any], None]:
        """Return the function that counts the call when its status was sent, or could not be sent."""
        seconds = self._seconds()

        def count(event: Any) -> None:
            self._count(code, seconds, was_sent=event.success)

        return count


class AsyncCall(_CoreCall):
    """A `Context`: a call of any kind whose handler runs on the event loop."""

    _trailers: Trailers = ()
    _has_run = False
    _has_sent_metadata = False
    _is_message_refused = False  # by gRPC, which has then sent the status

    def __init__(self, event: Any, handler: Any, status_counts: StatusCounts, pending: PendingMessages) -> None:
        super().__init__(event, handler, status_counts)
        self._pending = pending

    def time_remaining(self) -> float | None:
        remaining_s = self._remaining_s()
        return None if math.isinf(remaining_s) else remaining_s

    def set_trailing_metadata(self, trailers: Trailers) -> None:
        self._trailers = trailers

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> NoReturn:
        raise CallAborted(code, details, trailing_metadata)

    async def run(self) -> None:
        """Run the handler, send the status, and raise the handler's exception, which the client receives as UNKNOWN."""
        self._loop, self._has_run = asyncio.get_running_loop(), True
        try:
            await self._respond()
        except CallAborted as aborted:
            await self._end(aborted.code, aborted.details, aborted.trailers)
        except asyncio.CancelledError:
            self._count_unsent(self._seconds())
            raise
        except Exception:
            await self._end(*HANDLER_FAILED)
            raise
        else:
            await self._end(grpc.StatusCode.OK, "", self._trailers)
        finally:
            # Release the C core's call now: the frames of a handler and its exception may keep this object in memory in
            # a reference cycle.
            self._call = None

    def count_if_never_run(self, task: "asyncio.Task[None]") -> None:
        """Count a call that was cancelled before the first step of its task, which `run` cannot count."""
        if not self._has_run:
            self._count_unsent(self._seconds())

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
        message = await self._pending.receive(self._message())
        return await self.abort(*MISSING_REQUEST) if message is None else self._parsed(message)

    async def _requests(self) -> AsyncIterator[Any]:
        """Yield the client's messages; each is read on demand, so that HTTP/2 flow control holds back the others."""
        while (message := await self._message()) is not None:
            yield self._parsed(message)

    async def _message(self) -> bytes | None:
        """Return the next message of the client; None if there is none."""
        _, (received,) = await self._perform(cygrpc.ReceiveMessageOperation(_NO_FLAGS), on_failure=self._refuse)
        message: bytes | None = received.message()
        return message

    def _parsed(self, message: bytes) -> Any:
        try:
            return self._handler.request_deserializer(message)
        except Exception as exc:  # protobuf's own exception types; the client must receive a status
            raise CallAborted(*invalid_message(exc)) from exc

    async def _send(self, response: Any) -> None:
        message = cygrpc.SendMessageOperation(self._handler.response_serializer(response), _NO_FLAGS)
        await self._perform(*self._initial_metadata(), message)

    async def _end(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        """Send the status and count it; a status that could not be sent counts as a cancellation."""
        seconds = self._seconds()
        was_sent = False
        try:
            was_sent, _ = await self._perform(*self._initial_metadata(), _send_status(code, details, trailers))
        finally:
            if was_sent:
                self._status_counts.add(NUMBERS[code], seconds)
            else:
                self._count_unsent(seconds)

    def _refuse(self) -> None:
        self._is_message_refused = True

    def _count_unsent(self, seconds: float) -> None:
        """Count a call whose status was not sent: the client or the server cancelled it, or gRPC refused a message."""
        if self._is_message_refused:
            self._status_counts.add(NUMBERS[MESSAGE_REFUSED], seconds)
        else:
            self._count_cancelled(seconds)

    def _initial_metadata(self) -> tuple[Any, ...]:
        if self._has_sent_metadata:
            return ()
        self._has_sent_metadata = True
        return (self._initial_metadata_operation(),)

    async def _perform(self, *operations: Any, on_failure: Callable[[], None] = lambda: None) -> tuple[bool, Any]:
        """Run operations of the C core; return whether they succeeded, and the operations with their results.

        If they fail, `on_failure` is called, even if the task was cancelled before.
        """
        done: asyncio.Future[tuple[bool, Any]] = self._loop.create_future()

        def settle(event: Any) -> None:
            if not event.success:
                on_failure()
            if not done.done():
                # Not the event itself: it refers to this call, and the cycle would keep a received message in memory.
                done.set_result((event.success, event.batch_operations))

        self._call.start_server_batch(operations, lambda event: self._loop.call_soon_threadsafe(settle, event))
        return await done


def abort_core_call(
    core_call: Any,
    code: grpc.StatusCode,
    details: str,
    trailers: Trailers = (),
    on_end: Callable[[Any], object] | None = None,
) -> None:
    """End a call of the C core with an error status; `on_end` receives the completion event on the polling thread."""
    operations = (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), _send_status(code, details, trailers))
    core_call.start_server_batch(operations, on_end or _ignore)


def receive_message(core_call: Any, on_message: Callable[[bytes | None, bool], object]) -> None:
    """Call `on_message` on the polling thread with the next message, or with None if there is none.

    Its second argument is whether gRPC has refused the message, which is larger than the maximum.
    """

    def received(event: Any) -> None:
        on_message(event.batch_operations[0].message(), not event.success)

    core_call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)


def receive_close(core_call: Any, on_cancel: Callable[[], object]) -> None:
    """Call `on_cancel` on the polling thread if the client cancels or the deadline passes before the status is sent."""

    def closed(event: Any) -> None:
        if event.batch_operations[0].cancelled():
            on_cancel()

    core_call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), closed)


def _send_status(code: grpc.StatusCode, details: str = "", trailers: Trailers = ()) -> Any:
    return cygrpc.SendStatusFromServerOperation(tuple(trailers), NUMBERS[code], details.encode(), _NO_FLAGS)


def _ignore(event: Any) -> None:
    """Do nothing: no step follows from this completion event."""
