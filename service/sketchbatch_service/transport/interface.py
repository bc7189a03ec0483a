"""Define the protocols `Server`, `UnaryCall` and `Context`, which the transports `aio` and `core` implement."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import grpc

from ..batching.leader_follower_pool import RequestSource
from .status import CallEnds

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


class Server(Protocol):
    """A gRPC server that serves generated servicers.

    A servicer's method that is a coroutine function or an asynchronous generator receives a `Context`. Any other method
    receives a `UnaryCall`, and must not block.
    """

    @property
    def source(self) -> RequestSource | None:
        """What a thread pool must poll so that calls are handled; None = the event loop handles them."""

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
