"""Starts a peer's server and its load generator, and runs windows on them."""

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
"""What a load generator says of a window: see `load.run_window`; with the server's and the machine's CPU seconds."""

READY_WITHIN_S = 60
ANSWERS_WITHIN_S = 120
STOPS_WITHIN_S = 40  # longer than our service drains


class PeerFailed(RuntimeError):
    """A server or a load generator ended, or never was ready; the message ends with what it said last."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of `rows` rows, `in_flight` at once."""

    rows: int
    in_flight: int


class Generator:
    """A load generator's process."""

    def __init__(self, peer: Peer, target: str, drawings: Path) -> None:
        words = ["--peer", peer.name, "--target", target, "--drawings", str(drawings)]
        words += ["--channels", str(peer.channels)]
        self._name = peer.name
        self._process = subprocess.Popen(
            [sys.executable, str(LOAD), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.scores: list[list[float]] = self._read()["scores"]

    def begin(self, load: Load) -> None:
        """Opens a window."""
        self._write(json.dumps(asdict(load)))

    def end(self) -> Counted:
        """Closes it; returns what it counted, all answered."""
        self._write("stop")
        return self._read()

    def close(self) -> None:
        """Ends the process."""
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
            raise PeerFailed(f"the load generator of {self._name} ended with {self._process.wait()}: see above")
        found: dict[str, Any] = json.loads(line)
        return found


class Server:
    """A peer's server process; what it prints is read all the time, so that it never waits for a reader."""

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
        """Its processes."""
        return tree(self._process.pid)

    def cpu_s(self) -> float:
        """Of all its processes, so far."""
        return cpu_s(self.pids())

    def figures(self) -> dict[str, float]:
        """Seconds from its start until it said it was ready, and until it was healthy; memory of its processes."""
        used = memory(self.pids())
        return {
            "ready_s": self._ready_s,
            "healthy_s": self._healthy_s,
            "peak_mib": used.peak_mib,
            "after_mib": used.after_mib,
        }

    def close(self) -> None:
        """Stops it as an operator would."""
        self._process.terminate()
        with _killed_after(STOPS_WITHIN_S, self._process):
            self._process.wait()
        if self._reader.is_alive():
            self._reader.join(STOPS_WITHIN_S)
        assert self._process.stdout
        self._process.stdout.close()


@contextmanager
def _killed_after(seconds: float, process: "subprocess.Popen[str]") -> Iterator[None]:
    """Nobody waits for a process that hangs."""
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
    raise PeerFailed(f"the server of {peer.name} was not ready in {READY_WITHIN_S} s; it said last: {last.strip()}")


class Contestant:
    """A peer with its server, where it has one, and a load generator; with two, loads can run side by side."""

    def __init__(self, peer: Peer, *, model: Path, drawings: Path, generators: int) -> None:
        self.peer = peer
        with ExitStack() as stack:  # what was started is stopped, too, when something later does not start
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
        """A window of `seconds` and what the last requests take; of several loads the first ends first.

        So the first load has all others beside it from its beginning to its end.
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
        """Ends its processes, generators first."""
        self._opened.close()

    def _cpu_s(self) -> tuple[float, float]:
        """Of its server, and of the whole machine."""
        return self.server.cpu_s() if self.server else 0.0, machine_cpu_s()
