"""Run a gRPC server on grpcio's own C core, driven by the polling thread.

`CoreServer` implements `interface.Server`, and `RequestSource` for the thread pool that polls it. It exists because a
small RPC costs `grpc.aio` several times as much CPU time: docs/decisions/0008 has the measurements. The polling thread
passes each event of the C core to a handler. The handlers of frequent methods run on that thread (`DirectCall`), all
others on the event loop (`AsyncCall`).

The module uses `grpc._cython.cygrpc`, on which grpcio's synchronous server is built. `cygrpc` is private, so
`selection.py` chooses this server only with the versions of grpcio that the contract tests ran with.
"""

import asyncio
import functools
import inspect
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private, so without types

from ..background import Component, ComponentName, count_error
from . import listening
from .core_call import AsyncCall, DirectCall, receive_close, receive_message
from .interface import Authenticator, PendingMessages
from .status import DRAINING, NO_SUCH_METHOD, CallEnds, StatusCounts, invalid_message

log = structlog.get_logger()

_EVENTS_PER_POLL = 100  # most events in one `poll`: about thirty small requests, whose rows can run after the poll

_EMPTY_POLLS = 2
"""Consecutive empty polls after which the completion queue counts as idle. One is not enough: a poll that only reads
bytes from a socket returns no event, and the next poll may return some. With 1, half of the requests stayed in a busy
service's sockets until their deadlines passed: docs/decisions/0024."""

_REQUESTED_CALLS = 256
"""Calls that the C core may deliver before the first one is handled. Calls beyond this number end with CANCELLED if
they arrive at the shutdown, or after it but before the client has read GOAWAY. No client retries CANCELLED on another
server."""


@dataclass(frozen=True, slots=True)
class _Method:
    handler: Any  # a grpc.RpcMethodHandler
    is_async: bool  # whether it runs on the event loop
    status_counts: StatusCounts


class CoreServer:
    """Serve generated servicers, on the running event loop and the polling thread.

    A servicer's method that is a coroutine function or an asynchronous generator runs on the loop with an `AsyncCall`.
    Any other method runs on the polling thread with a `DirectCall`, and must not block. `authenticate` is called for
    each call before its request is read, and must not block; with None, all calls are accepted.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, int]] = (),
        authenticate: Authenticator | None = None,
        *,
        max_receive_s: float = math.inf,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(options, False)
        self._server.register_completion_queue(self._events)
        self._generic_handlers: list[grpc.GenericRpcHandler] = []
        self._methods: dict[bytes, _Method] = {}  # by path, filled at the first call of each method
        self._is_stopping = False
        self._call_ends = CallEnds()
        self._pending = PendingMessages(max_receive_s)
        self._addresses: list[str] = []
        self._new_calls: list[DirectCall] = []  # since the last `poll`
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls_ended: asyncio.Future[None] = self._loop.create_future()
        self._on_call = functools.partial(self._authenticate, authenticate) if authenticate else self._accept

    @property
    def source(self) -> "CoreServer":
        """What a thread pool must poll so that calls are handled."""
        return self

    @property
    def components(self) -> tuple[Component, ...]:
        """No component: the thread that polls belongs to the caller."""
        return ()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serve the methods of these handlers; the generated `add_*_to_server` functions call this method."""
        self._generic_handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing: the generated functions also pass the same methods to `add_generic_rpc_handlers`."""

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None, *, purpose: str = "") -> str:
        """Listen on HOST:PORT or unix:PATH, with TLS if there are credentials; return the address with the bound port.

        Raises:
            AddressUnusable: The address is in use or does not belong to this machine; the message contains `purpose`.
        """
        core_credentials = [credentials._credentials] if credentials else []  # type: ignore[attr-defined]  # private
        bound = listening.bind(
            address, lambda wanted: self._server.add_http2_port(wanted.encode(), *core_credentials), purpose=purpose
        )
        self._addresses.append(bound)
        return bound

    @property
    def call_ends(self) -> CallEnds:
        """The counts and times of the ended calls."""
        return self._call_ends

    def connections(self) -> int:
        """Return the number of open connections; raise OSError if the system does not list them."""
        return listening.count_connections(self._addresses)

    async def start(self) -> None:
        """Accept calls from now on; a thread must call `poll` repeatedly."""
        self._server.start()
        for _ in range(_REQUESTED_CALLS):
            self._request_call()
        self._ending_late = asyncio.create_task(self._pending.end_late())

    def stop_listening(self) -> None:
        """Refuse new connections from now on; calls on open connections are answered."""
        for address in self._addresses:
            listening.close(address)

    async def stop(self, grace_s: float, forced: "asyncio.Future[Any] | None" = None) -> None:
        """Reject new calls, wait for the open ones and return when all have ended.

        Open calls are cancelled after `grace_s` seconds, or as soon as `forced` is settled.
        """
        self._is_stopping = True
        await asyncio.sleep(listening.REJECTION_S)
        self._server.shutdown(
            self._events, lambda _: self._loop.call_soon_threadsafe(self._calls_ended.set_result, None)
        )
        if not await listening.wait_for_end(self._calls_ended, forced, grace_s, self._is_idle):
            self._call_ends.are_calls_cancelled = True
            self._server.cancel_all_calls()
            for address in self._addresses:
                listening.close_connections(address)
            await self._calls_ended
        self._ending_late.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Make `poll` return False; call it after `stop`. A response after it would abort the process in the C core."""
        self._events.shutdown()
        self._server.destroy()

    def poll(self, *, blocks: bool) -> bool:
        """Handle the events that have arrived, after waiting for the first if `blocks`; return False once closed.

        Only one thread may poll at a time.
        """
        self._subscribe_to_cancellation()  # inlined, its loop variable would keep the last call alive during the poll
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
                except Exception:  # a defect in one handler must not end the threads that serve all clients
                    count_error(ComponentName.RPC_HANDLER)
                    log.exception("event handler failed")
                handled += 1
            if handled == _EVENTS_PER_POLL or empty_polls == _EMPTY_POLLS:
                return True
            event = self._events.poll(0)  # without waiting

    def _subscribe_to_cancellation(self) -> None:
        """Subscribe to cancellation of calls that were accepted in the last poll and are still open."""
        for call in self._new_calls:
            call.subscribe_to_cancellation()
            if not call.has_message:
                self._pending.add(call)
        self._new_calls.clear()

    def _is_idle(self) -> bool:
        """End the calls of a stopping server whose request has not arrived; return whether no call is open."""
        self._pending.end(*DRAINING)
        return not self._call_ends.open_calls

    def _request_call(self) -> None:
        with suppress(ValueError):  # the server is stopping
            self._server.request_call(self._events, self._events, self._on_call)

    def _authenticate(self, authenticate: Authenticator, event: Any) -> None:
        is_checked = event.success and not self._is_stopping  # a stopping server rejects all calls in `_accept`
        try:
            reason = authenticate(event.call_details.method, event.invocation_metadata) if is_checked else None
        except Exception:  # the next call must be requested all the same
            self._request_call()
            self._reject(event, grpc.StatusCode.INTERNAL, "the token cannot be checked")
            raise
        if reason is None:
            self._accept(event)
            return
        self._request_call()
        log.debug("request rejected", code="UNAUTHENTICATED", reason=reason, peer=event.call.peer().decode())
        self._reject(event, grpc.StatusCode.UNAUTHENTICATED, reason)

    def _accept(self, event: Any) -> None:
        """Start the handler of a new call."""
        if not event.success:
            return  # no call: the server is stopping
        self._request_call()
        if self._is_stopping:
            self._reject(event, *DRAINING)
            return
        method = self._methods.get(event.call_details.method) or self._find_method(event)
        if method is None:
            self._reject(event, *NO_SUCH_METHOD)
        elif method.is_async:
            self._run_on_loop(AsyncCall(event, method.handler, method.status_counts, self._pending), event.call)
        else:
            self._run_directly(DirectCall(event, method.handler, method.status_counts), event.call, method.handler)

    def _reject(self, event: Any, code: grpc.StatusCode, details: str) -> None:
        """End a new call without reading its request."""
        receive_close(event.call, lambda: None)
        DirectCall(event, None, self._call_ends.rejected).abort(code, details)

    def _find_method(self, event: Any) -> _Method | None:
        path: bytes = event.call_details.method
        name, metadata = path.decode(errors="replace"), event.invocation_metadata
        details: Any = SimpleNamespace(method=name, invocation_metadata=metadata)  # a grpc.HandlerCallDetails
        handler: Any = next((found for each in self._generic_handlers if (found := each.service(details))), None)
        if handler is None:
            return None
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        is_async = inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)
        self._methods[path] = _Method(handler, is_async, self._call_ends.of_method(name))
        return self._methods[path]

    def _run_directly(self, call: DirectCall, core_call: Any, handler: Any) -> None:
        def run(message: bytes | None, was_refused: bool) -> None:
            call.has_message = True
            self._pending.discard(call)
            if call.is_over:  # ended before its request arrived, or cancelled
                return
            if message is None:
                call.reject_missing_message(was_refused=was_refused)
                return
            try:
                request = handler.request_deserializer(message)
            except Exception as exc:  # protobuf's own exception types; the client must receive a status
                call.abort(*invalid_message(exc))
                return
            try:
                handler.unary_unary(request, call)
            except Exception:
                if not call.is_over:
                    call.abort(grpc.StatusCode.INTERNAL, "the handler failed")
                raise  # `poll` logs and counts it

        self._new_calls.append(call)
        receive_message(core_call, run)

    def _run_on_loop(self, call: AsyncCall, core_call: Any) -> None:
        tasks: list[asyncio.Task[None]] = []  # used on the loop only

        def begin() -> None:
            task = self._loop.create_task(call.run())
            tasks.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._on_task_ended)
            task.add_done_callback(call.count_if_never_run)

        self._loop.call_soon_threadsafe(begin)
        receive_close(core_call, lambda: self._loop.call_soon_threadsafe(lambda: tasks[0].cancel()))

    def _on_task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            count_error(ComponentName.RPC_HANDLER)
            log.error("RPC handler failed", exc_info=error)
