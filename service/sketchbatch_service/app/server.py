"""Run the service: load the models, listen, report SERVING, and drain on a signal."""

import asyncio
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
from ..background import ComponentName, count_error
from ..engines.cpu import available_cpus
from ..engines.cuda import CudaOptions
from ..errors import ExtraMissing
from ..models.loader import LoadOptions, load_models
from ..models.registry import ModelRegistry, ServedModel
from ..models.watcher import ModelWatcher
from ..settings import SHIPPED_MODELS, Settings
from ..telemetry.exposition import MetricsPort
from ..telemetry.limits import LimitMonitor, fitting_connections
from ..telemetry.metrics import ServiceMetrics
from ..transport import selection
from ..transport.interface import Server
from ..transport.tls import ServerTls, TlsFiles
from ..transport.tokens import TokenFile
from ..version_policy import VersionPolicy
from . import lame_duck
from .first_model import wait_for_models
from .probe_port import ProbePort
from .signals import Stop
from .worker import Worker

log = structlog.get_logger()

LATE_S = 5.0  # seconds after `lame_duck_s` and `drain_s` after which the process exits, even during a model call

_WINDOW_BYTES = 4 << 20
"""Bytes that a stream may send before the service reads them. gRPC's own estimate grew to 60 MB per stream on a busy
machine: docs/decisions/0023."""

_PENDING_CALLS = 1 << 20  # in practice no limit: --max-connections and --max-calls-per-connection limit the calls


async def serve(
    settings: Settings,
    worker: Worker = Worker(),  # noqa: B008 - frozen
    *,
    ends_process: bool = False,
    late_s: float = LATE_S,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests; raise StartError if the start fails.

    A program may await this on the event loop of its main thread, and cancel it. At the end, the program has its signal
    handlers back, and no ports or threads of the service. With `ends_process`, the process ends after this call:
    signals are ignored from then on, and the process exits with code 1 if a thread keeps it alive.

    If a model call has not ended `late_s` seconds after `lame_duck_s` and `drain_s`, this call cannot end either, and
    the process exits with code 1.
    """
    log.info("starting", **{k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()})
    with Stop(ends_process=ends_process) as stop:  # first, to handle signals that arrive while the models load
        worker.stop_without_supervisor(stop)
        late_exit = _LateExit(late_s)
        try:
            with _unhandled_errors_counted():
                await _serve(settings, worker, stop, late_exit)
        finally:
            if not ends_process:
                late_exit.cancel()
    log.info("stopped", was_hurried=stop.forced.done())


async def _serve(settings: Settings, worker: Worker, stop: Stop, late_exit: "_LateExit") -> None:
    transport = selection.choose(settings.transport, warns=worker.number == 1)
    health = HealthServicer([SERVICE.full_name, wire.SERVICE])
    metrics = ServiceMetrics(health, worker=worker.number)
    options = _load_options(settings, worker)
    # The metrics port and the probe port end last: the last scrape includes the counts of the drain, and probes receive
    # NOT_SERVING during it.
    with MetricsPort("" if worker.supervisor else settings.metrics_address, metrics.collect) as metrics_port:
        async with ProbePort(health, settings.probe_address, transport, is_shared=worker.count > 1) as probes:
            ports = {"probe_address": probes.address, "metrics_address": metrics_port.address}
            models = await _load(settings, options, stop, ports)
            if models is None:
                return
            if settings.model == SHIPPED_MODELS and worker.number == 1:
                _announce_default(next(iter(models)))
            servicer = _classifier_servicer(settings, models, worker)
            inference = InferenceServicer(models, max_request_rows=settings.max_request_rows)
            tls, tokens = _tls(settings), _token_file(settings)
            # Any, because the types of the generated functions accept only grpc's own servers.
            max_connections = fitting_connections(settings.max_connections)
            server: Any = selection.create_server(
                transport,
                _channel_options(settings, worker, max_connections),
                tokens.rejection_reason if tokens else None,
                max_receive_s=settings.max_receive_s or math.inf,
            )
            server.add_generic_rpc_handlers([servicer.handlers()])
            server.add_generic_rpc_handlers([wire.handlers(inference)])
            health_pb2_grpc.add_HealthServicer_to_server(health, server)
            if settings.reflection:
                reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_reflection(), server)
            address = server.listen(settings.address, tls.credentials if tls else None)
            lame_duck.warn_if_too_short(settings.lame_duck_s, settings.max_connection_age_s)
            metrics.include(models, server, max_connections=max_connections)
            metrics.include_credentials(tls, tokens)
            worker.answer_supervisor(metrics.collect, stop)
            await server.start()
            with (
                models.thread_pool(server.source) as threads,
                ModelWatcher(settings.model, options, models, threads, every_s=settings.watch_models_s) as watcher,
            ):
                await health.serve()
                served = [f"{m.name}/{m.version} on {m.provider}" for m in models]
                worker.report(served)
                event = "SERVING" if worker.count == 1 else "worker ready"
                used = {"cpus": available_cpus(), "slots": max(model.batcher.limits.slots for model in models)}
                log.info(
                    event,
                    address=address,
                    **ports,
                    transport=transport,
                    models=served,
                    default_model=models.default_model,
                    **used,
                )
                needed = [*threads.components, *server.components]
                monitor = asyncio.create_task(monitor_health(models, health, needed=needed))
                limits = asyncio.create_task(LimitMonitor(server.connections, max_connections).run())

                try:
                    await _lame_duck(settings, stop, health, server, late_exit)
                finally:  # also if the program that embeds the service cancels this call
                    watcher.stop()
                    monitor.cancel()
                    limits.cancel()
                    log.info("draining", drain_s=settings.drain_s)
                    await health.drain()
                    servicer.drain()
                    inference.drain()
                    await server.stop(settings.drain_s, stop.forced)
                    inference.close()


def _announce_default(model: ServedModel) -> None:
    log.info(
        "no --model given, the default model is served",
        model=model.name,
        version=model.version,
        labels=model.artifact.labels,
    )


@contextmanager
def _unhandled_errors_counted() -> Iterator[None]:
    """Log and count the exceptions that no task or callback of the event loop handles."""
    loop = asyncio.get_running_loop()
    previous = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        count_error(ComponentName.OTHER)
        log.error("unhandled exception in the event loop", cause=context["message"], exc_info=context.get("exception"))

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(previous)


async def _load(settings: Settings, options: LoadOptions, stop: Stop, ports: dict[str, str]) -> ModelRegistry | None:
    """Load the models, and wait for the first one if the settings allow it; return None after a stop signal."""
    if not settings.wait_for_model:
        return load_models(settings.model, options)
    every_s = settings.watch_models_s or 1.0
    return await wait_for_models(settings.model, options, stop, every_s=every_s, **ports)


async def _lame_duck(
    settings: Settings, stop: Stop, health: HealthServicer, server: Server, late_exit: "_LateExit"
) -> None:
    """Wait for a stop signal; then answer calls until the clients have found other replicas, as in `lame_duck`."""
    number = await stop.requested
    lame_duck_s = settings.lame_duck_s if number is signal.SIGTERM else 0.0  # after Ctrl-C a person waits for the end
    late_exit.start(lame_duck_s + settings.drain_s)
    log.info("stopping", signal=number.name, lame_duck_s=lame_duck_s)
    health.enter_lame_duck()
    admission_s = lame_duck.admission_s(lame_duck_s, settings.max_connection_age_s)
    if admission_s is None:
        await health.leave()
        await stop.forced_within(lame_duck_s)
        return
    await stop.forced_within(admission_s)
    log.info("leaving", connections_end_within_s=lame_duck_s - admission_s)
    await health.leave()
    server.stop_listening()
    await stop.forced_within(lame_duck_s - admission_s)


class _LateExit:
    """End the process if the stop takes too long: a model call that never returns would keep the process alive."""

    def __init__(self, late_s: float) -> None:
        self._late_s = late_s
        self._is_cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, stop_s: float) -> None:
        """End the process `late_s` seconds after a stop that may take `stop_s`, unless `cancel` is called before."""
        self._thread = threading.Thread(target=self._exit_after, args=(stop_s + self._late_s,), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Let the process continue."""
        self._is_cancelled.set()
        if self._thread:
            self._thread.join()

    def _exit_after(self, limit_s: float) -> None:
        if not self._is_cancelled.wait(limit_s):
            log.error("model call did not end, exiting without it")
            os._exit(1)


def _load_options(settings: Settings, worker: Worker) -> LoadOptions:
    cpus = available_cpus()
    threads = settings.threads or max(1, cpus // worker.count)
    return LoadOptions(
        versions=VersionPolicy.parse(settings.versions),
        allows_label_changes=settings.allow_label_changes,
        allows_unstable_scores=settings.allow_unstable_scores,
        provider=settings.provider,
        cuda=CudaOptions(device=worker.number - 1, graphs=settings.cuda_graphs, tf32=settings.cuda_tf32),
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


def _channel_options(settings: Settings, worker: Worker, max_connections: int) -> list[tuple[str, int]]:
    options = [
        # Twice the maximum request: a request that is slightly too large then receives the service's own error, which
        # states the limit. gRPC rejects larger ones unread with RESOURCE_EXHAUSTED.
        ("grpc.max_receive_message_length", 2 * settings.max_request_rows * ROW_BYTES + 65536),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.so_reuseport", int(worker.count > 1)),  # a second service on the port must fail, not share it
        # Clients may ping every 10 s, also between calls, without being disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A ping detects that a client has vanished; by default, gRPC sends the first one after 2 hours. Without pings,
        # the C core does not notice one in ten thousand connections that break in the middle of a message.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # by default, gRPC waits a minute for the answer to a ping
        ("grpc.server_handshake_timeout_ms", 20_000),  # for clients that connect and send nothing
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        # By default, gRPC cancels random calls of a burst of more than 1,000 calls, and no client retries CANCELLED.
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
        ("grpc.enable_channelz", 0),  # channelz would count the calls of each connection, and no code reads this
    ]
    if settings.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", max(1, round(settings.max_connection_age_s * 1000))))
    return options


def _token_file(settings: Settings) -> TokenFile | None:
    """Return the accepted tokens; health needs none, because load balancers and orchestrators have no token."""
    if not settings.token_file:
        return None
    if not settings.tls_cert:
        log.warning("tokens travel in plain text: --tls-cert is not set")
    methods = health_pb2.DESCRIPTOR.services_by_name["Health"].methods
    return TokenFile(settings.token_file, frozenset(f"/{HEALTH}/{m.name}".encode() for m in methods))


def _reflection() -> Any:
    """Return the reflection servicer of all services; `wire` renames the package of the Open Inference Protocol."""
    pool = wire.reflection_pool(classifier_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    return reflection.aio.ReflectionServicer((SERVICE.full_name, wire.SERVICE, HEALTH, reflection.SERVICE_NAME), pool)


def _tls(settings: Settings) -> ServerTls | None:
    if not settings.tls_cert or not settings.tls_key:
        return None
    return ServerTls(TlsFiles(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca))
