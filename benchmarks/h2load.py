"""Send Classify requests with `h2load` of nghttp2, a client in C, which shows the rate of a server alone.

`h2load` is a separate program (Debian: `nghttp2-client`). It sends one fixed request again and again on one connection.
"""

import re
import subprocess
import tempfile
import time
from pathlib import Path

from peers import Stop

_METHOD = "sketchbatch.v1.ClassifierService/Classify"
_RUN_S = 0.5  # seconds of one run of h2load; its start takes some milliseconds
_FRAME_BYTES = 5  # of gRPC's prefix of a message: compression flag, and length in four bytes


def keep_in_flight(address: str, message: bytes, min_answer_bytes: int, in_flight: int, stop: Stop) -> list[float]:
    """Run h2load until `stop`, with `in_flight` requests of `message`; return each request's seconds.

    Raises:
        RuntimeError: A request failed. gRPC reports errors with HTTP status 200, but without a message; so the error is
            found because the answers have fewer than `min_answer_bytes` bytes each.
    """
    took_s: list[float] = []
    requests = 4 * in_flight
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(b"\0" + len(message).to_bytes(_FRAME_BYTES - 1, "big") + message)
        while True:
            started_at = time.perf_counter()
            took_s += _run(address, body, log, min_answer_bytes, requests=requests, in_flight=in_flight)
            if stop.is_set():
                return took_s
            requests = max(in_flight, round(requests * _RUN_S / (time.perf_counter() - started_at)))


def _run(address: str, body: Path, log: Path, min_answer_bytes: int, *, requests: int, in_flight: int) -> list[float]:
    log.unlink(missing_ok=True)  # h2load appends
    words = ["h2load", "-n", str(requests), "-m", str(in_flight), "-d", str(body), f"--log-file={log}"]
    words += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}/{_METHOD}"]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    received = re.search(r"\((\d+)\) data", finished.stdout)
    answered = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    are_answers = len(answered) == requests and all(status == "200" for _, status, _ in answered)
    if finished.returncode or not are_answers or not received or int(received[1]) < requests * min_answer_bytes:
        raise RuntimeError(f"h2load must receive {requests} answers, got: {finished.stdout[-600:]}{finished.stderr}")
    return [int(us) / 1e6 for _, _, us in answered]
