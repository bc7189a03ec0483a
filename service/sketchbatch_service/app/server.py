"""Runs the service: loads the models, listens, says SERVING, and drains when told to stop."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from sketchbatch.v1 import classifier_pb2

from ..api.classifier.servicer import SERVICE, ClassifierServicer
from ..api.health import SERVICE as HEALTH
from ..api.health import HealthServicer
from ..api.health_monitor import monitor_health
from ..api.openinference import wire
from ..api.openinference.servicer import InferenceServicer
from ..arrays import ROW_BYTES
from ..engines.cpu import available_cpus
from ..engines.cuda import CudaOptions
from ..errors import AddressUnusable, ExtraMissing
from ..models.loader import LoadOptions, load_models
from ..models.registry import ModelRegistry
from ..models.watcher import ModelWatcher
from ..settings import Settings
from ..telemetry.exposition import MetricsPort
from ..telemetry.metrics import ServiceMetrics
from ..transport.core_server import CoreServer
from ..transport.interface import Authenticator
from ..transport.tls import TlsFiles, server_credentials
from ..transport.tokens import TokenFile
from .probe_port import ProbePort
from .signals import Stop, ignore_late_ones
from .worker import Worker

log = structlog.get_logger()

LATE_S = 5.0
"""How long after `lame_duck_s` and `drain_s` the process ends, whatever it is at."""

_WINDOW_BYTES = 4 << 20
"""What a stream may send ahead of our reading it. gRPC's own guess, from how fast and far away a client seems, went to
60 MB for each on a busy machine: docs/decisions/0023."""


async def serve(settings: Settings, worker: Worker = Worker()) -> None:  # noqa: B008 - frozen
    """Serves until SIGTERM or SIGINT, then finishes what was accepted and returns.

    Raises:
        StartError: A model, the provider, an address, certificate or token cannot be had.
    """
    log.info("starting", **{k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()})
    stop = Stop()  # also by a signal that comes while the models load
    worker.stop_without_parent(stop)
    options = _load_options(settings, worker)
    models = load_models(settings.model, options)
    servicer = _classifier_servicer(settings, models, worker)
    inference = InferenceServicer(models, max_request_rows=settings.max_request_rows)
    health = HealthServicer([SERVICE.full_name, wire.SERVICE])
    # Any: the generated functions know grpc's own servers only.
    server: Any = CoreServer(_channel_options(settings, worker), _authenticator(settings))
    server.add_generic_rpc_handlers([servicer.handlers()])
    server.add_generic_rpc_handlers([wire.handlers(inference)])
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_reflection(), server)
    address = _listen(server, settings)
    probes = ProbePort(health, settings.probe_address, is_shared=worker.count > 1)
    metrics = ServiceMetrics(models, server, health, worker=worker.number)
    worker.answer_parent(metrics.collect, stop)
    port = MetricsPort("" if worker.parent else settings.metrics_address, metrics.collect)
    port.start()
    await server.start()
    await probes.start()
    with (
        models.thread_pool(server) as crew,
        ModelWatcher(settings.model, options, models, crew, every_s=settings.watch_models_s) as watch,
    ):
        await health.serve()
        served = [f"{m.name}/{m.version} on {m.provider}" for m in models]
        worker.report(served)
        ready = "SERVING" if worker.count == 1 else "worker ready"
        log.info(ready, address=address, probe_address=probes.address, metrics_address=port.address, models=served)
        following = asyncio.create_task(monitor_health(models, health))

        await _leave(settings, stop, health)
        watch.stop()
        following.cancel()
        log.info("draining", drain_s=settings.drain_s)
        await health.drain()
        servicer.drain()
        inference.drain()
        await server.stop(settings.drain_s, stop.hurried)
        inference.close()
        await probes.stop()  # until then they hear NOT_SERVING
    ignore_late_ones()
    log.info("stopped", was_hurried=stop.hurried.done())


async def _leave(settings: Settings, stop: Stop, health: HealthServicer) -> None:
    """Once asked to stop: NOT_SERVING first, and calls are taken until balancers and clients have moved away."""
    asked = await stop.asked
    lame_duck_s = settings.lame_duck_s if asked is signal.SIGTERM else 0.0  # a person at the keyboard waits for us
    threading.Thread(target=_end_late, args=(lame_duck_s + settings.drain_s + LATE_S,), daemon=True).start()
    log.info("leaving", signal=asked.name, lame_duck_s=lame_duck_s)
    await health.leave()
    await stop.hurried_within(lame_duck_s)


def _end_late(limit_s: float) -> None:
    """Ends a process that cannot end by itself: a model call that never returns holds a thread of ours."""
    time.sleep(limit_s)
    log.error("a model call does not end: leaving without it")
    os._exit(1)


def _load_options(settings: Settings, worker: Worker) -> LoadOptions:
    cpus = available_cpus()
    threads = settings.threads or max(1, cpus // worker.count)
    return LoadOptions(
        provider=settings.provider,  # type: ignore[arg-type]  # click.Choice holds it to the three words
        cuda=CudaOptions(device=worker.number - 1, graphs=settings.cuda_graphs, tf32=settings.cuda_tf32),  # type: ignore[arg-type]  # as above
        threads=threads,
        has_spare_cpus=threads * worker.count < cpus,
        default_model=settings.default_model,
        max_batch_rows=settings.max_batch_rows,
        max_queued_rows=settings.max_queued_rows,
    )


def _classifier_servicer(settings: Settings, models: ModelRegistry, worker: Worker) -> ClassifierServicer:
    options = {"max_request_rows": settings.max_request_rows, "worker": worker.number, "workers": worker.count}
    if not settings.otlp_endpoint:
        return ClassifierServicer(models, **options)
    try:
        from ..telemetry.traces import TracedServicer
    except ImportError as exc:
        raise ExtraMissing(f"--otlp-endpoint needs sketchbatch-service[traces]: {exc}") from exc
    return TracedServicer(models, **options).trace(settings.otlp_endpoint)


def _channel_options(settings: Settings, worker: Worker) -> list[tuple[str, int]]:
    options = [
        # Twice the rows allowed, so that a request a little too large hears our own error, which says the limit;
        # beyond that gRPC refuses unread, with RESOURCE_EXHAUSTED.
        ("grpc.max_receive_message_length", 2 * settings.max_request_rows * ROW_BYTES + 65536),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.so_reuseport", int(worker.count > 1)),  # a second service on our port must fail, not share it
        # Clients may ping every 10 s, also between calls, without being cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client that is gone without a word is let go of after 50 s (gRPC's own: 2 hours). Of those whose connection
        # is cut in the middle of a message, one in ten thousand is not seen to go, and is found by this ping.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.server_handshake_timeout_ms", 20_000),  # somebody who connects and says nothing holds no place
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
    ]
    if settings.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", max(1, round(settings.max_connection_age_s * 1000))))
    return options


def _authenticator(settings: Settings) -> Authenticator | None:
    """Health alone needs no token: whoever balances or restarts the service holds none."""
    if not settings.token_file:
        return None
    if not settings.tls_cert:
        log.warning("tokens travel in plain text: --tls-cert is not set")
    methods = health_pb2.DESCRIPTOR.services_by_name["Health"].methods
    return TokenFile(settings.token_file, frozenset(f"/{HEALTH}/{m.name}".encode() for m in methods)).rejection_reason


def _reflection() -> Any:
    """Answers reflection for every service, the Open Inference Protocol under its own name."""
    pool = wire.reflection_pool(classifier_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    return reflection.aio.ReflectionServicer((SERVICE.full_name, wire.SERVICE, HEALTH, reflection.SERVICE_NAME), pool)


def _listen(server: CoreServer, settings: Settings) -> str:
    """Binds the port, with TLS where that is set, and returns the address with the port taken."""
    address = settings.address
    tls = _tls_files(settings)
    credentials = server_credentials(tls) if tls else None
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as exc:
        raise AddressUnusable(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's"
        ) from exc
    return f"{address.rpartition(':')[0]}:{port}"


def _tls_files(settings: Settings) -> TlsFiles | None:
    if not settings.tls_cert or not settings.tls_key:
        return None
    return TlsFiles(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
