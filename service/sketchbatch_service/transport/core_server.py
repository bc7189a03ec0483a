"""A gRPC server on grpcio's own C core, which whoever calls `watch` keeps going.

It stands in for `grpc.aio.server` (same names for the same things), because a small RPC costs that several times the
processor time: docs/decisions/0008 has the measurements. An event of the C core goes from the watching thread straight
to the handler of a hot method (`DirectCall`), and to a coroutine on the event loop for all others (`AsyncCall`).

It uses `grpc._cython.cygrpc`, which grpcio's own synchronous server is written on, and which is not a public interface:
service/pyproject.toml holds grpcio to the versions that the tests ran with.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # not public, so without types

from .core_call import (
    NO_REQUEST,
    AsyncCall,
    CallEnds,
    DirectCall,
    abort_core_call,
    receive_close,
    receive_message,
    unreadable,
)

log = structlog.get_logger()

Authenticator = Callable[[bytes, Sequence[tuple[str, str | bytes]]], str | None]
"""Says of a call, by the path of its method and its metadata, why it may not be answered; None = it may."""

_EVENTS_A_WATCH = 100
"""Most events handled before rows that they brought are looked after: those of some thirty small requests."""

_EMPTY_POLLS = 2
"""Polls in a row that bring nothing until there is nothing: one that only reads a socket looks alike. With 1, half of
what came stayed in a busy service's sockets, out of sight of its queue, until it was too late: docs/decisions/0024."""

_CALLS_ASKED_FOR = 256
"""Calls that the C core may hand over before the first is begun. What it still holds when it shuts down, or what comes
before clients have read its GOAWAY, ends in CANCELLED, and no client takes that for a reason to ask another server."""

_LAST_CALLS_S = 0.1
"""How long before that calls are refused with UNAVAILABLE, so that hardly any are left for it."""


@dataclass(frozen=True, slots=True)
class _Method:
    handler: Any  # a grpc.RpcMethodHandler
    is_async: bool  # whether it runs on the event loop
    ends: CallEnds


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a generic handler is asked with (`grpc.HandlerCallDetails`)."""

    method: str
    invocation_metadata: Sequence[tuple[str, str | bytes]]


class CoreServer:
    """Serves generated servicers, on the running event loop and the thread that watches.

    A method of a servicer that is a coroutine function or an asynchronous generator runs on the loop with an
    `AsyncCall`; any other is called on the watching thread with a `DirectCall`, and must not block there.

    Args:
        options: gRPC's own.
        authenticate: Asked about each call before anything of its request is read; must not
            block. None = all are answered.
    """

    def __init__(self, options: Sequence[tuple[str, int]] = (), authenticate: Authenticator | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(options, False)
        self._server.register_completion_queue(self._events)
        self._generic_handlers: list[grpc.GenericRpcHandler] = []
        self._methods: dict[bytes, _Method] = {}  # as they were first asked for
        self._is_stopping = False
        self._rejected = CallEnds()  # calls that reached no method
        self._begun: list[DirectCall] = []  # since the last `watch`
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls_ended: asyncio.Future[None] = self._loop.create_future()
        self._on_call = functools.partial(self._begin_authenticated, authenticate) if authenticate else self._begin

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serves what these know; the generated `add_*_to_server` call it."""
        self._generic_handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing more: the generated code says the same again."""

    def add_insecure_port(self, address: str) -> int:
        """Listens on HOST:PORT, and returns the port.

        Raises:
            RuntimeError: The address cannot be had.
        """
        return _bound(address, self._server.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Likewise, with TLS."""
        return _bound(address, self._server.add_http2_port(address.encode(), credentials._credentials))  # type: ignore[attr-defined]  # the C core's

    def call_ends(self) -> Iterator[tuple[str, str, int]]:
        """How calls ended: method ("SERVICE/METHOD", or "none" where they reached none), status, count."""
        named = [(path.decode()[1:], method.ends) for path, method in list(self._methods.items())]
        for name, ends in [*named, ("none", self._rejected)]:
            for code, count in ends.counts().items():
                yield name, code, count

    async def start(self) -> None:
        """Takes calls from now on; somebody must call `watch` again and again."""
        self._server.start()
        for _ in range(_CALLS_ASKED_FOR):
            self._ask_for_call()

    async def stop(self, grace_s: float, hurried: "asyncio.Future[Any] | None" = None) -> None:
        """Takes no more calls, lets those under way end; returns when all are over.

        Cancels them after `grace_s`, or as soon as `hurried` is settled.
        """
        self._is_stopping = True
        await asyncio.sleep(_LAST_CALLS_S)
        self._server.shutdown(self._events, self._note_calls_ended)
        reasons = (self._calls_ended, hurried) if hurried else (self._calls_ended,)
        await asyncio.wait(reasons, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        if not self._calls_ended.done():
            self._server.cancel_all_calls()
            await self._calls_ended
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends `watch`, after `stop`. No call may be answered any more: the C core ends the process at one that is."""
        self._events.shutdown()
        self._server.destroy()

    def poll(self, *, blocks: bool) -> bool:
        """Handles the events that have come, after waiting for the first if it `waits`; False once it is closed.

        Only one thread at a time may watch.
        """
        self._listen()
        handled = empty_polls = 0
        event = self._events.poll() if blocks else self._events.poll(0)
        while True:
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                return False
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                empty_polls += 1
            else:
                empty_polls = 0
                try:
                    event.tag(event)
                except Exception:  # a bug of ours must not end the threads that serve everyone
                    log.exception("an RPC's event broke its handler")
                handled += 1
            if handled == _EVENTS_A_WATCH or empty_polls == _EMPTY_POLLS:
                return True
            event = self._events.poll(0)  # what is there already

    def _listen(self) -> None:
        """To those begun in the last `watch`: calls that are not answered by now will take a while."""
        for call in self._begun:
            call.listen()
        self._begun.clear()

    def _ask_for_call(self) -> None:
        with suppress(ValueError):  # it is stopping
            self._server.request_call(self._events, self._events, self._on_call)

    def _note_calls_ended(self, event: Any) -> None:
        self._loop.call_soon_threadsafe(self._calls_ended.set_result, None)

    def _begin_authenticated(self, authenticate: Authenticator, event: Any) -> None:
        refusal = authenticate(event.call_details.method, event.invocation_metadata) if event.success else None
        if refusal is None:
            self._begin(event)
            return
        self._ask_for_call()
        log.debug("request refused", code="UNAUTHENTICATED", reason=refusal, peer=event.call.peer().decode())
        self._reject(event, grpc.StatusCode.UNAUTHENTICATED, refusal)

    def _begin(self, event: Any) -> None:
        """A call has come in; not successful means that the server is stopping."""
        if not event.success:
            return
        self._ask_for_call()
        if self._is_stopping:
            self._reject(event, grpc.StatusCode.UNAVAILABLE, "this replica is draining; another will answer")
            return
        method = self._methods.get(event.call_details.method) or self._find(event)
        if method is None:
            self._reject(event, grpc.StatusCode.UNIMPLEMENTED, "no such method")
        elif method.is_async:
            self._run_on_loop(AsyncCall(event, method.handler, method.ends, self._loop), event.call)
        else:
            self._run_here(DirectCall(event, method.handler, method.ends), event.call, method.handler)

    def _reject(self, event: Any, code: grpc.StatusCode, details: str) -> None:
        """Ends a call that has just come in; nothing of its request is read."""
        receive_close(event.call, lambda: None)
        abort_core_call(event.call, code, details)
        self._rejected.add(code.value[0])

    def _find(self, event: Any) -> _Method | None:
        path: bytes = event.call_details.method
        wanted: Any = _Wanted(path.decode(errors="replace"), event.invocation_metadata)
        handler: Any = next((found for each in self._generic_handlers if (found := each.service(wanted))), None)
        if handler is None:
            return None
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        is_async = inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)
        self._methods[path] = _Method(handler, is_async, CallEnds())
        return self._methods[path]

    def _run_here(self, call: DirectCall, core_call: Any, handler: Any) -> None:
        def run(message: bytes | None) -> None:
            if message is None:
                call.abort(*NO_REQUEST)
                return
            try:
                request = handler.request_deserializer(message)
            except Exception as exc:  # protobuf's own; the caller must hear
                call.abort(*unreadable(exc))
                return
            handler.unary_unary(request, call)

        self._begun.append(call)
        receive_message(core_call, run)

    def _run_on_loop(self, call: AsyncCall, core_call: Any) -> None:
        tasks: list[asyncio.Task[None]] = []  # on the loop alone

        def begin() -> None:
            task = self._loop.create_task(call.run())
            tasks.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._end_task)

        def leave() -> None:
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(begin)
        receive_close(core_call, lambda: self._loop.call_soon_threadsafe(leave))

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("an RPC's handler broke", exc_info=error)


def _bound(address: str, port: int) -> int:
    if not port:
        raise RuntimeError(f"cannot bind {address}")
    return port
