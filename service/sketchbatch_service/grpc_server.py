"""A gRPC server on grpcio's own C core, which whoever calls `watch` keeps going.

It stands in for `grpc.aio.server` (same names for the same things), because a small RPC costs that several times the
processor time: docs/decisions/0008 has the measurements. An event of the C core goes from the watching thread straight
to the handler of a hot method (`DirectCall`), and to a coroutine on the event loop for all others (`AsyncCall`).

It uses `grpc._cython.cygrpc`, which grpcio's own synchronous server is written on, and which is not a public interface:
service/pyproject.toml holds grpcio to the versions that the tests ran with.
"""

import asyncio
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # not public, so without types

from .grpc_calls import NO_REQUEST, AsyncCall, CallEnds, DirectCall, receive_close, receive_message, refuse, unreadable

log = structlog.get_logger()

_EVENTS_A_WATCH = 100
"""Most events handled before rows that they brought are looked after: those of some thirty small requests."""


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


class GrpcServer:
    """Serves generated servicers, on the running event loop and the thread that watches.

    A method of a servicer that is a coroutine function or an asynchronous generator runs on the loop with an
    `AsyncCall`; any other is called on the watching thread with a `DirectCall`, and must not block there.
    """

    def __init__(self, options: Sequence[tuple[str, int]] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(options, False)
        self._server.register_completion_queue(self._events)
        self._generic_handlers: list[grpc.GenericRpcHandler] = []
        self._methods: dict[bytes, _Method] = {}  # as they were first asked for
        self._turned_away = CallEnds()  # calls that reached no method
        self._begun: list[DirectCall] = []  # since the last `watch`
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls_ended: asyncio.Future[None] = self._loop.create_future()

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
        port: int = self._server.add_http2_port(address.encode())
        if not port:
            raise RuntimeError(f"cannot bind {address}")
        return port

    def call_ends(self) -> Iterator[tuple[str, str, int]]:
        """How calls ended: method ("SERVICE/METHOD", or "none" where they reached none), status, count."""
        named = [(path.decode()[1:], method.ends) for path, method in list(self._methods.items())]
        for name, ends in [*named, ("none", self._turned_away)]:
            for code, count in ends.counts().items():
                yield name, code, count

    async def start(self) -> None:
        """Takes calls from now on; somebody must call `watch` again and again."""
        self._server.start()
        self._ask_for_call()

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way end, cancels them after `grace_s`; returns when all are over."""
        self._server.shutdown(self._events, self._note_calls_ended)
        try:
            await asyncio.wait_for(asyncio.shield(self._calls_ended), grace_s)
        except TimeoutError:
            self._server.cancel_all_calls()
            await self._calls_ended
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends `watch`, after `stop`. No call may be answered any more: the C core ends the process at one that is."""
        self._events.shutdown()
        self._server.destroy()

    def watch(self, *, waits: bool) -> bool:
        """Handles the events that have come, after waiting for the first if it `waits`; False once it is closed.

        Only one thread at a time may watch.
        """
        for call in self._begun:  # those not answered by now will take a while
            call.listen()
        self._begun.clear()
        handled, event = 0, self._events.poll() if waits else self._events.poll(0)
        while event.completion_type != cygrpc.CompletionType.queue_timeout:
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                return False
            try:
                event.tag(event)
            except Exception:  # a bug of ours must not end the threads that serve everyone
                log.exception("an RPC's event broke its handler")
            handled += 1
            if handled == _EVENTS_A_WATCH:
                break
            event = self._events.poll(0)  # what is there already
        return True

    def _ask_for_call(self) -> None:
        self._server.request_call(self._events, self._events, self._begin)

    def _note_calls_ended(self, event: Any) -> None:
        self._loop.call_soon_threadsafe(self._calls_ended.set_result, None)

    def _begin(self, event: Any) -> None:
        """A call has come in; not successful means that the server is stopping."""
        if not event.success:
            return
        self._ask_for_call()
        method = self._methods.get(event.call_details.method) or self._find(event)
        if method is None:
            receive_close(event.call, lambda: None)
            refuse(event.call, grpc.StatusCode.UNIMPLEMENTED, "no such method")
            self._turned_away.add(grpc.StatusCode.UNIMPLEMENTED.value[0])
        elif method.is_async:
            self._run_on_loop(AsyncCall(event, method.handler, method.ends, self._loop), event.call)
        else:
            self._run_here(DirectCall(event, method.handler, method.ends), event.call, method.handler)

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
                call.refuse(*NO_REQUEST)
                return
            try:
                request = handler.request_deserializer(message)
            except Exception as exc:  # protobuf's own; the caller must hear
                call.refuse(*unreadable(exc))
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
