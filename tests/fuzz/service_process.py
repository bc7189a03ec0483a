"""A running service of a tiny model, and the page beside it, for hostile callers: what their logs say counts."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
from onnx_models import write_model
from sketchbatch.v1 import classifier_pb2 as pb

_BIN = Path(sys.executable).parent
CLASSIFY = "/sketchbatch.v1.ClassifierService/Classify"
MAX_ROWS = 64
_CHANNEL = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Service:
    """`sketchbatch-serve`; its stderr goes to a file, which `complaints` reads."""

    def __init__(self, folder: Path) -> None:
        model = write_model(folder / "tiny.onnx")
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._log_path = folder / "service.log"
        always = ("--address", "127.0.0.1:0", "--lame-duck-s", "0", "--max-request-rows", str(MAX_ROWS))
        ports = ("--metrics-address", "127.0.0.1:0", "--probe-address", "127.0.0.1:0")
        with self._log_path.open("w") as file:
            command = [_BIN / "sketchbatch-serve", "--model", model, *always, *ports]
            self.process = subprocess.Popen(command, stderr=file)
        event = next(line for line in self._lines() if line["message"] == "SERVING")
        self.address, self.metrics_address = event["address"], event["metrics_address"]
        self.probe_address = event["probe_address"]
        self._read = 0
        self.channel = grpc.insecure_channel(self.address, _CHANNEL)
        self._rows = np.random.default_rng(7).integers(0, 256, (5, 28, 28), np.uint8)
        self._scores = self.scores(self._rows)
        self._start_mib = self.memory_mib()

    def _lines(self) -> Iterator[dict]:
        """Of the log, as they come, for as long as the service runs."""
        with self._log_path.open() as file:
            while self.process.poll() is None:
                if line := file.readline():
                    yield json.loads(line)
                else:
                    time.sleep(0.02)
        raise AssertionError(f"the service ended: {self._log_path.read_text()[-2000:]}")

    def scores(self, bitmaps: np.ndarray) -> np.ndarray:
        """The model's own."""
        return self.session.run(["scores"], {"bitmaps": bitmaps})[0]

    def memory_mib(self) -> float:
        """The most that it ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def grown_mib(self) -> float:
        """Since this was last asked."""
        grown = self.memory_mib() - self._start_mib
        self._start_mib += max(0.0, grown)
        return grown

    def complaints(self) -> list[str]:
        """What the log has of errors since it was last asked: nobody's bad input is one."""
        with self._log_path.open() as file:
            file.seek(self._read)
            new = file.read()
            self._read = file.tell()
        return [line[:1500] for line in new.splitlines() if not _is_calm(line)]

    def check_neighbour(self) -> None:
        """Somebody else gets exactly the scores of their own rows."""
        request = pb.ClassifyRequest(bitmaps=self._rows.tobytes())
        response = ask(self.channel, CLASSIFY, request, pb.ClassifyResponse)
        assert response.scores == self._scores.tobytes(), "a neighbour got other scores"

    def wrong_now(self, memory_mib: float) -> str:
        """What is wrong with the service after a batch; "" = nothing."""
        if self.process.poll() is not None:
            raise SystemExit(f"the service ended with {self.process.returncode}")
        try:
            self.check_neighbour()
        except (grpc.RpcError, AssertionError) as exc:
            return f"neighbour: {exc}"
        grown = self.grown_mib()
        if grown > memory_mib:
            return f"memory: the service grew by {grown:.0f} MiB"
        return "; ".join(self.complaints()[:3])

    def stop(self) -> None:
        self.channel.close()
        self.process.terminate()
        self.process.wait(30)


def ask(channel: grpc.Channel, method: str, request, answer: type):
    """One good unary call."""
    call = channel.unary_unary(method, type(request).SerializeToString, answer.FromString)
    return call(request, timeout=20)


def _is_calm(line: str) -> bool:
    try:
        event = json.loads(line)
        # grpcio's own, of a header whose name is no UTF-8: FINDINGS.md
        is_of_grpcio = event.get("logger") == "grpc._cython.cygrpc" and event["message"].startswith("Invalid encoding")
        return is_of_grpcio or event["level"] in ("debug", "info")
    except (ValueError, KeyError):
        return False


_shared: list[Service] = []


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    """One that is `sharing`, or else a new one, stopped by its pid at the end."""
    if _shared:
        yield _shared[0]
        return
    service = Service(folder)
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Makes do with one service for everything inside."""
    with running(folder) as service:
        _shared.append(service)
        try:
            yield
        finally:
            _shared.clear()


@contextmanager
def running_page(address: str, log_path: Path) -> Iterator[str]:
    """`sketchbatch demo`: HOST:PORT of its page; what it says on stderr goes to a file."""
    command = [_BIN / "sketchbatch", "demo", "--server", address, "--address", "127.0.0.1:0"]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process.stdout.readline().split()[2].removeprefix("http://").rstrip("/")
    finally:
        process.terminate()
        process.communicate(timeout=30)
