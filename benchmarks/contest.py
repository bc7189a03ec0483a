"""Start a peer's server and load generators, and measure windows: periods of constant load."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from peers import Peer
from processes import cpu_s, machine_cpu_s, memory, tree

LOAD = Path(__file__).resolve().parent / "load.py"

Counted = dict[str, float]
"""The counts of one window: the result of `load.run_window`, and CPU seconds of the server and other processes."""

READY_WITHIN_S = 60
ANSWERS_WITHIN_S = 120
STOPS_WITHIN_S = 40  # longer than the drain of our service


class PeerFailed(RuntimeError):
    """A server or load generator ended, or did not become ready in time."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load of at most `in_flight` concurrent requests of `rows` rows each."""

    rows: int
    in_flight: int
    per_s: float = 0.0
    """Requests a second; 0 = each answer is followed by the next request."""


class Generator:
    """The process of a load generator."""

    def __init__(self, peer: Peer, target: str, drawings: Path) -> None:
        words = ["--peer", peer.name, "--target", target, "--drawings", str(drawings)]
        words += ["--channels", str(peer.channels)]
        self._name = peer.name
        self._process = subprocess.Popen(
            [sys.executable, str(LOAD), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.scores: list[list[float]] = self._read()["scores"]

    def begin(self, load: Load) -> None:
        """Start a window with the given load."""
        self._write(json.dumps(asdict(load)))

    def end(self) -> Counted:
        """End the window, wait until all its requests are answered, and return the counts of the window."""
        self._write("stop")
        return self._read()

    def close(self) -> None:
        """End the load generator's process."""
        with _killed_after(STOPS_WITHIN_S, self._process):
            self._process.communicate()

    def _write(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        with _killed_after(ANSWERS_WITHIN_S, self._process):
            line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(
                f"the load generator of {self._name} exited with {self._process.wait()}; its error is above"
            )
        found: dict[str, Any] = json.loads(line)
        return found


class Server:
    """A peer's server process; a thread reads its output, so that the pipe never fills."""

    def __init__(self, peer: Peer, model: Path) -> None:
        assert peer.command
        assert peer.probe
        started_at = time.perf_counter()
        self._process = subprocess.Popen(
            peer.command(model), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout
        self._reader = threading.Thread(target=self._process.stdout.read, daemon=True)
        try:
            with _killed_after(READY_WITHIN_S, self._process):
                self.address = _address(peer, self._process.stdout)
            self._ready_s = time.perf_counter() - started_at
            self._reader.start()
            peer.probe(self.address)
        except BaseException:
            self.close()
            raise
        self._healthy_s = time.perf_counter() - started_at

    def pids(self) -> list[int]:
        """Return the process ids of the server and of its descendants."""
        return tree(self._process.pid)

    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes of the server since the start."""
        return cpu_s(self.pids())

    def figures(self) -> dict[str, float]:
        """Return the seconds until the server printed its address and passed its probe, and the processes' memory."""
        used = memory(self.pids())
        return {
            "ready_s": self._ready_s,
            "healthy_s": self._healthy_s,
            "peak_mib": used.peak_mib,
            "after_mib": used.after_mib,
        }

    def close(self) -> None:
        """Stop the server with SIGTERM."""
        self._process.terminate()
        with _killed_after(STOPS_WITHIN_S, self._process):
            self._process.wait()
        if self._reader.is_alive():
            self._reader.join(STOPS_WITHIN_S)
        assert self._process.stdout
        self._process.stdout.close()


@contextmanager
def _killed_after(seconds: float, process: "subprocess.Popen[str]") -> Iterator[None]:
    """Kill the process if the context takes longer than `seconds`."""
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _address(peer: Peer, output: IO[str]) -> str:
    assert peer.address_in
    last = ""
    for line in output:
        if address := peer.address_in(line):
            return address
        last = line
    raise PeerFailed(f"the server of {peer.name} was not ready in {READY_WITHIN_S} s; its last line: {last.strip()}")


class Contestant:
    """A peer with its server, if it has one, and its load generators; each concurrent load needs one generator."""

    def __init__(self, peer: Peer, *, model: Path, drawings: Path, generators: int) -> None:
        self.peer = peer
        with ExitStack() as stack:  # if a later process does not start, the earlier processes are stopped
            self.server = Server(peer, model) if peer.command else None
            if self.server:
                stack.callback(self.server.close)
            target = self.server.address if self.server else str(model)
            self._generators = []
            for _ in range(generators):
                self._generators.append(Generator(peer, target, drawings))
                stack.callback(self._generators[-1].close)
            self._opened = stack.pop_all()
        self.scores = self._generators[0].scores

    def measure(self, loads: Sequence[Load], seconds: float) -> list[Counted]:
        """Measure a window of `seconds`, plus the time until the last requests are answered.

        The first of several loads ends first, so that the other loads run during the whole first load.
        """
        opened_at, before = time.perf_counter(), self._cpu_s()
        generators = list(zip(self._generators, loads, strict=False))
        for generator, load in generators:
            generator.begin(load)
        time.sleep(seconds)
        counted = [generator.end() for generator, _ in generators]
        took_s = time.perf_counter() - opened_at
        server_cpu_s, machine_cpu_s = (after - b for after, b in zip(self._cpu_s(), before, strict=True))
        other_cpu_s = machine_cpu_s - server_cpu_s - sum(each["client_cpu_s"] for each in counted)
        shared = {"server_cpu_s": server_cpu_s, "other_cpus": max(0.0, other_cpu_s / took_s)}
        return [each | shared for each in counted]

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *exc: object) -> None:
        """End the load generators and then the server."""
        self._opened.close()

    def _cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of the server and of the whole machine."""
        return self.server.cpu_s() if self.server else 0.0, machine_cpu_s()
