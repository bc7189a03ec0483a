"""Runs the service: loads the models, listens, says SERVING, and drains when told to stop."""

import asyncio
from dataclasses import asdict
from typing import Any

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from sketchbatch.v1 import classifier_pb2, classifier_pb2_grpc

from .arrays import ROW_BYTES
from .cuda import CudaOptions
from .engine import available_cpus
from .errors import AddressUnusable, ExtraMissing
from .exposition import MetricsPort
from .grpc_server import GrpcServer
from .health import SERVICE as HEALTH
from .health import HealthServicer
from .metrics import ServiceMetrics
from .models import LoadOptions, Models, load_models
from .openinference import wire
from .openinference.servicer import InferenceServicer
from .selfcheck import follow_models
from .servicer import ClassifierServicer
from .settings import Settings
from .signals import ignore_late_ones, stop_signal
from .worker import Worker

log = structlog.get_logger()

SERVICE = classifier_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name


async def serve(settings: Settings, worker: Worker = Worker()) -> None:  # noqa: B008 - frozen
    """Serves until SIGTERM or SIGINT, then finishes what was accepted and returns.

    Raises:
        StartError: A model, the provider or the address cannot be had.
    """
    log.info("starting", **asdict(settings) | {"model": str(settings.model)})
    stop = stop_signal()  # also one that comes while the models load
    worker.stop_without_parent(stop)
    models = load_models(settings.model, _load_options(settings, worker))
    servicer = _classifier_servicer(settings, models, worker)
    inference = InferenceServicer(models, max_request_rows=settings.max_request_rows)
    health = HealthServicer([SERVICE, wire.SERVICE])
    # Any: the generated functions know grpc's own servers only.
    server: Any = GrpcServer(_channel_options(settings, worker))
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers([wire.handlers(inference)])
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_reflection(), server)
    address = _listen(server, settings.address)
    metrics = ServiceMetrics(models, server, health, worker=worker.number)
    worker.answer_parent(metrics.collect, stop)
    port = MetricsPort("" if worker.parent else settings.metrics_address, metrics.collect)
    port.start()
    await server.start()
    with models.crew(server):
        await health.serve()
        served = [f"{m.name}/{m.version} on {m.provider}" for m in models]
        worker.report(served)
        ready = "SERVING" if worker.count == 1 else "worker ready"
        log.info(ready, address=address, metrics_address=port.address, models=served)
        following = asyncio.create_task(follow_models(models, health))

        log.info("draining", signal=(await stop).name, drain_s=settings.drain_s)
        following.cancel()
        await health.drain()  # NOT_SERVING first: balancers move away
        servicer.drain()
        inference.drain()
        await server.stop(settings.drain_s)
    ignore_late_ones()
    log.info("stopped")


def _load_options(settings: Settings, worker: Worker) -> LoadOptions:
    return LoadOptions(
        provider=settings.provider,  # type: ignore[arg-type]  # click.Choice holds it to the three words
        cuda=CudaOptions(device=worker.number - 1, graphs=settings.cuda_graphs, tf32=settings.cuda_tf32),  # type: ignore[arg-type]  # as above
        threads=settings.threads or max(1, available_cpus() // worker.count),
        default_model=settings.default_model,
        max_batch_rows=settings.max_batch_rows,
        max_queued_rows=settings.max_queued_rows,
    )


def _classifier_servicer(settings: Settings, models: Models, worker: Worker) -> ClassifierServicer:
    if not settings.otlp_endpoint:
        return ClassifierServicer(models, worker, max_request_rows=settings.max_request_rows)
    try:
        from .traces import TracedServicer
    except ImportError as exc:
        raise ExtraMissing(f"--otlp-endpoint needs sketchbatch-service[traces]: {exc}") from exc
    return TracedServicer(models, worker, max_request_rows=settings.max_request_rows).trace(settings.otlp_endpoint)


def _channel_options(settings: Settings, worker: Worker) -> list[tuple[str, int]]:
    return [
        # Twice the rows allowed, so that a request a little too large hears our own error, which says the limit;
        # beyond that gRPC refuses unread, with RESOURCE_EXHAUSTED.
        ("grpc.max_receive_message_length", 2 * settings.max_request_rows * ROW_BYTES + 65536),
        ("grpc.so_reuseport", int(worker.count > 1)),  # a second service on our port must fail, not share it
        # Clients may ping every 10 s, also between calls, without being cut off.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _reflection() -> Any:
    """Answers reflection for every service, the Open Inference Protocol under its own name."""
    pool = wire.reflection_pool(classifier_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    return reflection.aio.ReflectionServicer((SERVICE, wire.SERVICE, HEALTH, reflection.SERVICE_NAME), pool)


def _listen(server: GrpcServer, address: str) -> str:
    """Binds the port and returns the address with the port taken."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as exc:
        raise AddressUnusable(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's"
        ) from exc
    return f"{address.rpartition(':')[0]}:{port}"
