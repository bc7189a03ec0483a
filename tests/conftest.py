"""Provide the fixtures of all tests: tiny real models, real drawings if present, and real services."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["GRPC_VERBOSITY"] = "NONE"  # read by the import of gRPC, whose log would appear in captured output
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for started processes: else `import numpy` takes 0.1 s of a second CPU

import in_process
import pytest
import structlog
from file_order import FileScheduling, longest_first
from hypothesis import settings
from onnx_models import write_model
from portable import ROOT, noise, quickdraw, root

__all__ = ["noise", "quickdraw", "root"]  # fixtures

# Hypothesis tries the same examples on every machine, without a time limit. Thus only the code can cause a failure.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

# structlog prints a traceback in colour and with all local variables by default, which takes seconds.
_console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _console])

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a real model with three classes, whose model calls take microseconds."""
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


class Service:
    """Run a `sketchbatch-serve` process on a free port of this machine."""

    def __init__(self, model: Path | None, *flags: str) -> None:
        always = ("--address", "127.0.0.1:0", "--lame-duck-s", "0")
        models = ("--model", model) if model else ()
        command = [BIN / "sketchbatch-serve", *models, *always, *flags]
        self.events: list[dict] = []  # the part of the log that was read
        # No test reads all of the log. The pipe must hold the rest, because a service blocks while its pipe is full.
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, pipesize=1 << 20, text=True, cwd=ROOT)
        self.ready = self.wait_for("SERVING")
        self.address: str = self.ready["address"]
        self.probe_address: str = self.ready["probe_address"]
        self.metrics_address: str = self.ready["metrics_address"]

    def wait_for(self, message: str) -> dict:
        """Read the log of the service up to the first event with `message`, and return that event."""
        for line in self.process.stderr:
            self.events.append(event := json.loads(line))
            if event["message"] == message:
                return event
        raise AssertionError(f"the service ended before it logged {message}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict]]:
        """Send the signal `how` to the service; return its exit code and the unread rest of its log."""
        if self.process.poll() is None:
            os.kill(self.process.pid, how)
        _, log = self.process.communicate(timeout=45)
        return self.process.returncode, [json.loads(line) for line in log.splitlines()]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileScheduling:
    """Distribute the test files over the processes of `pytest -n`."""
    return FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files whose tests take the longest."""
    items[:] = longest_first(items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once with each transport if the test is marked `both_transports` and uses the fixture `transport`.

    A test that starts a process of its own takes a second for it. `make test` runs such a test with `core` only, and
    `make test-slow` with `aio`; the tests of one process, such as tests/contract, always run with both.
    """
    if "transport" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_transports"):
        is_chaos = metafunc.definition.get_closest_marker("chaos")
        is_slow = not is_chaos and not {"start_service", "start_waiting"}.isdisjoint(metafunc.fixturenames)
        aio = pytest.param("aio", marks=pytest.mark.slow if is_slow else ())
        metafunc.parametrize("transport", ["core", aio], indirect=True, scope="session")


@pytest.fixture(scope="session")
def transport(request: pytest.FixtureRequest) -> str:
    """Return the transport of the services that the test starts: "auto", or one of both in tests `both_transports`."""
    return getattr(request, "param", "auto")


@pytest.fixture(autouse=True)
def transport_in_process(request: pytest.FixtureRequest) -> None:
    """Set the transport of `in_process.serving`: `core`, unless the test is marked `both_transports`."""
    is_chosen = "transport" in request.fixturenames
    chosen = request.getfixturevalue("transport") if is_chosen else "auto"
    in_process.transport = "core" if chosen == "auto" else chosen


@pytest.fixture(scope="session")
def start_service(transport: str) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a service; services that still run are stopped at the end of the test session."""
    started: list[Service] = []

    def start(model: Path | None, *flags: str) -> Service:
        started.append(Service(model, "--transport", transport, *flags))
        return started[-1]

    yield start
    for service in started:
        if service.process.poll() is None:
            service.stop()
        service.process.stderr.close()


@pytest.fixture(scope="session")
def tiny_services(tiny_model: Path) -> Iterator[Callable[[str], Service]]:
    """Return a function that returns the running service of the tiny model with a transport; it starts once."""
    started: dict[str, Service] = {}

    def service_of(transport: str) -> Service:
        if transport not in started:
            started[transport] = Service(tiny_model, "--transport", transport)
        return started[transport]

    yield service_of
    for service in started.values():
        service.stop()


@pytest.fixture(scope="session")
def tiny_service(tiny_services: Callable[[str], Service], transport: str) -> Service:
    """Return a running service of the tiny model, for tests that only send requests."""
    return tiny_services("core" if transport == "auto" else transport)


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs one of the installed commands."""

    def run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
        words = [str(BIN / program), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=280, **options)

    return run
