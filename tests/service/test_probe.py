"""The probe: exit code 0 if the service beside it is SERVING, 1 and a line otherwise."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sketchbatch_service.app.probe import main


class HealthAlone:
    """A gRPC server on a free port that answers nothing but grpc.health.v1."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self.server = grpc.server(ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def say(self, status: str) -> None:
        self._servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))


@pytest.fixture
def health_alone() -> Iterator[HealthAlone]:
    """A server that says what the test wants."""
    alone = HealthAlone()
    yield alone
    alone.server.stop(None).wait()


def probe(address: str, **environment: str) -> tuple[int, str]:
    """Exit code and output."""
    result = CliRunner().invoke(main, ["--limit-s", "5"], env={"SKETCHBATCH_ADDRESS": address, **environment})
    return result.exit_code, result.output.strip()


def test_a_running_service_is_found_by_the_variable_that_it_was_told(tiny_service):
    """As the image's HEALTHCHECK calls it: a process of its own, no argument, exit code 0."""
    command = [sys.executable, "-m", "sketchbatch_service.probe"]
    environment = {**os.environ, "SKETCHBATCH_ADDRESS": tiny_service.address}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "SERVING\n", "")


def test_a_service_that_drains_is_not_healthy(health_alone):
    """NOT_SERVING is an answer, and the answer is no."""
    health_alone.say("SERVING")
    address = f"127.0.0.1:{health_alone.port}"
    assert probe(address) == (0, "SERVING")
    health_alone.say("NOT_SERVING")
    assert probe(address) == (1, f"{address}: NOT_SERVING")


def test_a_service_that_listens_everywhere_is_asked_on_loopback(health_alone):
    """0.0.0.0 is where to listen, not whom to ask; and no proxy of the environment is asked instead."""
    health_alone.say("SERVING")
    assert probe(f"0.0.0.0:{health_alone.port}", http_proxy="http://127.0.0.1:9") == (0, "SERVING")
    code, said = probe("[::]:1")
    assert (code, said.partition(": ")[0]) == (1, "[::1]:1")


def test_a_port_for_probes_is_asked_rather_than_the_service_s_own(health_alone):
    """The service's own may be behind TLS and tokens, of which a probe knows nothing."""
    health_alone.say("SERVING")
    assert probe("127.0.0.1:1", SKETCHBATCH_PROBE_ADDRESS=f"0.0.0.0:{health_alone.port}") == (0, "SERVING")


def test_nobody_there_is_one_line_at_once():
    """The port is closed: no waiting for the limit."""
    started_at = time.monotonic()
    code, said = probe("127.0.0.1:1")
    assert code == 1
    assert said.startswith("127.0.0.1:1: UNAVAILABLE: ")
    assert len(said.splitlines()) == 1
    assert time.monotonic() - started_at < 4


def test_a_service_that_hangs_is_given_up():
    """It takes the connection and says nothing: the limit ends the probe."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        address = f"127.0.0.1:{hung.getsockname()[1]}"
        result = CliRunner().invoke(main, ["--address", address, "--limit-s", "0.2"])
    assert (result.exit_code, result.output.strip()) == (1, f"{address}: DEADLINE_EXCEEDED: Deadline Exceeded")


def test_an_address_that_the_service_would_refuse_is_refused():
    """The same rule, the same words."""
    code, said = probe("localhost")
    assert code != 0
    assert "must be HOST:PORT, PORT 0..65535, got 'localhost'" in said
