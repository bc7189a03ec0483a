"""Test a service that starts before its first model is there."""

import json
import shutil
import subprocess

import grpc
import pytest
from conftest import BIN
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch_client import Client

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class WaitingService:
    """Run a `sketchbatch-serve` process that waits for its first model; health checks go to `probe_address`."""

    def __init__(self, path, transport: str, *flags: str) -> None:
        words = [BIN / "sketchbatch-serve", "--model", path, "--address", "127.0.0.1:0", "--lame-duck-s", "0"]
        words += ["--wait-for-model", "--watch-models-s", "0", "--probe-address", "127.0.0.1:0"]
        words += ["--transport", transport, *flags]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, pipesize=1 << 20, text=True)
        self.probe_address = self.wait_for("model awaited")["probe_address"]

    def next_event(self) -> dict:
        """Return the next event in the log."""
        return json.loads(self.process.stderr.readline())

    def wait_for(self, message: str) -> dict:
        """Read the log up to the next event with `message`, and return this event."""
        while (event := self.next_event())["message"] != message:
            pass
        return event

    def health(self, name: str) -> int:
        """Return the health status of a name at the probe port."""
        with grpc.insecure_channel(self.probe_address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            return check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


@pytest.fixture
def start_waiting(transport):
    """Return a function that starts a waiting service, which is stopped at the end of the test."""
    started: list[WaitingService] = []

    def start(path, *flags: str) -> WaitingService:
        started.append(WaitingService(path, transport, *flags))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.wait()
        service.process.stderr.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_that_waits_serves_its_first_model(start_waiting, tiny_model, tmp_path, noise, workers):
    """While its model folder is missing, a service reports liveness but NOT_SERVING; it serves the first model."""
    models = tmp_path / "models"
    service = start_waiting(models, "--workers", workers)
    assert models.name in service.wait_for("waiting for a model")["cause"]
    assert service.health("liveness") == SERVING
    assert service.health("sketchbatch.v1.ClassifierService") == NOT_SERVING
    arriving = tmp_path / "arriving"
    (arriving / "tiny" / "1").mkdir(parents=True)
    shutil.copy(tiny_model, arriving / "tiny" / "1" / "model.onnx")
    arriving.rename(models)
    address = service.wait_for("SERVING")["address"]
    assert service.health("sketchbatch.v1.ClassifierService") == SERVING
    with Client(address) as client:
        assert len(client.classify(noise(3))) == 3


def test_a_file_that_is_refused_does_not_end_the_wait(start_waiting, tiny_model, tmp_path):
    """While a service waits, a file that is not a model is reported once, and a later model is served."""
    file = tmp_path / "tiny" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a model")
    service = start_waiting(tmp_path)
    assert "model.onnx" in service.wait_for("waiting for a model")["cause"]
    assert service.health("liveness") == SERVING
    shutil.copy(tiny_model, tmp_path / "copy")
    (tmp_path / "copy").rename(file)
    events = [service.next_event()]
    while events[-1]["message"] != "SERVING":
        events.append(service.next_event())
    assert "waiting for a model" not in [event["message"] for event in events]


def test_sigterm_ends_the_wait(start_waiting, tmp_path):
    """A service that waits for a model ends at SIGTERM with exit code 0."""
    service = start_waiting(tmp_path)
    service.wait_for("waiting for a model")
    service.process.terminate()
    assert service.process.wait(timeout=20) == 0
