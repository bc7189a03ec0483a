"""Run a service with a tiny model, and the demo page, for the fuzz targets of RPCs and ports.

After hostile inputs, the module checks the scores of a valid request, the peak memory and the log of the service.
"""

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
    """A `sketchbatch-serve` process that writes its log to a file."""

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
        event = next(event for event in self._events() if event["message"] == "SERVING")
        self.address, self.metrics_address = event["address"], event["metrics_address"]
        self.probe_address = event["probe_address"]
        self._read_bytes = 0
        self.is_aio = event["transport"] == "aio"
        self.channel = grpc.insecure_channel(self.address, _CHANNEL)
        self._rows = np.random.default_rng(7).integers(0, 256, (5, 28, 28), np.uint8)
        self._scores = self.scores(self._rows)
        self._peak_mib = self.memory_mib()

    def _events(self) -> Iterator[dict]:
        """Yield the events of the log as they are written, while the service runs."""
        line = ""
        with self._log_path.open() as file:
            while self.process.poll() is None:
                line += file.readline()
                if line.endswith("\n"):
                    yield json.loads(line)
                    line = ""
                else:
                    time.sleep(0.02)
        raise AssertionError(f"the service ended: {self._log_path.read_text()[-2000:]}")

    def scores(self, bitmaps: np.ndarray) -> np.ndarray:
        """Compute scores with ONNX Runtime in this process."""
        return self.session.run(["scores"], {"bitmaps": bitmaps})[0]

    def memory_mib(self) -> float:
        """Return the peak memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def grown_mib(self) -> float:
        """Return how far the peak memory has grown since the last call."""
        grown = self.memory_mib() - self._peak_mib
        self._peak_mib += max(0.0, grown)
        return grown

    def new_warnings(self) -> list[str]:
        """Return the warnings and errors of the log since the last call; hostile input must not cause any."""
        with self._log_path.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]  # excludes a line that is still being written
        self._read_bytes += len(complete)
        return [line[:1500] for line in complete.decode(errors="replace").splitlines() if not _is_harmless(line)]

    def check_valid_request(self) -> None:
        """Check that a valid request receives exactly the scores of its own rows."""
        request = pb.ClassifyRequest(bitmaps=self._rows.tobytes())
        classify = self.channel.unary_unary(
            CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        response = None
        while response is None:
            try:
                response = classify(request, timeout=20, wait_for_ready=True)
            except grpc.RpcError as exc:
                # With the transport aio, a hostile call whose path is not UTF-8 ends all open calls: FINDINGS.md.
                if not self.is_aio or exc.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                    raise
        assert response.scores == self._scores.tobytes(), "a valid request received other scores"

    def problem_after_batch(self, memory_mib: float) -> str:
        """Return the problem of the service after a batch, or "" if there is none."""
        if self.process.poll() is not None:
            raise SystemExit(f"the service ended with {self.process.returncode}")
        try:
            self.check_valid_request()
        except (grpc.RpcError, AssertionError) as exc:
            return f"valid request: {exc}"
        grown = self.grown_mib()
        if grown > memory_mib:
            return f"memory: the service grew by {grown:.0f} MiB"
        return "; ".join(self.new_warnings()[:3])

    def stop(self) -> None:
        self.channel.close()
        self.process.terminate()
        self.process.wait(30)


def _is_harmless(line: str) -> bool:
    try:
        event = json.loads(line)
        # grpcio itself logs an error if the name of a header is not UTF-8: FINDINGS.md.
        is_header = event.get("logger", "").startswith("grpc._cython") and event["message"].startswith(
            "Invalid encoding"
        )
        # FINDINGS.md: a path that is not UTF-8 stops grpcio's server. The transport aio then starts a new server.
        is_path = "'utf-8' codec can't decode" in line
        return is_header or is_path or event["level"] in ("debug", "info")
    except (ValueError, KeyError):
        return False


_shared: list[Service] = []


@contextmanager
def running_service(folder: Path) -> Iterator[Service]:
    """Yield the service of `shared_service`; outside of its context, start a service and stop it at the end."""
    if _shared:
        yield _shared[0]
        return
    service = Service(folder)
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def shared_service(folder: Path) -> Iterator[None]:
    """Share one service between all uses of `running_service` inside the context."""
    with running_service(folder) as service:
        _shared.append(service)
        try:
            yield
        finally:
            _shared.clear()


@contextmanager
def running_page(address: str, log_path: Path) -> Iterator[str]:
    """Run `sketchbatch demo` with stderr in a file; yield HOST:PORT of its page."""
    command = [_BIN / "sketchbatch", "demo", "--server", address, "--address", "127.0.0.1:0"]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process.stdout.readline().split()[2].removeprefix("http://").rstrip("/")
    finally:
        process.terminate()
        process.communicate(timeout=30)
