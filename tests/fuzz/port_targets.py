"""Send raw bytes to every port: gRPC, probes, metrics and the demo page.

The service must close each connection. A port for HTTP/1.1 must not return status 500 or 502. After each batch of
inputs, a valid request must succeed.
"""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mutations import text_token
from service_process import Service, running_page, running_service
from targets import MEMORY_MIB, Target, Trial, mutants

_LIMIT_S = 15.0
_CLOSED_S = 5.0
_CONCURRENT_CONNECTIONS = 8


def port(name: str) -> Callable:
    """Return a value for `Target.begin` that sends each input to a port, and reads until the connection is closed."""

    @contextmanager
    def begin(folder: Path) -> Iterator[Trial]:
        with ExitStack() as stack:
            service = stack.enter_context(running_service(folder))
            log_path = folder / "page.log"
            addresses = {
                "grpc": service.address,
                "probes": service.probe_address,
                "metrics": service.metrics_address,
                "page": stack.enter_context(running_page(service.address, log_path)) if name == "page" else "",
            }
            senders = stack.enter_context(ThreadPoolExecutor(_CONCURRENT_CONNECTIONS))
            host, _, number = addresses[name].rpartition(":")

            def trial(inputs: list[bytes], progress: Callable[[int], None]) -> list[tuple[int, str]]:
                progress(0)
                is_http = name in ("metrics", "page")
                problems = senders.map(lambda data: _send(host, int(number), data, is_http=is_http), inputs)
                found = [(index, problem) for index, problem in enumerate(problems) if problem]
                progress(len(inputs) - 1)
                problem = _problem_after_batch(service, log_path)
                return [*found, (0, f"after this batch: {problem}")] if problem else found

            yield trial

    return begin


def _problem_after_batch(service: Service, log_path: Path) -> str:
    if log_path.exists() and log_path.stat().st_size:
        text = log_path.read_text()
        log_path.open("w").close()
        return f"the page printed {text[-1500:]}"
    return service.problem_after_batch(MEMORY_MIB)


def _send(host: str, number: int, data: bytes, *, is_http: bool) -> str:
    """Send `data` to a port; return the problem with the response, "" = none."""
    try:
        with _connected(host, number) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                response = _read_all(connection)
            except TimeoutError:
                return f"connection still open after {_LIMIT_S:g} s"
            except OSError:
                return ""  # the service closed the connection first
    except OSError as exc:
        return f"cannot connect: {exc}"
    if not is_http or not response.startswith(b"HTTP/1."):
        return ""
    statuses = [int(part[2:5]) for part in (b"\n" + response).split(b"\nHTTP/1.")[1:] if part[2:5].isdigit()]
    return f"status {max(statuses)}" if max(statuses, default=0) in (500, 502) else ""


def _connected(host: str, number: int) -> socket.socket:
    """Connect to a port, and retry for `_CLOSED_S` seconds if the port is closed.

    A call whose path is not UTF-8 can close a port for a moment: FINDINGS.md.
    """
    ends_at = time.monotonic() + _CLOSED_S
    while True:
        try:
            return socket.create_connection((host, number), _LIMIT_S)
        except (ConnectionRefusedError, ConnectionResetError):
            if time.monotonic() > ends_at:
                raise
            time.sleep(0.05)


def _read_all(connection: socket.socket) -> bytes:
    """Return the first MiB of what the service sends until it closes the connection."""
    response = b""
    while chunk := connection.recv(1 << 16):
        response = (response + chunk)[: 1 << 20]
    return response


PORTS = [
    Target(name="grpc", share=2, make=mutants("grpc"), begin=port("grpc")),
    Target(name="probes", share=1, make=mutants("grpc"), begin=port("probes")),
    Target(name="metrics", share=1, make=mutants("metrics", text_token), begin=port("metrics")),
    Target(name="page", share=1, make=mutants("page", text_token), begin=port("page")),
]
