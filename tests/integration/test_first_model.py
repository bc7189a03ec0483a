"""Test a service that starts before its first model is there."""

import json
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import grpc
import pytest
from conftest import BIN
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch_client import Client

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class WaitingService:
    """A service that waits for its first model."""

    def __init__(self, path, transport: str, *flags: str) -> None:
        words = [BIN / "sketchbatch-serve", "--model", path, "--address", "127.0.0.1:0", "--lame-duck-s", "0"]
        words += ["--wait-for-model", "--watch-models-s", "0", "--probe-address", "127.0.0.1:0"]
        words += ["--metrics-address", "127.0.0.1:0", "--transport", transport, *flags]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, pipesize=1 << 20, text=True)
        self.waiting = self.wait_for("waiting for a model")

    def next_event(self) -> dict:
        """Return the next event in the log."""
        return json.loads(self.process.stderr.readline())

    def wait_for(self, message: str) -> dict:
        """Return the next event with `message`."""
        return self.events_until(message)[-1]

    def events_until(self, message: str) -> list[dict]:
        """Return the next events up to the first one with `message`."""
        events = [self.next_event()]
        while events[-1]["message"] != message:
            events.append(self.next_event())
        return events

    def health(self, name: str) -> int:
        """Return the health status of a name at the probe port."""
        with grpc.insecure_channel(self.waiting["probe_address"]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            return check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


def put(model: Path, repository: Path, name: str) -> None:
    """Put a copy of a model file into a repository; the file is complete when it appears there."""
    ready = repository.parent / f"ready-{name}"
    (ready / "1").mkdir(parents=True)
    shutil.copy(model, ready / "1" / "model.onnx")
    repository.mkdir(exist_ok=True)
    ready.rename(repository / name)


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
    """A service on a missing folder is alive and NOT_SERVING, and serves the first model that arrives."""
    models = tmp_path / "models"
    service = start_waiting(models, "--workers", workers)
    assert models.name in service.waiting["cause"]
    assert service.health("liveness") == SERVING
    assert service.health("sketchbatch.v1.ClassifierService") == NOT_SERVING
    put(tiny_model, models, "tiny")
    address = service.wait_for("SERVING")["address"]
    assert service.health("sketchbatch.v1.ClassifierService") == SERVING
    with Client(address) as client:
        assert len(client.classify(noise(3))) == 3


def test_the_metrics_of_a_service_that_waits_report_not_serving(start_waiting, tiny_model, tmp_path):
    """The metrics port is open while the service waits, and has the metrics of the models once they serve."""
    service = start_waiting(tmp_path / "models")
    address = service.waiting["metrics_address"]
    page = scrape(address)
    assert 'sketchbatch_serving{worker="1"} 0.0' in page
    assert "process_resident_memory_bytes" in page
    assert "sketchbatch_model_info" not in page
    put(tiny_model, tmp_path / "models", "tiny")
    assert service.wait_for("SERVING")["metrics_address"] == address
    page = scrape(address)
    assert 'sketchbatch_serving{worker="1"} 1.0' in page
    assert 'sketchbatch_model_loads_total{outcome="served",worker="1"} 1.0' in page


def scrape(address: str) -> str:
    """Return the page of the metrics port."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=15) as response:
        return response.read().decode()


def test_the_service_port_is_closed_while_the_service_waits(start_waiting, tmp_path):
    """Connections to the service port are refused until a model is loaded, also with several workers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    start_waiting(tmp_path / "models", "--address", f"127.0.0.1:{address[1]}", "--workers", "2")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_file_that_is_refused_does_not_end_the_wait(start_waiting, tiny_model, tmp_path):
    """While a service waits, a file that is not a model is reported once, and a later model is served."""
    models, page = tmp_path / "models", tmp_path / "page"
    page.write_bytes(b"not a model")
    put(page, models, "tiny")
    service = start_waiting(models)
    assert "model.onnx" in service.waiting["cause"]
    put(page, models, "zoo")
    assert service.wait_for("model refused")["model"] == "zoo"
    assert service.health("liveness") == SERVING
    shutil.copy(tiny_model, tmp_path / "copy")
    (tmp_path / "copy").rename(models / "tiny" / "1" / "model.onnx")
    events = [event["message"] for event in service.events_until("SERVING")]
    assert not {"model refused", "waiting for a model"} & {*events}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_ends_the_wait(start_waiting, tmp_path, workers):
    """A service that waits for a model ends at SIGTERM with exit code 0; it has no lame duck time and logs no error."""
    service = start_waiting(tmp_path / "models", "--lame-duck-s", "3600", "--workers", workers)
    service.process.terminate()
    assert service.process.wait(timeout=20) == 0
    events = [json.loads(line) for line in service.process.stderr]
    assert events[-1]["message"] == "stopped"
    assert "error" not in [event["level"] for event in events]


def test_a_start_that_fails_after_the_wait_is_reported_in_one_line(start_waiting, tiny_model, tmp_path):
    """If the service port is in use when the first model is loaded, the service prints one line of error and exits."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        service = start_waiting(tmp_path / "models", "--address", f"127.0.0.1:{other.getsockname()[1]}")
        put(tiny_model, tmp_path / "models", "tiny")
        assert service.process.wait(timeout=20) == 1
    lines = service.process.stderr.read().splitlines()
    assert len(lines) == 1
    assert "the port is in use" in lines[0]
