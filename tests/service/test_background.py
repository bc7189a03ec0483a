"""Test that an unexpected exception ends no background thread or task: it is logged and counted, and work continues."""

import asyncio
import errno
import http.client
import multiprocessing
import socket
import threading
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import grpc
import pytest
from fakes import FakeModel, drawings, first_pixels, running
from gates import Clock
from grpc_health.v1 import health_pb2, health_pb2_grpc
from in_process import ARTIFACT, serving, until
from onnx_models import write_model
from sketchbatch_service import background
from sketchbatch_service.address import HostPort
from sketchbatch_service.api.classifier.servicer import ClassifierServicer
from sketchbatch_service.api.health import HealthServicer
from sketchbatch_service.api.health_monitor import monitor_health
from sketchbatch_service.app import first_model
from sketchbatch_service.app.first_model import wait_for_models
from sketchbatch_service.app.probe_port import ProbePort
from sketchbatch_service.app.signals import Stop
from sketchbatch_service.app.worker import Worker
from sketchbatch_service.background import FAILING_ERRORS, Component, ComponentName
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.batching.statistics import ModelStatistics
from sketchbatch_service.engines.score_kind import ScoreKind
from sketchbatch_service.errors import InferenceFailed
from sketchbatch_service.models.loader import LoadOptions, load_models
from sketchbatch_service.models.registry import ModelRegistry, ServedModel
from sketchbatch_service.models.watcher import ModelWatcher
from sketchbatch_service.telemetry.exposition import MetricsPort
from sketchbatch_service.transport.core_server import CoreServer
from sketchbatch_service.transport.file_reloader import FileReloader
from structlog.testing import capture_logs
from transport_server import call_to, run_server

ERRORS = 3  # consecutive errors after which a component counts as failing
OPTIONS = LoadOptions(provider="cpu", threads=1)


class Fault:
    """Makes the first `ERRORS` calls of a function raise an exception that no code expects."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception = ZeroDivisionError("injected")

    def into(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return the function with the fault."""

        def call(*args: object, **options: object) -> object:
            self.calls += 1
            if self.calls <= ERRORS:
                raise self.error
            return function(*args, **options)

        return call

    def has_passed(self) -> bool:
        """Return whether the function was called after the last exception."""
        return self.calls > ERRORS


Scenario = Callable[[Fault, pytest.MonkeyPatch, Path], Awaitable[None]]


class Source:
    """A source of requests that submits one drawing in each poll, until it has submitted `drawing_count`."""

    def __init__(self, batcher: Batcher, drawing_count: int) -> None:
        self.futures: list = []
        self._batcher, self._drawing_count = batcher, drawing_count
        self._is_closed = threading.Event()

    def poll(self, *, blocks: bool) -> bool:
        if len(self.futures) < self._drawing_count:
            self.futures.append(self._batcher.submit(drawings(len(self.futures))))
        elif blocks:
            self._is_closed.wait()
        return not self._is_closed.is_set()

    def close(self) -> None:
        self._is_closed.set()


async def thread_pool(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Each request of a batch whose thread fails receives an error; the next batches run."""
    patch.setattr(ModelStatistics, "add_call", fault.into(ModelStatistics.add_call))
    with running(Batcher(FakeModel().predict, BatchLimits())) as batcher:
        for _ in range(ERRORS):
            with pytest.raises(InferenceFailed):
                batcher.submit(drawings(1)).result(5)
        assert first_pixels(batcher.submit(drawings(7))) == [7]


async def thread_pool_without_batch(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Queued rows run after their batcher has failed to form a batch."""
    patch.setattr(Batcher, "take", fault.into(Batcher.take))
    with running(Batcher(FakeModel().predict, BatchLimits())) as batcher:
        assert first_pixels(batcher.submit(drawings(7))) == [7]


async def leader(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Requests are received after failed polls, and the pool can be closed."""
    batcher = Batcher(FakeModel().predict, BatchLimits())
    source = Source(batcher, 2)
    patch.setattr(source, "poll", fault.into(source.poll))
    with LeaderFollowerPool([batcher], slots=1, source=source):
        await until(lambda: len(source.futures) == 2)
        assert [first_pixels(future) for future in source.futures] == [[0], [1]]


async def model_watcher(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A model file is found after failed scans."""
    models = load_models(write_model(folder / "tiny.onnx"), OPTIONS)
    patch.setattr(ModelWatcher, "scan", fault.into(ModelWatcher.scan))
    with models.thread_pool() as pool, ModelWatcher(folder / "tiny.onnx", OPTIONS, models, pool, every_s=0.001):
        await until(fault.has_passed)


async def first_models(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The first model is found after failed scans."""
    patch.setattr(first_model.ModelArrival, "scan", fault.into(first_model.ModelArrival.scan))
    with Stop(ends_process=False) as stop:
        models = await wait_for_models(write_model(folder / "tiny.onnx"), OPTIONS, stop, every_s=0.001)
    assert models is not None


async def credential_reloader(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A changed file is read again after a delay, although it does not change again."""
    (folder / "file").write_text("one")
    clock = Clock()
    reloader = FileReloader([folder / "file"], lambda: (folder / "file").read_text(), clock=clock)
    patch.setattr(reloader, "_read", fault.into(reloader._read))
    (folder / "file").write_text("second")
    for _ in range(ERRORS):
        assert (reloader.reload_if_changed(), reloader.content) == (None, "one")
        assert reloader.reload_if_changed() is None  # before the delay has passed, the file is not read
        clock.advance(60)
    assert (reloader.reload_if_changed(), reloader.content) == ("second", "second")


async def health_monitor(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Health is NOT_SERVING after three errors of the monitor, and SERVING again when the monitor works."""
    health = HealthServicer([])
    changes = []
    serve, fail = health.serve, health.fail
    patch.setattr(health, "serve", fault.into(lambda: changes.append("serve") or serve()))
    patch.setattr(health, "fail", lambda: changes.append("fail") or fail())
    monitor = asyncio.create_task(monitor_health(ModelRegistry([served_model()]), health))
    await until(lambda: health.is_serving)
    monitor.cancel()
    assert changes == ["fail", "serve"]


async def metrics_port(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A scrape whose metrics cannot be collected receives status 500; the next scrape receives them."""
    with MetricsPort("127.0.0.1:0", fault.into(list)) as port:
        statuses = [await asyncio.to_thread(scrape, port.address) for _ in range(ERRORS + 1)]
    assert statuses == [500] * ERRORS + [200]


async def metrics_port_without_descriptors(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A scrape that waits for a file descriptor of the service is answered when there is one."""
    fault.error = OSError(errno.EMFILE, "Too many open files")
    patch.setattr(WSGIServer, "get_request", fault.into(WSGIServer.get_request))
    with MetricsPort("127.0.0.1:0", list) as port:
        assert await asyncio.to_thread(scrape, port.address) == 200


async def metrics_port_without_threads(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """If no thread can be started for a scrape, its connection is closed; the next scrape is answered."""
    fault.error = RuntimeError("can't start new thread")
    with MetricsPort("127.0.0.1:0", list) as port:
        patch.setattr(port._server, "process_request", fault.into(port._server.process_request))
        for _ in range(ERRORS):
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                await asyncio.to_thread(scrape, port.address)
        assert await asyncio.to_thread(scrape, port.address) == 200


async def probe_port(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A probe is answered after failed polls."""
    patch.setattr(CoreServer, "poll", fault.into(CoreServer.poll))
    health = HealthServicer([])
    async with (
        ProbePort(health, "127.0.0.1:0", "core", is_shared=False) as port,
        grpc.aio.insecure_channel(port.address) as channel,
    ):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def supervisor_pipe(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The supervisor receives metrics after requests that could not be answered."""
    supervisor, worker_end = multiprocessing.Pipe()
    with worker_end, Stop(ends_process=False) as stop:
        with closing(supervisor):
            Worker(supervisor=worker_end).answer_supervisor(fault.into(lambda: "metrics"), stop)
            for _ in range(ERRORS + 1):
                supervisor.send("metrics")
            assert await asyncio.to_thread(supervisor.recv) == "metrics"
        await stop.requested  # the worker stops with its supervisor


async def listener(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A server that has failed is replaced after failed attempts, and answers calls again."""
    async with run_server("aio") as (channel, _, server):
        patch.setattr(server, "_new_server", fault.into(server._new_server))
        [component] = server.components
        changes: list[bool] = []
        component.on_health = lambda: changes.append(component.is_failing)
        patch.setattr(server._server, "wait_for_termination", failing_server)
        await until(fault.has_passed)
        assert await call_to(channel, "Unary")(b"1", wait_for_ready=True) == b"1"
        await until(lambda: changes == [True, False])


async def rpc_handler(fault: Fault, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A call whose handler fails on the thread that polls receives INTERNAL; the next call is answered."""
    patch.setattr(ClassifierServicer, "Classify", fault.into(ClassifierServicer.Classify))
    async with serving(bear=FakeModel()) as service:
        codes = [(await service.rejection(1)).code() for _ in range(ERRORS)]
        await service.classify(1)
    assert codes == [grpc.StatusCode.INTERNAL] * ERRORS
    assert sum("exc_info" in event for event in service.log) == ERRORS


async def failing_server(timeout_s: float) -> bool:
    """Report that the server has failed, as grpcio does."""
    raise RuntimeError("the server failed")


def served_model() -> ServedModel:
    """Return a model that no thread pool runs."""
    batcher = Batcher(FakeModel().predict, BatchLimits())
    kind = ScoreKind.LOGITS
    return ServedModel(name="bear", version="1", artifact=ARTIFACT, provider="CPU", score_kind=kind, batcher=batcher)


def scrape(address: str) -> int:
    """Return the HTTP status of a scrape."""
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().status


@pytest.mark.parametrize(
    ("scenario", "name", "logged"),
    [
        (thread_pool, ComponentName.THREAD_POOL, ERRORS),
        (thread_pool_without_batch, ComponentName.THREAD_POOL, ERRORS),
        (leader, ComponentName.LEADER, ERRORS),
        (model_watcher, ComponentName.MODEL_WATCHER, ERRORS),
        (first_models, ComponentName.MODEL_WATCHER, ERRORS),
        (credential_reloader, ComponentName.CREDENTIALS, 1),  # an error of the same file is logged once
        (health_monitor, ComponentName.HEALTH_MONITOR, ERRORS),
        (metrics_port, ComponentName.METRICS_PORT, ERRORS),
        (metrics_port_without_descriptors, ComponentName.METRICS_PORT, ERRORS),
        (metrics_port_without_threads, ComponentName.METRICS_PORT, ERRORS),
        (probe_port, ComponentName.PROBE_PORT, ERRORS),
        (supervisor_pipe, ComponentName.SUPERVISOR_PIPE, ERRORS),
        (listener, ComponentName.LISTENER, ERRORS),
        (rpc_handler, ComponentName.RPC_HANDLER, 0),  # `serving` captures the log itself
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
async def test_a_component_works_after_unexpected_exceptions(
    monkeypatch, tmp_path, scenario: Scenario, name: ComponentName, logged: int
):
    """Each unexpected exception is logged with its traceback and counted, and the component continues to work."""
    fault, before = Fault(), background.errors()[name]
    with capture_logs() as log:
        await scenario(fault, monkeypatch, tmp_path)
    assert fault.has_passed()
    assert background.errors()[name] == before + ERRORS
    with_traceback = [event for event in log if event.get("exc_info") and event["log_level"] == "error"]
    assert len(with_traceback) == logged


def test_delays_double_up_to_a_maximum_until_a_success():
    """The delay after an error doubles with each consecutive error up to its maximum; a success ends the series."""
    component = Component(ComponentName.OTHER, first_delay_s=0.5, max_delay_s=3)
    with capture_logs():
        delays = [component.record_error(ValueError()) for _ in range(2000)]
        component.record_success()
        assert component.record_error(ValueError()) == 0.5
    assert delays[:4] == [0.5, 1, 2, 3]
    assert set(delays[4:]) == {3}


async def test_a_failing_component_sets_health_to_not_serving_until_it_works():
    """Health is NOT_SERVING after three consecutive errors of a needed component, until its next success."""
    component, health = Component(ComponentName.OTHER), HealthServicer([])
    monitor = asyncio.create_task(monitor_health(ModelRegistry([served_model()]), health, needed=[component]))
    with capture_logs() as log:
        await until(lambda: health.is_serving)
        for _ in range(FAILING_ERRORS):
            assert health.is_serving
            component.record_error(ValueError())
        await until(lambda: not health.is_serving)
        component.record_success()
        await until(lambda: health.is_serving)
    monitor.cancel()
    assert [event["event"] for event in log if "failing" in event["event"]] == ["component failing, NOT_SERVING"]


async def test_the_thread_pool_is_needed_for_health():
    """A service whose thread pool fails three times in a row reports NOT_SERVING, until a batch runs."""
    async with serving(bear=FakeModel()) as service:
        for component in service.pool.components:
            for _ in range(FAILING_ERRORS):
                component.count_error()
        await until(lambda: service.values()["sketchbatch_serving"] == 0)
        await service.classify(1)
        await until(lambda: service.values()["sketchbatch_serving"] == 1)


async def test_errors_of_components_are_in_the_metrics():
    """The metrics have one counter for each component, also before its first error."""
    async with serving(bear=FakeModel()) as service:
        name = f"sketchbatch_background_errors_total {ComponentName.OTHER}"
        before = service.values()[name]
        background.count_error(ComponentName.OTHER)
        assert service.values()[name] == before + 1
        counted = {key for key in service.values() if key.startswith("sketchbatch_background_errors_total")}
    assert len(counted) == len(ComponentName)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "127.0.0.1:0", "localhost:0"])
def test_the_metrics_port_of_all_interfaces_includes_ipv6(address):
    """0.0.0.0 and [::] mean IPv4 and IPv6, as for the ports of gRPC; other addresses mean themselves."""
    with MetricsPort(address, list) as port:
        number = port.address.rpartition(":")[2]
        is_all = address.startswith(("0.0.0.0", "[::]")) and socket.has_dualstack_ipv6()
        for host in ["127.0.0.1", "[::1]"] if is_all else [HostPort.parse(port.address).loopback().host]:
            with urllib.request.urlopen(f"http://{host}:{number}/metrics") as response:
                assert response.status == 200
