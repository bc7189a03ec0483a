"""Define what servicers use of a call, independently of the server that accepted it."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import grpc

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
