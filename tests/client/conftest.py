"""Provide small real gRPC servers whose responses a test controls, and fixtures that several tests use."""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from demo_process import Demo
from finished import Finished
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from onnx_models import LABELS, write_model
from signal_handlers import signal_handlers_kept
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client.cli import main

REJECTED = 255


class ScriptedServicer(classifier_pb2_grpc.ClassifierServiceServicer):
    """Score each drawing by its first pixel, which identifies the drawing; a test decides which requests fail or wait.

    - After `hold`, requests wait for `release` before they receive a response.
    - A request with a drawing whose first pixel is 255 is rejected.
    - The next `pushbacks` requests receive RESOURCE_EXHAUSTED with a pushback of `pushback_ms`.
    - Every other request removes the first entry of the list `unavailable`, if there is one. If the entry is True, the
      request receives UNAVAILABLE.
    """

    def __init__(self, *, worker: int = 1, workers: int = 1) -> None:
        self.server: grpc.Server | None = None  # the latest server that was started with this servicer
        self.requests: list[list[int]] = []  # the first pixel of each row, by request
        self.responses = 0
        self.peers: set[str] = set()
        self.unavailable: list[bool] = []
        self.pushbacks = 0
        self.pushback_ms = 0
        self._worker, self._workers = worker, workers
        self._held_from: float = math.inf  # a request is held if its first pixel has this value or a higher value
        self._changed = threading.Condition()

    def hold(self) -> None:
        """Hold all later requests until `release`."""
        self._held_from = 0

    def release(self, *, below: float = math.inf) -> None:
        """Answer all held and later requests; with `below`, only requests whose first pixel is less than `below`."""
        with self._changed:
            self._held_from = below
            self._changed.notify_all()

    def wait_for_rows(self, rows: int) -> None:
        """Wait until `rows` rows have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(map(len, self.requests)) >= rows, 15)

    def Classify(self, request, context):  # noqa: N802
        pixels = np.frombuffer(request.bitmaps, np.uint8).reshape(-1, 784)[:, 0]
        with self._changed:
            is_full, self.pushbacks = self.pushbacks > 0, max(0, self.pushbacks - 1)
            if is_full:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self.pushback_ms)),))
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            if self.unavailable and self.unavailable.pop(0):
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.requests.append(pixels.tolist())
            self.peers.add(context.peer())
            self._changed.notify_all()
            # the wait needs no time limit, because the fixture `start_server` releases all requests at its end
            self._changed.wait_for(lambda: pixels[0] < self._held_from)
            self.responses += 1
        if REJECTED in pixels:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "rejected drawing")
        scores = np.stack([pixels / 256, 1 - pixels / 256], axis=1).astype("<f4")
        return pb.ClassifyResponse(model_name="m", model_version="1", rows=len(pixels), scores=scores.tobytes())

    def GetModel(self, request, context):  # noqa: N802
        counts = {"workers": self._workers, "worker": self._worker}
        return pb.GetModelResponse(
            model=pb.Model(name="m", version="1", labels=["a", "b"], max_request_rows=100, **counts)
        )

    def ListModels(self, request, context):  # noqa: N802
        return pb.ListModelsResponse(models=[self.GetModel(pb.GetModelRequest(), context).model])


@pytest.fixture
def start_server() -> Iterator[Callable[..., str]]:
    """Return a function that starts a server of a `ScriptedServicer`, by default on a free port.

    The function returns the address of the server.
    """
    started: list[tuple[grpc.Server, ScriptedServicer]] = []

    def start(servicer: ScriptedServicer, address: str = "127.0.0.1:0", health: HealthServicer | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 1)])
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
        if health:
            health_pb2_grpc.add_HealthServicer_to_server(health, server)
        port = server.add_insecure_port(address)
        server.start()
        servicer.server = server
        started.append((server, servicer))
        return f"127.0.0.1:{port}"

    yield start
    for server, servicer in started:
        servicer.release()
        server.stop(None).wait()


@pytest.fixture
def servicer() -> ScriptedServicer:
    """Return a servicer; the test must start a server for it with `start_server`."""
    return ScriptedServicer()


@pytest.fixture
def drawing() -> Callable[[int], np.ndarray]:
    """Return a function that makes a drawing with the given value of the first pixel, which identifies the drawing."""

    def draw(pixel: int) -> np.ndarray:
        bitmap = np.zeros((28, 28), np.uint8)
        bitmap[0, 0] = pixel
        return bitmap

    return draw


@pytest.fixture
def workers() -> Callable[[int], list[ScriptedServicer]]:
    """Return a function that makes `count` servicers, which report that they are the workers of one service."""
    return lambda count: [ScriptedServicer(worker=number + 1, workers=count) for number in range(count)]


@pytest.fixture(scope="session")
def start_demo():
    """Return a function that starts a `sketchbatch demo` process; the processes are stopped after all tests."""
    started = []

    def start(*arguments, **options):
        started.append(Demo(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.terminate()
    for each in started:
        each.stop()


@pytest.fixture(scope="session")
def demo(start_demo, tiny_service):
    """Start one `sketchbatch demo` process that sends its requests to the tiny service."""
    return start_demo(tiny_service.address)


@pytest.fixture(scope="session")
def two_models(tmp_path_factory):
    """Write a repository of two models with different labels."""
    folder = tmp_path_factory.mktemp("two")
    for name, labels in (("insects", LABELS), ("shapes", ("arc", "box", "cup"))):
        write_model(folder / name / "1" / "model.onnx", labels=labels)
    return folder


@pytest.fixture
def sketchbatch(monkeypatch, capfd) -> Callable[..., Finished]:
    """Return a function that runs a `sketchbatch` command in this process.

    A new process would take a second to start.
    """

    def run(*words: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["sketchbatch", *map(str, words)])
        capfd.readouterr()
        with signal_handlers_kept(), pytest.raises(SystemExit) as ended:
            main()
        return Finished(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def inputs(tmp_path) -> Path:
    """Return an empty folder for the inputs of a job."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def append(sketchbatch, tiny_service, inputs):
    """Return a function that runs `score --append` for the folder `inputs`."""
    return lambda output, *flags: sketchbatch(
        "score", inputs, "--output", output, "--append", "--server", tiny_service.address, *flags
    )
