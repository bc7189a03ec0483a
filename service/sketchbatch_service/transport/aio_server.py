"""Run a gRPC server on `grpc.aio.server`: grpcio's public API only, so that every version of grpcio works."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import structlog

from ..background import Component, ComponentName, keep_task_running
from ..errors import AddressUnusable
from . import listening
from .aio_call import Answers, adapted, counting, rejecting
from .interface import Authenticator, PendingMessages
from .status import DRAINING, NO_SUCH_METHOD, CallEnds, StatusCounts

log = structlog.get_logger()

_FAILURE_CHECK_S = 0.25  # seconds between two checks of whether the server has failed
_REOPEN_S = 0.1  # seconds between two attempts to bind a port again
_NEVER_S = 86_400.0  # seconds after which grpcio would cancel the open calls; `stop` does this itself
_FAILURES_PER_LOG = 10  # failed attempts per line in the log

# Strings, because grpc's classes are generic in its type stubs only, not at run time.
_MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_MethodHandler | None]]"


class AioServer:
    """An `interface.Server` on the running event loop; needs no thread of its own.

    `authenticate` is called for each call before its request is read, and must not block; with None, all calls are
    accepted.
    """

    source = None

    def __init__(
        self,
        options: Sequence[tuple[str, int]] = (),
        authenticate: Authenticator | None = None,
        *,
        max_receive_s: float = math.inf,
    ) -> None:
        self._options = tuple(options)
        self._pending = PendingMessages(max_receive_s)
        self._methods = _Methods(Answers(asyncio.get_running_loop()), self._pending)
        self._call_ends = CallEnds()
        rejected = self._call_ends.rejected
        self._draining = _DrainInterceptor(rejected)
        authentication = [_AuthenticationInterceptor(authenticate, rejected)] if authenticate else []
        self._interceptors = (self._draining, *authentication, _CountingInterceptor(self._call_ends))
        self._addresses: list[tuple[str, grpc.ServerCredentials | None]] = []
        self._is_listening = True  # if False, a server that fails does not open its ports again
        self._server = self._new_server()
        self._has_failed = False  # and was not replaced yet
        self._listener = Component(ComponentName.LISTENER)

    @property
    def components(self) -> tuple[Component, ...]:
        """The background components without which the server accepts no calls."""
        return (self._listener,)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serve the methods of these handlers; the generated `add_*_to_server` functions call this method."""
        self._methods.handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing: the generated functions also pass the same methods to `add_generic_rpc_handlers`."""

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None, *, purpose: str = "") -> str:
        """Listen on HOST:PORT or unix:PATH, with TLS if there are credentials; return the address with the bound port.

        Raises:
            AddressUnusable: The address is in use or does not belong to this machine; the message contains `purpose`.
        """
        bound = listening.bind(address, lambda wanted: self._add_port(wanted, credentials), purpose=purpose)
        self._addresses.append((bound, credentials))
        return bound

    @property
    def call_ends(self) -> CallEnds:
        """The counts and times of the ended calls."""
        return self._call_ends

    def connections(self) -> int:
        """Return the number of open connections; raise OSError if the system does not list them."""
        return listening.count_connections([address for address, _ in self._addresses])

    async def start(self) -> None:
        """Accept calls from now on."""
        await self._server.start()
        self._reopening = asyncio.create_task(keep_task_running(self._listener, self._keep_open))
        self._ending_late = asyncio.create_task(self._pending.end_late())

    def stop_listening(self) -> None:
        """Refuse new connections from now on; calls on open connections are answered."""
        for address, _ in self._addresses:
            listening.close(address)
        self._is_listening = False

    async def stop(self, grace_s: float, forced: "asyncio.Future[Any] | None" = None) -> None:
        """Reject new calls, wait for the open ones and return when all have ended.

        Open calls are cancelled after `grace_s` seconds, or as soon as `forced` is settled.
        """
        self._draining.is_draining = True
        await asyncio.sleep(listening.REJECTION_S)
        stopping = asyncio.ensure_future(self._stop_server(grace_s + _NEVER_S))
        if not await listening.wait_for_end(stopping, forced, grace_s, self._is_idle):
            self._call_ends.are_calls_cancelled = True
            cancelling = asyncio.ensure_future(self._server.stop(None))
            for address, _ in self._addresses:
                listening.close_connections(address)
            await cancelling
        await stopping
        self._ending_late.cancel()
        await self._reopening

    def _is_idle(self) -> bool:
        """End the calls of a stopping server whose request has not arrived; return whether no call is open."""
        self._pending.end(*DRAINING)
        return not self._call_ends.open_calls

    async def _stop_server(self, grace_s: float) -> None:
        try:
            await self._server.stop(grace_s)
        except Exception:  # a failed server raises its failure here, before it has waited for the open calls
            await self._server.stop(grace_s)

    def _new_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=self._options, interceptors=self._interceptors)
        server.add_generic_rpc_handlers((self._methods,))
        return server

    def _add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        if credentials:
            return self._server.add_secure_port(address, credentials)
        return self._server.add_insecure_port(address)

    async def _keep_open(self) -> None:
        """Replace the server whenever it fails: the server of grpcio 1.85 fails at a call whose path is not UTF-8."""
        while not self._draining.is_draining:
            if self._has_failed:
                await self._replace_server()
                continue
            try:
                # Without a time limit, grpcio would report a failure only after the end of all open calls.
                while await self._server.wait_for_termination(_FAILURE_CHECK_S):
                    self._listener.record_success()
                return
            except Exception as exc:
                self._has_failed = True
                if not self._draining.is_draining:
                    log.warning("server failed, opening its ports again", reason=f"{type(exc).__name__}: {exc}")

    async def _replace_server(self) -> None:
        await self._server.stop(None)  # grpcio closes the ports of a failed server, but leaves its calls open
        self._server = self._new_server()
        for address, credentials in list(self._addresses):
            await self._reopen(address, credentials)
        if not self._draining.is_draining:
            await self._server.start()
            self._has_failed = False

    async def _reopen(self, address: str, credentials: grpc.ServerCredentials | None) -> None:
        """Bind a port again, as soon as no other process uses it."""
        failures = 0
        while self._is_listening and not self._draining.is_draining:
            try:
                listening.bind(address, lambda bound: self._add_port(bound, credentials))
                return
            except AddressUnusable as exc:
                failures += 1
                self._listener.count_error()
                if failures % _FAILURES_PER_LOG == 0:
                    log.error("port not opened, trying again", reason=str(exc))
                await asyncio.sleep(_REOPEN_S)


class _Methods(grpc.GenericRpcHandler):
    """Find the handler of a method, convert it with `adapted`, and keep the result for later calls of the method."""

    def __init__(self, answers: Answers, pending: PendingMessages) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []
        self._answers = answers
        self._pending = pending
        self._adapted: dict[str, _MethodHandler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> "_MethodHandler | None":
        if found := self._adapted.get(details.method):
            return found
        handler = next((found for each in self.handlers if (found := each.service(details))), None)
        if handler is None:
            return None
        self._adapted[details.method] = adapted(handler, self._answers, self._pending)
        return self._adapted[details.method]


class _DrainInterceptor(grpc.aio.ServerInterceptor):
    """Reject all calls while the server is draining."""

    def __init__(self, rejected: StatusCounts) -> None:
        self.is_draining = False
        self._rejected = rejected

    async def intercept_service(
        self, continuation: _Continuation, details: grpc.HandlerCallDetails
    ) -> "_MethodHandler | None":
        if self.is_draining:
            return rejecting(*DRAINING, self._rejected)
        return await continuation(details)


class _AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Reject the calls for which `authenticate` returns a reason."""

    def __init__(self, authenticate: Authenticator, rejected: StatusCounts) -> None:
        self._authenticate = authenticate
        self._rejected = rejected

    async def intercept_service(
        self, continuation: _Continuation, details: grpc.HandlerCallDetails
    ) -> "_MethodHandler | None":
        reason = self._authenticate(details.method.encode(), details.invocation_metadata or ())
        if reason is None:
            return await continuation(details)
        code = grpc.StatusCode.UNAUTHENTICATED
        log.debug("request rejected", code=code.name, reason=reason)
        return rejecting(code, reason, self._rejected)


class _CountingInterceptor(grpc.aio.ServerInterceptor):
    """Count the ended calls of each method by status; answer calls to unknown methods."""

    def __init__(self, call_ends: CallEnds) -> None:
        self._call_ends = call_ends
        self._counted: dict[str, _MethodHandler] = {}  # by path

    async def intercept_service(
        self, continuation: _Continuation, details: grpc.HandlerCallDetails
    ) -> "_MethodHandler | None":
        if found := self._counted.get(details.method):
            return found
        handler = await continuation(details)
        if handler is None:
            return rejecting(*NO_SUCH_METHOD, self._call_ends.rejected)
        self._counted[details.method] = counting(handler, self._call_ends.of_method(details.method))
        return self._counted[details.method]
