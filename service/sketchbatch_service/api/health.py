"""Answers grpc.health.v1: Check, Watch and List, one status for all of the server's services; and whether it lives."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

LIVENESS = "liveness"
"""A name to ask for that is no service: SERVING as long as anything is answered, whatever models do."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Says NOT_SERVING until `serve`, after `fail`, and from `leave` on; `drain` ends every Watch after its last word.

    (grpcio-health-checking's own aio servicer has no List, and its watches hold a draining server to its limit.)
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = ("", *services)  # "" = the server as a whole
        self._status = _NOT_SERVING
        self._is_leaving = False
        self._is_draining = False
        self._changed = asyncio.Condition()

    @property
    def is_serving(self) -> bool:
        """Whether it says SERVING."""
        return bool(self._status == _SERVING)

    async def serve(self) -> None:
        """From now on: SERVING, unless the server leaves."""
        await self._say(_NOT_SERVING if self._is_leaving else _SERVING)

    async def fail(self) -> None:
        """From now on: NOT_SERVING, until `serve`."""
        await self._say(_NOT_SERVING)

    async def leave(self) -> None:
        """From now on: NOT_SERVING, for good; whoever watches is told, and may watch on."""
        self._is_leaving = True
        await self._say(_NOT_SERVING)

    async def drain(self) -> None:
        """After `leave`: ends every Watch."""
        self._is_draining = True
        await self._say(_NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        status = self._status_of(request.service)
        if status == _UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no such service; there are: {', '.join(self._services[1:])}"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        status = health_pb2.HealthCheckResponse(status=self._status)
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(self._services, status))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None

        def has_news() -> bool:
            return self._status_of(request.service) != told

        while True:
            if has_news():  # again after each: it may have changed while that was sent
                told = self._status_of(request.service)
                yield health_pb2.HealthCheckResponse(status=told)
            elif self._is_draining:
                return
            else:
                async with self._changed:
                    await self._changed.wait_for(lambda: has_news() or self._is_draining)

    async def _say(self, status: int) -> None:
        async with self._changed:
            self._status = status
            self._changed.notify_all()

    def _status_of(self, service: str) -> int:
        if service == LIVENESS:
            return int(_SERVING)
        status: int = self._status if service in self._services else _UNKNOWN
        return status
