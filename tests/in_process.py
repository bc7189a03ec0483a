"""A whole service of fake models in the test's own process, on a free port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from fakes import FakeModel, drawings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_service.api.classifier.servicer import ClassifierServicer
from sketchbatch_service.api.health import HealthServicer
from sketchbatch_service.api.health_monitor import monitor_health
from sketchbatch_service.api.openinference import wire
from sketchbatch_service.api.openinference.servicer import InferenceServicer
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.models.artifact import Artifact
from sketchbatch_service.models.registry import ModelRegistry, ServedModel
from sketchbatch_service.telemetry.metrics import ServiceMetrics
from sketchbatch_service.transport.core_server import CoreServer
from structlog.testing import capture_logs

ARTIFACT = Artifact(labels=("ink",), name="", version="", created="", licence="", metrics={}, digest="d")
SERVICE = "sketchbatch.v1.ClassifierService"


@dataclass
class InProcess:
    """The service, and what asks it."""

    channel: grpc.aio.Channel
    models: ModelRegistry
    metrics: ServiceMetrics
    log: list[dict]

    @property
    def stub(self) -> classifier_pb2_grpc.ClassifierServiceStub:
        return classifier_pb2_grpc.ClassifierServiceStub(self.channel)

    @property
    def health(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(self.channel)

    async def classify(self, *first_pixels: int, **fields) -> pb.ClassifyResponse:
        """Asks for one row for each value."""
        return await self.stub.Classify(pb.ClassifyRequest(bitmaps=drawings(*first_pixels).tobytes(), **fields))

    async def refusal(self, *first_pixels: int, **fields) -> grpc.aio.AioRpcError:
        """The error that such a request ends with."""
        try:
            await self.classify(*first_pixels, **fields)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("it was answered")

    async def is_serving(self, service: str = "") -> bool:
        """What health says."""
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def values(self) -> dict[str, float]:
        """All metrics as Prometheus would write them, without the labels that all have."""
        return {
            sample.name + "".join(f" {sample.labels[key]}" for key in sorted(sample.labels) if key not in COMMON): (
                sample.value
            )
            for metric in self.metrics.collect()
            for sample in metric.samples
        }


COMMON = ("worker", "version")


@asynccontextmanager
async def serving(
    limits: BatchLimits | None = None, *, buckets: tuple[int, ...] = (), ask_every_s: float = 0.1, **fakes: FakeModel
) -> AsyncIterator[InProcess]:
    """Serves `fakes` under their names."""
    models = ModelRegistry(
        ServedModel(
            name=name,
            version="1",
            artifact=ARTIFACT,
            provider="CPU",
            batcher=Batcher(fake.predict, limits or BatchLimits()),
            buckets=buckets,
        )
        for name, fake in fakes.items()
    )
    server = CoreServer()
    health = HealthServicer([SERVICE])
    server.add_generic_rpc_handlers([ClassifierServicer(models, max_request_rows=100).handlers()])
    server.add_generic_rpc_handlers([wire.handlers(InferenceServicer(models, max_request_rows=100))])
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with capture_logs() as log, models.thread_pool(server):
        await health.serve()
        following = asyncio.create_task(monitor_health(models, health, ask_every_s=ask_every_s))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield InProcess(channel, models, ServiceMetrics(models, server, health, worker=1), log)
        for fake in fakes.values():
            fake.release.set()
        following.cancel()
        await health.drain()
        await server.stop(5)
