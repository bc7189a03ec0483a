"""Run a service of fake models in the test's own process, on a free port."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from fakes import FakeModel, RecordingBatcher, drawings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_service.api.classifier.servicer import ClassifierServicer
from sketchbatch_service.api.health import HealthServicer
from sketchbatch_service.api.health_monitor import monitor_health
from sketchbatch_service.api.openinference import wire
from sketchbatch_service.api.openinference.servicer import InferenceServicer
from sketchbatch_service.batching.batcher import BatchLimits
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.engines.score_kind import ScoreKind
from sketchbatch_service.models.artifact import Artifact
from sketchbatch_service.models.registry import ModelRegistry, ServedModel
from sketchbatch_service.telemetry.metrics import ServiceMetrics
from sketchbatch_service.transport.interface import Authenticator
from sketchbatch_service.transport.selection import create_server
from structlog.testing import capture_logs

ARTIFACT = Artifact(labels=("ink",), name="", version="", created="", licence="", metrics={}, digest="d")
SERVICE = "sketchbatch.v1.ClassifierService"

transport = "core"
"""The transport of `serving`; the fixture `transport_in_process` sets this variable for each test."""


@dataclass
class InProcess:
    """Hold the components of a running service, and a channel to the service."""

    channel: grpc.aio.Channel
    models: ModelRegistry
    pool: LeaderFollowerPool
    classifier: ClassifierServicer
    inference: InferenceServicer
    metrics: ServiceMetrics
    log: list[dict]
    address: str

    @property
    def stub(self) -> classifier_pb2_grpc.ClassifierServiceStub:
        return classifier_pb2_grpc.ClassifierServiceStub(self.channel)

    @property
    def health(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(self.channel)

    @property
    def batcher(self) -> RecordingBatcher:
        """Return the batcher of the default model."""
        return self.models.get("", "").batcher

    async def classify(self, *first_pixels: int, **fields) -> pb.ClassifyResponse:
        """Classify rows whose first pixels have the given values, one row per value."""
        return await self.stub.Classify(pb.ClassifyRequest(bitmaps=drawings(*first_pixels).tobytes(), **fields))

    async def rejection(self, *first_pixels: int, **fields) -> grpc.aio.AioRpcError:
        """Return the error with which the service rejects a Classify request with the given rows and fields."""
        return await rejection(self.classify(*first_pixels, **fields))

    async def is_serving(self, service: str = "") -> bool:
        """Return whether the service's health is SERVING."""
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def values(self) -> dict[str, float]:
        """Return the values of all metrics; a key is the metric's name and the values of its labels.

        Labels that every metric has are left out.
        """
        return {
            sample.name + "".join(f" {sample.labels[key]}" for key in sorted(sample.labels) if key not in COMMON): (
                sample.value
            )
            for metric in self.metrics.collect()
            for sample in metric.samples
        }


COMMON = ("worker", "version")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` returns true; the wait has no time limit except that of the test."""
    while not condition():
        await asyncio.sleep(0.01)


async def rejection(call) -> grpc.aio.AioRpcError:
    """Return the error with which `call` ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


@asynccontextmanager
async def serving(
    limits: BatchLimits | None = None,
    *,
    buckets: tuple[int, ...] = (),
    max_request_rows: int = 100,
    trial_every_s: float = 0.1,
    options: tuple[tuple[str, int], ...] = (),
    authenticate: Authenticator | None = None,
    max_receive_s: float = math.inf,
    **fakes: FakeModel | tuple[FakeModel, ...],
) -> AsyncIterator[InProcess]:
    """Run a service with the models `fakes` until the context ends.

    The name of an argument is the name of its model. A tuple holds the versions 1, 2, ... of one model.
    """
    named = [
        (name, str(version), fake)
        for name, each in fakes.items()
        for version, fake in enumerate(each if isinstance(each, tuple) else (each,), 1)
    ]
    models = ModelRegistry(
        ServedModel(
            name=name,
            version=version,
            artifact=ARTIFACT,
            provider="CPU",
            score_kind=ScoreKind.LOGITS,
            batcher=RecordingBatcher(fake.predict, limits or BatchLimits(), model=f"model {name!r} version {version}"),
            buckets=buckets,
        )
        for name, version, fake in named
    )
    server = create_server(transport, options, authenticate, max_receive_s=max_receive_s)
    health = HealthServicer([SERVICE])
    classifier = ClassifierServicer(models, max_request_rows=max_request_rows)
    inference = InferenceServicer(models, max_request_rows=max_request_rows)
    server.add_generic_rpc_handlers([classifier.handlers(), wire.handlers(inference)])
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = server.listen("127.0.0.1:0")
    await server.start()
    with capture_logs() as log, models.thread_pool(server.source) as pool:
        await health.serve()
        needed = [*pool.components, *server.components]
        monitor = asyncio.create_task(monitor_health(models, health, needed=needed, trial_every_s=trial_every_s))
        metrics = ServiceMetrics(health, worker=1)
        metrics.include(models, server, max_connections=900)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield InProcess(channel, models, pool, classifier, inference, metrics, log, address)
        finally:
            for _, _, fake in named:
                fake.release.set()
            monitor.cancel()
            await health.drain()
            await server.stop(5)
            inference.close()
