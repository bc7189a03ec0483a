"""Define the protocols `Server`, `UnaryCall` and `Context`, which the transports `aio` and `core` implement.

`PendingMessages` and `wants_gzip` are parts of both transports.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from ..background import Component, ComponentName, keep_task_running
from ..batching.leader_follower_pool import RequestSource
from .status import CallEnds

_CHECK_S = 1.0  # seconds between two checks of whether messages arrive too late

_Message = TypeVar("_Message")

_GZIP = re.compile(r"\s*gzip\s*(;\s*q=(?!0(\.0*)?\s*$).*)?", re.IGNORECASE)  # q=0 means: not accepted

Metadata = Sequence[tuple[str, str | bytes]]
Trailers = Metadata  # sent with the status

Authenticator = Callable[[bytes, Metadata], str | None]
"""Returns why a call is rejected, from its method's path and its metadata; None = the call is accepted."""


class UnaryCall(Protocol):
    """A call that any thread may answer, by one `respond` or `abort`; its handler returns without waiting."""

    def time_remaining(self) -> float:
        """Return the seconds until the deadline; infinite without one."""

    def invocation_metadata(self) -> Metadata:
        """Return the metadata that the client sent."""

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """Call `cancel` if the client cancels the call or its deadline passes before the response."""

    def respond(self, response: Any) -> None:
        """Send the response, with status OK."""

    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        """End the call with an error status."""


class Context(Protocol):
    """A call whose handler is a coroutine or an asynchronous generator, as in `grpc.aio.ServicerContext`."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; None without one."""

    def invocation_metadata(self) -> Metadata:
        """Return the metadata that the client sent."""

    def set_trailing_metadata(self, trailers: Trailers) -> None:
        """Set the metadata that is sent with status OK."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Trailers = ()) -> NoReturn:
        """End the call with an error status, and the handler with an exception."""


class CallAborted(Exception):
    """The handler of a `Context` has ended its call with an error status."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        super().__init__(details)
        self.code, self.details, self.trailers = code, details, trailers


class UnreadCall(Protocol):
    """A call whose request has not arrived completely."""

    started_at: float  # `time.monotonic` seconds

    def end_unread(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with an error status; nothing happens if its request has arrived meanwhile."""


class PendingMessages:
    """The open calls whose only request has not arrived completely; `limit_s` is the longest wait for the request.

    A client may send half of a message, and then nothing for ever. gRPC holds such a message in memory. A stop would
    wait for the call. The methods are called on the event loop, `add` and `discard` also on the polling thread.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._calls: set[UnreadCall] = set()

    def add(self, call: UnreadCall) -> None:
        """Add a call; until `discard`, the call may be ended."""
        self._calls.add(call)

    def discard(self, call: UnreadCall) -> None:
        """Remove a call whose request has arrived, or that has ended; nothing happens if it was not added."""
        self._calls.discard(call)

    async def receive(self, message: Awaitable[_Message]) -> _Message:
        """Await the request of a call whose handler is the current task; raise CallAborted if the call is ended."""
        call = _UnreadTask(asyncio.current_task())
        self._calls.add(call)
        try:
            return await message
        except asyncio.CancelledError:
            if call.status is None or call.task is None:
                raise
            call.task.uncancel()
            raise CallAborted(*call.status) from None
        finally:
            self._calls.discard(call)

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """End all these calls with an error status."""
        for call in list(self._calls):  # `list` does not release the GIL, so no other thread changes the set meanwhile
            call.end_unread(code, details)

    async def end_late(self) -> None:
        """End each call whose request takes longer than the limit, until this coroutine is cancelled."""
        component = Component(ComponentName.RECEIVE_LIMIT)

        async def check_regularly() -> None:
            while True:
                await asyncio.sleep(_CHECK_S)
                self.end_older_than(time.monotonic() - self._limit_s)
                component.record_success()

        await keep_task_running(component, check_regularly)

    def end_older_than(self, started_at: float) -> None:
        """End each call that started before a time, in `time.monotonic` seconds, with DEADLINE_EXCEEDED."""
        for call in list(self._calls):
            if call.started_at < started_at:
                call.end_unread(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"the request did not arrive within {self._limit_s:g} s"
                )


@dataclass(eq=False, slots=True)
class _UnreadTask:
    """An `UnreadCall` whose handler is a task of the event loop."""

    task: "asyncio.Task[Any] | None"
    started_at: float = field(default_factory=time.monotonic)
    status: tuple[grpc.StatusCode, str] | None = None

    def end_unread(self, code: grpc.StatusCode, details: str) -> None:
        if self.status is None and self.task:
            self.status = code, details
            self.task.cancel()


class Server(Protocol):
    """A gRPC server that serves generated servicers.

    A servicer's method that is a coroutine function or an asynchronous generator receives a `Context`. Any other method
    receives a `UnaryCall`, and must not block.
    """

    @property
    def source(self) -> RequestSource | None:
        """What a thread pool must poll so that calls are handled; None = the event loop handles them."""

    @property
    def components(self) -> Sequence[Component]:
        """The background components without which the server accepts no calls."""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serve the methods of these handlers; the generated `add_*_to_server` functions call this method."""

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing: the generated functions also pass the same methods to `add_generic_rpc_handlers`."""

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None, *, purpose: str = "") -> str:
        """Listen on HOST:PORT or unix:PATH, with TLS if there are credentials; return the address with the bound port.

        Raises:
            AddressUnusable: The address is in use or does not belong to this machine; the message contains `purpose`.
        """

    @property
    def call_ends(self) -> CallEnds:
        """The counts and times of the ended calls."""

    def connections(self) -> int:
        """Return the number of open connections; raise OSError if the system does not list them."""

    async def start(self) -> None:
        """Accept calls from now on."""

    def stop_listening(self) -> None:
        """Refuse new connections from now on; calls on open connections are answered."""

    async def stop(self, grace_s: float, forced: "asyncio.Future[Any] | None" = None) -> None:
        """Reject new calls, wait for the open ones and return when all have ended.

        Open calls are cancelled after `grace_s` seconds, or as soon as `forced` is settled.
        """


def wants_gzip(metadata: Metadata) -> bool:
    """Return whether the client asks for compressed responses, by the metadata `accept-encoding: gzip`.

    gRPC itself does not tell a server how a request was compressed.
    """
    accepted = (each for key, value in metadata if key == "accept-encoding" for each in str(value).split(","))
    return any(_GZIP.fullmatch(each) for each in accepted)
