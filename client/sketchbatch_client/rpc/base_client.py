"""Asks the servers, again where that may help: what holds for an RPC of any kind, in threads and in tasks."""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sketchbatch.v1 import classifier_pb2 as pb

from .. import errors
from .classification import ModelInfo, model_info
from .coalescing_queue import Lane
from .concurrency import Waits
from .connections.connection_pool import Connection, Servers
from .connections.credentials import Access, Tls, Token
from .connections.targets import channel_options, targets_of
from .request import Question
from .retries.aimd_limit import Window
from .retries.retry_policy import RetryPolicy
from .retries.retry_state import Attempts

_MEETING_S = 5.0  # longest a worker may take to introduce itself before it is done without

Answer = TypeVar("Answer")

Ask = Callable[[Connection, float], Awaitable[Answer]]
"""Makes one RPC over a connection, with time until then, in time.monotonic seconds."""


class Caller:
    """Whom to ask, how patiently, and what is known of who answers.

    Args:
        target: host:port; several of these, with commas between or in a sequence; or any target of gRPC's, such as
            dns:///name:port (every address of that name) or unix:path.
        timeout_s: Longest one request may take, retries included.
        rows_per_request: Rows in one RPC, fewer if the service allows fewer; hundreds make its cost small.
        in_flight: RPCs of one call under way at once, fewer while the servers push back; None = four for each server
            and worker process, sixteen for a name behind dns:.
        retry: When to try again.
        channels: Connections to each server; None = one for each of its worker processes.
        tls: How to speak TLS; True = by the authorities that gRPC knows.
        token: Bearer token, sent with every request.
        token_file: A file with that token, read again when it changes.
        insecure_token: Send the token without TLS to other machines than this one, too.

    Raises:
        ValueError: Of these, two contradict each other, or one is not what it should be.
        OSError: A certificate or token cannot be read.
    """

    _make_waits: Callable[[], Waits]

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float = 60.0,
        rows_per_request: int = 1024,
        in_flight: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        channels: int | None = None,
        tls: Tls | bool = False,
        token: str | None = None,
        token_file: Path | None = None,
        insecure_token: bool = False,
    ) -> None:
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"in_flight must be 1 or more, or None, got {in_flight}")
        self._targets = targets_of(target)
        self.target = ", ".join(self._targets)
        self._timeout_s = timeout_s
        self._rows_per_request = rows_per_request
        self._in_flight = in_flight
        self._retry = retry
        self._has_answered = False
        self._lanes: dict[Question, Lane] = {}
        self._models: dict[tuple[str, str], ModelInfo] = {}  # by name and version as asked for, and as answered
        self._waits = self._make_waits()
        self._access = Access(self._targets, tls, Token(token, token_file), insecure_token=insecure_token)
        self._servers = Servers(self._targets, self._open_channel, channels)

    def _open_channel(self, target: str, *, watches_health: bool = True) -> Any:
        options = channel_options(target, watches_health=watches_health and self._access.watches_health)
        return self._waits.open_channel(target, self._access.credentials, options + self._access.options)

    def _window(self) -> Window:
        return Window(self._servers.in_flight if self._in_flight is None else self._in_flight)

    def _attempts(self, window: Window | None = None) -> Attempts:
        return Attempts(self._retry, self.target, self._timeout_s, has_answered=self._has_answered, window=window)

    def _rpc(self, rpc: Callable[..., Any], request: object, give_up_at: float) -> Awaitable[Any]:
        """One RPC, without retries."""
        return self._waits.call(rpc, request, max(0.0, give_up_at - time.monotonic()), self._access.metadata())

    def _call(self, ask: Ask[Answer], attempts: Attempts) -> Awaitable[Answer]:
        """One RPC, with retries."""
        return self._persist(lambda: self._somewhere(ask, attempts.give_up_at), attempts)

    async def _persist(self, ask: Callable[[], Awaitable[Answer]], attempts: Attempts) -> Answer:
        """Asks until there is an answer, or no hope of one."""
        while True:
            try:
                answer = await ask()
            except grpc.RpcError as exc:
                delay_s = attempts.delay_s(exc)
                if delay_s is None:
                    raise attempts.failure(exc) from exc
            else:
                self._has_answered = True
                return answer
            await self._waits.sleep(delay_s)

    async def _somewhere(self, ask: Ask[Answer], give_up_at: float) -> Answer:
        """Asks over one connection, and when that fails at once over another, while one is left to try."""
        tried: list[Connection] = []
        while True:
            connection = self._servers.borrow(tried)
            try:
                answer = await ask(connection, give_up_at)
            except grpc.RpcError as exc:
                rest_s = self._retry.delay_s(exc, connection.failed + 1)
                if rest_s is None:
                    raise
                self._servers.rest(connection, rest_s)
                tried.append(connection)
                if not self._servers.has_other(tried):
                    raise
            else:
                if connection.failed:
                    self._servers.recover(connection)
                return answer
            finally:
                self._servers.give_back(connection)

    async def _list_models(self) -> list[ModelInfo]:
        answer = await self._call(
            lambda connection, give_up_at: self._rpc(connection.stub.ListModels, pb.ListModelsRequest(), give_up_at),
            self._attempts(),
        )
        return [model_info(model) for model in answer.models]

    async def _get_model(self, name: str, version: str) -> ModelInfo:
        return await self._call(partial(self._get_model_over, name, version), self._attempts())

    async def _get_model_over(self, name: str, version: str, connection: Connection, give_up_at: float) -> ModelInfo:
        request = pb.GetModelRequest(model_name=name, model_version=version)
        answer = await self._rpc(connection.stub.GetModel, request, give_up_at)
        self._servers.note(connection, answer.model)
        return model_info(answer.model)

    async def _known(self, name: str, version: str) -> ModelInfo:
        """Asked for once for each name and version."""
        model = self._models.get((name, version))
        return model or self._models.setdefault((name, version), await self._get_model(name, version))

    async def _reach_all_workers(self) -> None:
        """Opens the connections that the servers' other workers are reached by, the first time."""
        for server, first in self._servers.first_search():
            for connection in server.search(first):
                try:
                    give_up_at = time.monotonic() + _MEETING_S
                    answer = await self._rpc(connection.stub.GetModel, pb.GetModelRequest(), give_up_at)
                except grpc.RpcError:  # the connections there are will do, or say what is wrong
                    if connection is not first:
                        await self._waits.close_channels([connection.channel])
                    break
                if not self._servers.note(connection, answer.model):
                    await self._waits.close_channels([connection.channel])

    async def _check_health(self, service: str) -> str:
        """SERVING if any target says so, else what the first says that answers."""
        told, silence = [], None
        for target in self._targets:
            try:
                told.append(await self._check_health_of(target, service))
            except (errors.Unavailable, errors.DeadlineExceeded) as exc:
                silence = exc
            if told[-1:] == ["SERVING"]:
                return "SERVING"
        if silence and not told:
            raise silence
        return told[0]

    async def _check_health_of(self, target: str, service: str) -> str:
        """Over a channel of its own, which also speaks to a server that is not healthy; without patience: it is now."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        channel = self._open_channel(target, watches_health=False)
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service=service)
        attempts = Attempts(self._retry, target, self._timeout_s, has_answered=False)
        try:
            answer = await self._persist(lambda: self._rpc(check, request, attempts.give_up_at), attempts)
        except errors.ModelNotFound:  # the health protocol's NOT_FOUND
            return "SERVICE_UNKNOWN"
        finally:
            await self._waits.close_channels([channel])
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def _close(self) -> None:
        await self._waits.close_channels(self._servers.close())
        self._waits.stop()
