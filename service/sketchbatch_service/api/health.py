"""Answer grpc.health.v1: Check, Watch and List, with one status for all services of the server, and liveness."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..transport.interface import Context

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

LIVENESS = "liveness"  # name for liveness probes: SERVING whenever the process answers, in any state of the models

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Report SERVING after `serve`, and NOT_SERVING before it, after `fail` and while the service stops.

    A stop has up to three steps. After `enter_lame_duck`, Check and List report NOT_SERVING to balancers, which poll
    these RPCs. After `leave`, Watch reports NOT_SERVING, too. `drain` ends every Watch. This class replaces the asyncio
    servicer of grpcio-health-checking, which has no List and whose open watches delay the end of a draining server.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = ("", *services)  # "" = the server as a whole
        self._status = _NOT_SERVING
        self._is_lame_duck = False
        self._is_leaving = False
        self._is_draining = False
        self._changed = asyncio.Condition()

    @property
    def is_serving(self) -> bool:
        """Whether Check reports SERVING."""
        return bool(self._polled == _SERVING)

    async def serve(self) -> None:
        """Report SERVING, except in RPCs that report NOT_SERVING because the service stops."""
        self._status = _SERVING
        await self._notify()

    async def fail(self) -> None:
        """Report NOT_SERVING until `serve`."""
        self._status = _NOT_SERVING
        await self._notify()

    def enter_lame_duck(self) -> None:
        """Let Check and List report NOT_SERVING for good; Watch reports the state of the models until `leave`."""
        self._is_lame_duck = True

    async def leave(self) -> None:
        """Let Watch report NOT_SERVING for good, too; open watches receive it and stay open."""
        self._is_lame_duck = self._is_leaving = True
        await self._notify()

    async def drain(self) -> None:
        """Report NOT_SERVING in every open Watch, then end it."""
        self._is_draining = True
        await self.leave()

    def for_probes(self) -> health_pb2_grpc.HealthServicer:
        """Return a servicer for a probe port; its Check reports the same status as Watch.

        A kubelet then regards a replica as ready until `leave`. If all replicas are stopping, kube-proxy uses the
        ready ones:
        https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/1669-proxy-terminating-endpoints
        """
        return _ProbeHealthServicer(self)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        return await self._check(request.service, self._polled, context)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        return self._list(self._polled)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        sent = None

        def has_changed() -> bool:
            return self._status_of(request.service, self._watched) != sent

        while True:
            if has_changed():  # checked after each response: the status may have changed while it was sent
                sent = self._status_of(request.service, self._watched)
                yield health_pb2.HealthCheckResponse(status=sent)
            elif self._is_draining:
                return
            else:
                async with self._changed:
                    await self._changed.wait_for(lambda: has_changed() or self._is_draining)

    async def _check(self, service: str, status: int, context: Context) -> health_pb2.HealthCheckResponse:
        status = self._status_of(service, status)
        if status == _UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no such service; there are: {', '.join(self._services[1:])}"
            )
        return health_pb2.HealthCheckResponse(status=status)

    def _list(self, status: int) -> health_pb2.HealthListResponse:
        response = health_pb2.HealthCheckResponse(status=status)
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._services, response))

    @property
    def _polled(self) -> int:
        return int(_NOT_SERVING if self._is_lame_duck else self._status)

    @property
    def _watched(self) -> int:
        return int(_NOT_SERVING if self._is_leaving else self._status)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _status_of(self, service: str, status: int) -> int:
        if service == LIVENESS:
            return int(_SERVING)
        return int(status if service in self._services else _UNKNOWN)


class _ProbeHealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    def __init__(self, health: HealthServicer) -> None:
        self._health = health
        self.Watch = health.Watch

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        return await self._health._check(request.service, self._health._watched, context)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        return self._health._list(self._health._watched)
