"""Test which transport a service chooses, and on which kinds of addresses it listens."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch_client import Client
from sketchbatch_client.commands.app import app
from sketchbatch_service.transport.selection import CORE_GRPCIO
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(60)  # each test starts a service

FUTURE = """
import sys, grpc
grpc.__version__ = "9.99.0"
from sketchbatch_service.__main__ import main
main(sys.argv[1:])
"""


@contextmanager
def future_grpcio(model, *flags: str):
    """Run a service that reads a version of grpcio which does not exist yet; yield its log up to SERVING."""
    command = [sys.executable, "-c", FUTURE, "--model", str(model), "--address", "127.0.0.1:0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log: list[dict] = []
        try:
            for line in process.stderr:
                log.append(json.loads(line))
                if log[-1]["message"] == "SERVING":
                    break
            yield log
        finally:
            os.kill(process.pid, signal.SIGINT)


def test_an_untested_grpcio_gets_the_public_transport_and_one_warning(tiny_model, noise):
    """If the transport `core` was not tested with the installed grpcio, `auto` chooses `aio` and logs one warning."""
    with future_grpcio(tiny_model) as log, Client(log[-1]["address"]) as client:
        assert len(client.classify(noise(3))) == 3
        assert client.model().name == "tiny"
    [warning] = [event for event in log if event["level"] == "warning"]
    assert warning["message"].startswith("transport aio, which is slower: core was not tested")
    assert warning["grpcio"] == "9.99.0"
    assert warning["tested"] == sorted(CORE_GRPCIO)
    assert log[-1]["transport"] == "aio"


def test_the_fast_transport_can_be_insisted_on(tiny_model, noise):
    """With `--transport core`, the service uses `core` even with an untested grpcio, and logs no warning."""
    with future_grpcio(tiny_model, "--transport", "core") as log, Client(log[-1]["address"]) as client:
        assert len(client.classify(noise(3))) == 3
    assert log[-1]["transport"] == "core"
    assert not [event for event in log if event["level"] == "warning"]


def test_a_tested_grpcio_gets_the_fast_transport(start_service, tiny_model):
    """`core` was tested with the installed version of grpcio, which the lock files pin, so `auto` chooses `core`."""
    assert grpc.__version__ in CORE_GRPCIO
    assert start_service(tiny_model).ready["transport"] == "core"


@pytest.mark.both_transports
def test_a_service_on_a_unix_socket_is_used_probed_and_leaves_no_file(start_service, tiny_model, noise, tmp_path):
    """The client and the probe command reach a service on unix:PATH, and the service removes the file when it stops.

    Compressed messages work as well.
    """
    path = tmp_path / "x.sock"
    service = start_service(tiny_model, "--address", f"unix:{path}")
    assert service.address == f"unix:{path}"
    with Client(service.address) as client, Client(service.address, gzip=True) as compressing:
        assert (client.classify(noise(50)).scores == compressing.classify(noise(50)).scores).all()
    probe = [sys.executable, "-m", "sketchbatch_service.probe", "--address", service.address]
    assert subprocess.run(probe, capture_output=True, text=True, check=True).stdout == "SERVING\n"
    assert service.stop()[0] == 0
    assert not path.exists()


@pytest.mark.parametrize("spelling", ["unix:{}/x.sock", "unix://{}/x.sock", "unix:{}/x.sock:0", "unix:{}/a b"])
def test_every_spelling_of_a_socket_is_the_same_for_all_commands(start_service, tiny_model, tmp_path, spelling):
    """The service, the client's commands and the probe command accept the same addresses.

    A socket has no port: a path may end in `:0`, and is used as it is.
    """
    address = spelling.format(tmp_path)
    service = start_service(tiny_model, "--address", address)
    for target in (address, service.address):
        assert CliRunner().invoke(app, ["health", "--server", target]).stdout == "SERVING\n"
    probe = [sys.executable, "-m", "sketchbatch_service.probe", "--address", address]
    assert subprocess.run(probe, capture_output=True, text=True, check=True).stdout == "SERVING\n"
    assert service.stop()[0] == 0


@pytest.mark.both_transports
@pytest.mark.parametrize("workers", ["1", "2"])
def test_all_ports_of_a_service_accept_ipv6(start_service, tiny_model, noise, workers):
    """The ports for calls, probes and metrics listen on IPv6 addresses, with one worker and with several."""
    anywhere = ("--address", "[::]:0", "--probe-address", "[::1]:0", "--metrics-address", "[::1]:0")
    service = start_service(tiny_model, *anywhere, "--workers", workers)
    port = service.address.removeprefix("[::]:")
    for address in (f"[::1]:{port}", f"127.0.0.1:{port}"):
        with Client(address) as client:
            assert len(client.classify(noise(3))) == 3
    with grpc.insecure_channel(service.probe_address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=15) as page:
        assert b"sketchbatch_serving" in page.read()
    assert service.stop()[0] == 0


@pytest.mark.both_transports
def test_two_services_cannot_share_a_unix_socket(start_service, run_command, tiny_model, tmp_path, transport):
    """A service does not start if another service listens on its socket file; the other service still responds."""
    service = start_service(tiny_model, "--address", f"unix:{tmp_path}/x.sock")
    second = run_command(
        *("sketchbatch-serve", "--model", tiny_model, "--address", service.address, "--transport", transport)
    )
    assert second.returncode == 1
    assert f"cannot listen on {service.address}: another process listens on it" in second.stderr
    with Client(service.address) as client:
        assert client.model().name == "tiny"
