"""Test that the probe exits with 0 if the service is SERVING, and otherwise with 1 and one line of output."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from blocking_health import BlockingHealthServicer
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch_service.app.probe import main


class HealthServer:
    """Run a gRPC server on a free port that implements only grpc.health.v1."""

    def __init__(self) -> None:
        self._servicer = BlockingHealthServicer()
        self.server = grpc.server(ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def report(self, status: str) -> None:
        self._servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))


@pytest.fixture
def health_server() -> Iterator[HealthServer]:
    """Start a health server that reports the status that the test sets."""
    started = HealthServer()
    yield started
    started.server.stop(None).wait()


def probe(address: str, **environment: str) -> tuple[int, str]:
    """Run the probe; return its exit code and its output."""
    result = CliRunner().invoke(main, ["--limit-s", "5"], env={"SKETCHBATCH_ADDRESS": address, **environment})
    return result.exit_code, result.output.strip()


def test_the_probe_finds_a_service_by_its_environment_variable(tiny_service):
    """The probe reads the service's address from SKETCHBATCH_ADDRESS, because HEALTHCHECK passes no arguments."""
    command = [sys.executable, "-m", "sketchbatch_service.probe"]
    environment = {**os.environ, "SKETCHBATCH_ADDRESS": tiny_service.address}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "SERVING\n", "")


def test_a_service_that_is_not_serving_is_unhealthy(health_server):
    """The probe exits with 1 if the service responds with NOT_SERVING."""
    health_server.report("SERVING")
    address = f"127.0.0.1:{health_server.port}"
    assert probe(address) == (0, "SERVING")
    health_server.report("NOT_SERVING")
    assert probe(address) == (1, f"{address}: NOT_SERVING")


def test_a_service_on_all_interfaces_is_probed_on_loopback(health_server):
    """The probe connects to 127.0.0.1 for an address of 0.0.0.0, to [::1] for [::], and never through a proxy."""
    health_server.report("SERVING")
    assert probe(f"0.0.0.0:{health_server.port}", http_proxy="http://127.0.0.1:9") == (0, "SERVING")
    code, output = probe("[::]:1")
    assert (code, output.partition(": ")[0]) == (1, "[::1]:1")


def test_the_probe_prefers_the_probe_port_to_the_port_of_the_service(health_server):
    """The probe prefers the probe port, because the service port may require TLS and tokens, which the probe lacks."""
    health_server.report("SERVING")
    assert probe("127.0.0.1:1", SKETCHBATCH_PROBE_ADDRESS=f"0.0.0.0:{health_server.port}") == (0, "SERVING")


def test_a_closed_port_is_reported_in_one_line():
    """A closed port is reported as UNAVAILABLE in one line, and the probe does not wait until its time limit."""
    code, output = probe("127.0.0.1:1")
    assert code == 1
    assert output.startswith("127.0.0.1:1: UNAVAILABLE: ")
    assert len(output.splitlines()) == 1


def test_the_limit_ends_the_probe_of_a_service_that_hangs():
    """The probe ends at its time limit if the service accepts the connection and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        address = f"127.0.0.1:{hung.getsockname()[1]}"
        result = CliRunner().invoke(main, ["--address", address, "--limit-s", "0.2"])
    assert (result.exit_code, result.output.strip()) == (1, f"{address}: DEADLINE_EXCEEDED: Deadline Exceeded")


def test_the_probe_rejects_the_addresses_that_the_service_rejects():
    """The probe rejects an invalid address with the same message as the service."""
    code, output = probe("localhost")
    assert code != 0
    assert "must be HOST:PORT or [IPV6]:PORT, PORT 0..65535, got 'localhost'" in output


@pytest.mark.parametrize("limit_s", ["nan", "inf", "-1", "1e300", "soon"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(limit_s):
    """The probe refuses a time limit that is not 0 to 86,400 seconds, in one line and with exit code 2."""
    result = CliRunner().invoke(main, ["--limit-s", limit_s])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: Invalid value for '--limit-s': ")
