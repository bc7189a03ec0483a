"""Send RPCs of any kind to the servers, with failover and retries, from threads and from asyncio tasks.

Flow of one RPC: `_call` retries -> `_send_with_failover` chooses a connection, and another if that fails -> `_send`.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sketchbatch.v1 import classifier_pb2 as pb

from .. import arguments, errors
from ..arguments import optional_whole_number, whole_number
from .classification import ModelInfo, ModelKey, model_info
from .coalescing_queue import CoalescingQueue
from .concurrency import Concurrency
from .connections.connection import Connection, Server
from .connections.connection_pool import ConnectionPool
from .connections.credentials import Credentials, Tls, Token
from .connections.targets import CONNECT_TIMEOUT_S, channel_options, first_without_port, parse_targets, proxy_of
from .request import RequestKey, RequestLimit, as_text
from .retries.aimd_limit import AimdLimit
from .retries.error_details import is_retired
from .retries.retry_policy import RetryPolicy, has_no_response, is_unhealthy
from .retries.retry_state import RetryState
from .single_flight import SingleFlight

_MAX_IN_FLIGHT = 10_000  # the blocking client has one thread for each

_LONGEST_TIMEOUT_S = 27_000 * 3600.0
"""Longest timeout that gRPC sends to a server: three years. With a timeout of three centuries, a call fails at once."""

_DISCOVERY_TIMEOUT_S = 5.0  # longest wait for a worker's response; then the client uses the connections it has

_MODEL_DELAYS_S = (0.01, 0.02, 0.04, 0.08)  # delay after each failed attempt to find the model of a response

_KEPT_FILES = 4
"""Model files of one version whose labels are kept: during an update, servers may have different files."""

_VERSION_DELAYS_S = (0.05, 0.5)  # between attempts to reach a server that has a new version; doubles up to the second

_ARRIVAL_S = 60.0
"""Time after the first sight of a version in which it may be missing on other servers: they scan every few seconds, and
a network volume may show a new file up to a minute late."""

_ASK_FOR_GZIP = (("accept-encoding", "gzip"),)

Response = TypeVar("Response")

Send = Callable[[Connection, float], Awaitable[Response]]
"""Sends one RPC over a connection, with a deadline in time.monotonic seconds."""


class BaseClient:
    """The connections, retries and known models that all calls of a client share."""

    _make_backend: Callable[[], Concurrency]

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float | None = 60.0,
        rows_per_request: int = 1024,
        in_flight: int | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - it is frozen
        channels: int | None = None,
        tls: Tls | bool = False,
        token: str | None = None,
        token_file: Path | str | None = None,
        insecure_token: bool = False,
        gzip: bool = False,
    ) -> None:
        """Prepare a client. It connects with its first call.

        Args:
            target: HOST:PORT; several of these, separated by commas or in a sequence; or any target of gRPC, such as
                dns:///NAME:PORT (every address of that name) or unix:PATH.
            timeout_s: Longest time for one request in seconds, retries included; None or infinity = no limit.
            rows_per_request: Most rows per RPC; the service may have a lower limit. With hundreds of rows, the fixed
                cost of an RPC hardly matters.
            in_flight: Number of RPCs that one call keeps in flight, lower while servers push back; None = four for each
                connection, sixteen for a connection to a `dns:` name.
            retry: When to retry.
            channels: Number of connections to each server; None = one for each of its worker processes.
            tls: TLS settings; True = trust the public authorities of gRPC.
            token: Bearer token, sent with every request.
            token_file: File with that token; it is read again when it changes.
            insecure_token: Send the token to other machines even without TLS.
            gzip: Compress requests, and ask for compressed responses: for slow networks, because it costs CPU time.

        Raises:
            ValueError: An argument is invalid, or two arguments contradict each other.
            OSError: A certificate or token file cannot be read.
        """
        if not isinstance(retry, RetryPolicy):
            raise ValueError(f"retry must be a RetryPolicy, got {retry!r}")
        self._targets = parse_targets(target)
        self.target = ", ".join(self._targets)
        """The targets of the client, separated by commas."""
        self._timeout_s = arguments.timeout_s("timeout_s", timeout_s)
        self._rows_per_request = whole_number("rows_per_request", rows_per_request, 1)
        self._in_flight = optional_whole_number("in_flight", in_flight, 1, _MAX_IN_FLIGHT)
        self._retry_policy = retry
        self._has_reached_server = False
        self._models: dict[ModelKey, ModelInfo] = {}  # models that have computed a response
        self._first_seen: dict[tuple[str, str], float] = {}  # time.monotonic seconds, by model name and version
        self._limits: dict[tuple[str, str], RequestLimit] = {}  # by the model name and version of the request
        self._credentials = Credentials(self._targets, tls, Token(token, token_file), insecure_token=insecure_token)
        self._gzip = gzip
        self._proxy, self._without_port = proxy_of(self._targets), first_without_port(self._targets)
        self._channels = channels
        self._connect()

    def __reduce__(self) -> str:
        raise TypeError(f"{type(self).__name__} cannot be pickled: open one in each process")

    def _connect(self) -> None:
        """Create everything that has locks, threads or connections: at first, and again in a forked process."""
        self._backend = self._make_backend()
        self._queues: dict[RequestKey, CoalescingQueue] = {}
        self._limits_in_flight: SingleFlight[RequestLimit] = SingleFlight(self._backend.event)
        self._models_in_flight: SingleFlight[None] = SingleFlight(self._backend.event)
        self._pool = ConnectionPool(self._targets, self._open_channel, self._channels)
        self._unwatched_connections: dict[Server, Connection] = {}

    def _open_channel(
        self, target: str, connect_timeout_s: float = CONNECT_TIMEOUT_S, *, watches_health: bool = True
    ) -> Any:
        watches_health = watches_health and self._credentials.can_watch_health
        options = channel_options(target, watches_health=watches_health, connect_timeout_s=connect_timeout_s)
        options += self._credentials.options
        if self._gzip:
            options.append(("grpc.default_compression_algorithm", grpc.Compression.Gzip.value))
        if self._credentials.channel_credentials:
            return self._backend.channel_module.secure_channel(target, self._credentials.channel_credentials, options)
        return self._backend.channel_module.insecure_channel(target, options)

    def _aimd_limit(self) -> AimdLimit:
        return AimdLimit(self._pool.default_in_flight if self._in_flight is None else self._in_flight)

    def _retry_state(self, limit: AimdLimit | None = None) -> RetryState:
        return RetryState(
            self._retry_policy,
            self.target,
            self._timeout_s,
            self._has_reached_server,
            limit,
            self._proxy,
            self._without_port,
        )

    def _send(self, rpc: Callable[..., Any], request: object, deadline: float) -> Awaitable[Any]:
        """Send one RPC without retries."""
        remaining_s = max(0.0, deadline - time.monotonic())
        timeout_s = None if remaining_s > _LONGEST_TIMEOUT_S else remaining_s
        metadata = self._credentials.call_metadata()
        if self._gzip:
            metadata = (*(metadata or ()), *_ASK_FOR_GZIP)
        return self._backend.send(rpc, request, timeout_s, metadata)

    def _call(self, send: Send[Response], retry: RetryState) -> Awaitable[Response]:
        """Send one RPC with failover and retries."""
        return self._retry(lambda: self._send_with_failover(send, retry.deadline), retry)

    async def _retry(self, send: Callable[[], Awaitable[Response]], retry: RetryState) -> Response:
        """Repeat an attempt until it succeeds or `retry` forbids another."""
        while True:
            try:
                response = await send()
            except grpc.RpcError as exc:
                delay_s = self._retry_delay_s(exc, retry)
                if delay_s is None:
                    raise retry.failure(exc) from exc
            else:
                self._has_reached_server = True
                return response
            await self._backend.sleep(delay_s)
            self._pool.check_open()

    def _retry_delay_s(self, error: Exception, retry: RetryState) -> float | None:
        """Return the delay before the next attempt, or None to stop.

        If a server has responded before and none responds now, the delay ends at the latest when a DNS name can be
        resolved again. During a rollout, DNS may return the new servers soon after the old servers have exited.
        """
        delay_s = retry.delay_s(error)
        if delay_s is None or not retry.has_reached_server or not has_no_response(error):
            return delay_s
        return min(delay_s, self._pool.replaceable_in_s())

    async def _send_with_failover(self, send: Send[Response], deadline: float) -> Response:
        """Try one connection after the other until one succeeds, or until each connection was tried or backs off."""
        tried: list[Connection] = []
        replaced: set[Server] = set()
        while True:
            connection = self._pool.acquire(tried)
            try:
                response = await send(connection, deadline)
            except Exception as exc:
                self._pool.check_open(exc)  # a closed channel raises several errors, which do not say what has happened
                if not isinstance(exc, grpc.RpcError):
                    raise
                delay_s = self._retry_policy.delay_s(exc, connection.failures + 1)
                if delay_s is None:
                    raise
                self._pool.back_off(connection, delay_s)
                tried.append(connection)
                if not self._can_try_again(exc, connection, tried, replaced):
                    if not is_unhealthy(exc):
                        raise
                    return await send(self._unwatched(connection.server), deadline)
            else:
                if connection.failures:
                    self._pool.restore(connection)
                return response
            finally:
                await self._release(connection)

    def _can_try_again(
        self, error: grpc.RpcError, connection: Connection, tried: list[Connection], replaced: set[Server]
    ) -> bool:
        """Return whether another server may respond now: over another connection, or under the same DNS name.

        The second attempt over a connection to a name reaches another server, if gRPC knows one. After that attempt
        has failed, too, the name must be resolved again: once, before `RetryPolicy` decides about further attempts.
        """
        if self._pool.has_other(tried):
            return True
        if not has_no_response(error) or not connection.server.is_name:
            return False
        if tried.count(connection) == 1:
            return True
        if connection.server in replaced:
            return False
        replaced.add(connection.server)
        return self._pool.replace(connection)

    def _unwatched(self, server: Server) -> Connection:
        """Return a connection that ignores health: a lame duck without another server still accepts calls."""
        if server not in self._unwatched_connections:
            channel = self._open_channel(server.target, watches_health=False)
            self._unwatched_connections.setdefault(server, Connection(server, channel, time.monotonic()))
        return self._unwatched_connections[server]

    async def _release(self, connection: Connection) -> None:
        if channels := self._pool.release(connection):
            await self._backend.close_channels(channels)

    async def _list_models(self) -> list[ModelInfo]:
        response = await self._call(
            lambda connection, deadline: self._send(connection.stub.ListModels, pb.ListModelsRequest(), deadline),
            self._retry_state(),
        )
        return [model_info(model) for model in response.models]

    async def _get_model(self, name: str, version: str, *, with_training_digests: bool = False) -> ModelInfo:
        name, version = as_text("name", name), as_text("version", version)
        request = pb.GetModelRequest(
            model_name=name, model_version=version, with_training_digests=with_training_digests
        )

        async def send(connection: Connection, deadline: float) -> ModelInfo:
            attempt = partial(self._get_model_over, request, connection, deadline)
            return await self._until_arrived(name, version, attempt, deadline)

        return await self._call(send, self._retry_state())

    async def _get_model_over(self, request: pb.GetModelRequest, connection: Connection, deadline: float) -> ModelInfo:
        response = await self._send(connection.stub.GetModel, request, deadline)
        self._pool.register(connection, response.model)
        self._note_version(response.model.name, response.model.version)
        return model_info(response.model)

    def _note_version(self, name: str, version: str) -> None:
        self._first_seen.setdefault((name, version), time.monotonic())

    def _is_arriving(self, name: str, version: str) -> bool:
        """Return whether a version was first seen a short time ago; the name "" stands for the default model."""
        since = time.monotonic() - _ARRIVAL_S
        return any(
            seen_at > since and seen_version == version and name in (seen_name, "")
            for (seen_name, seen_version), seen_at in list(self._first_seen.items())
        )

    async def _until_arrived(
        self, name: str, version: str, send: Callable[[], Awaitable[Response]], deadline: float
    ) -> Response:
        """Repeat an attempt that ends with NOT_FOUND if another server has reported this version a short time ago.

        During a model update the servers load a version at different moments, and a connection to a name reaches
        several servers in turn. A server that serves a newer version has retired this one, and the attempt is not
        repeated. Raises DeadlineExceeded.
        """
        missing: str | None = None  # what the last server answered that does not serve the version
        delay_s, longest_s = _VERSION_DELAYS_S
        while True:
            try:
                return await send()
            except grpc.RpcError as exc:
                is_missing = exc.code() is grpc.StatusCode.NOT_FOUND
                is_awaited = is_missing and self._is_arriving(name, version) and not is_retired(version, exc)
                is_late = missing is not None and exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                if not is_awaited and not is_late:
                    raise
                missing = exc.details() or "NOT_FOUND" if is_missing else missing
                if is_late or deadline - time.monotonic() <= delay_s:
                    wanted = f"{name or 'the default model'} version {version}"
                    raise errors.DeadlineExceeded(
                        f"not all servers of {self.target} served {wanted} within {self._timeout_s:g} s (one answered: "
                        f"{missing}); all servers of a client must serve the same models; if the version was removed, "
                        "request another one"
                    ) from exc
            await self._backend.sleep(delay_s)
            delay_s = min(2 * delay_s, longest_s)

    async def _model_of(
        self, response: pb.ClassifyResponse, connection: Connection, deadline: float
    ) -> ModelInfo | None:
        """Return the model that computed `response`, or None if several attempts have found no server that serves it.

        One connection may reach several servers, in turn. During a model update, some servers do not serve the version
        yet, or serve another file of the same version. Raises DeadlineExceeded if no time is left for an attempt.
        """
        key = ModelKey(response.model_name, response.model_version, response.digest)
        self._note_version(key.name, key.version)
        for delay_s in _MODEL_DELAYS_S:
            if key not in self._models:
                await self._find_model_once(key, connection, deadline)
            if model := self._models.get(key):
                return model
            if deadline - time.monotonic() <= delay_s:
                raise self._labels_missing(key)
            await self._backend.sleep(delay_s)
        return None

    async def _find_model_once(self, key: ModelKey, connection: Connection, deadline: float) -> None:
        """Share one request for a model among the calls that received responses over the same connection.

        Another connection may reach another server, and its errors are not those of this connection.
        """
        try:
            await self._models_in_flight.do(
                (key, connection),
                partial(self._find_model, key, connection, deadline),
                lambda: deadline - time.monotonic(),
            )
        except TimeoutError as exc:
            raise self._labels_missing(key) from exc

    async def _find_model(self, key: ModelKey, connection: Connection, deadline: float) -> None:
        """Call GetModel at one server; remember the labels if it serves this file, and do nothing if it does not."""
        if key in self._models:  # another call has found the model meanwhile
            return
        try:
            request = pb.GetModelRequest(model_name=key.name, model_version=key.version)
            model = await self._get_model_over(request, connection, deadline)
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._labels_missing(key) from exc
            if exc.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        else:
            digest = key.digest and model.digest  # a service whose responses have no digest has one file per version
            self._remember(key._replace(digest=digest), model)

    def _remember(self, key: ModelKey, model: ModelInfo) -> None:
        """Keep the labels of a model file, and forget those of files that it has replaced."""
        self._models[key] = model
        files = [each for each in list(self._models) if (each.name, each.version) == (key.name, key.version)]
        for replaced in files[:-_KEPT_FILES]:
            self._models.pop(replaced, None)

    def _labels_missing(self, key: ModelKey) -> errors.DeadlineExceeded:
        return errors.DeadlineExceeded(
            f"{self.target} returned scores of {key}, but not the labels of this model file in {self._timeout_s:g} s"
        )

    async def _discover_workers(self) -> None:
        """Open a connection to every worker process of every server, on the first call only."""
        for server in self._pool.begin_discovery():
            try:
                first = self._pool.acquire_from(server)
            except errors.Unavailable:  # the client was closed: the next request raises this error
                return
            try:
                await self._discover_workers_of(server, first)
            finally:
                await self._release(first)

    async def _discover_workers_of(self, server: Server, first: Connection) -> None:
        for connection in server.candidates(first):
            try:
                deadline = time.monotonic() + _DISCOVERY_TIMEOUT_S
                response = await self._send(connection.stub.GetModel, pb.GetModelRequest(), deadline)
            except grpc.RpcError:  # ignored: the next request works over another connection, or raises
                if connection is not first:
                    await self._backend.close_channels([connection.channel])
                break
            if not self._pool.register(connection, response.model):
                await self._backend.close_channels([connection.channel])

    async def _check_health(self, service: str) -> str:
        """Return SERVING if any target reports it, else the status of the first target that responds."""
        self._pool.check_open()
        service = as_text("service", service)
        statuses, error = [], None
        for target in self._targets:
            try:
                statuses.append(await self._check_health_of(target, service))
            except (errors.Unavailable, errors.DeadlineExceeded) as exc:
                error = exc
            if statuses[-1:] == ["SERVING"]:
                return "SERVING"
        if error and not statuses:
            raise error
        return statuses[0]

    async def _check_health_of(self, target: str, service: str) -> str:
        """Check one target in at most `max_attempts` attempts; use a new channel, to reach unhealthy servers, too."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        channel = self._open_channel(target, watches_health=False)
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service=service)
        retry = RetryState(
            self._retry_policy, target, self._timeout_s, has_reached_server=False, proxy=proxy_of([target])
        )
        try:
            response = await self._retry(lambda: self._send(check, request, retry.deadline), retry)
        except errors.ModelNotFound:  # the status NOT_FOUND: the health check does not know this service name
            return "SERVICE_UNKNOWN"
        finally:
            await self._backend.close_channels([channel])
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    async def _close(self) -> None:
        channels = [*self._pool.close(), *(each.channel for each in self._unwatched_connections.values())]
        self._backend.stop()
        await self._backend.close_channels(channels)
