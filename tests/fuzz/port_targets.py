"""Raw bytes at every port: gRPC's own, that of probes, that of metrics, and the demo's page.

What speaks HTTP/1.1 is answered, with a status that is no 500, or hung up on; a good caller is served after each batch.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mutations import text_token
from service_process import Service, running, running_page
from targets import MEMORY_MIB, Target, Trial, mutants

_WAIT_S = 15.0
_AT_A_TIME = 8


def port(name: str) -> Callable:
    """Sends bytes to a port of a service of its own, and reads until it is hung up on."""

    @contextmanager
    def begin(folder: Path) -> Iterator[Trial]:
        with ExitStack() as stack:
            service = stack.enter_context(running(folder))
            log_path = folder / "page.log"
            addresses = {
                "grpc": service.address,
                "probes": service.probe_address,
                "metrics": service.metrics_address,
                "page": stack.enter_context(running_page(service.address, log_path)) if name == "page" else "",
            }
            senders = stack.enter_context(ThreadPoolExecutor(_AT_A_TIME))
            host, _, number = addresses[name].rpartition(":")

            def trial(inputs: list[bytes], at: Callable[[int], None]) -> list[tuple[int, str]]:
                at(0)
                sent = senders.map(
                    lambda data: _sent(host, int(number), data, is_http=name in ("metrics", "page")), inputs
                )
                wrong = [(place, what) for place, what in enumerate(sent) if what]
                at(len(inputs) - 1)
                what = _wrong_now(service, log_path)
                return [*wrong, (0, f"after this batch: {what}")] if what else wrong

            yield trial

    return begin


def _wrong_now(service: Service, log_path: Path) -> str:
    if log_path.exists() and log_path.stat().st_size:
        said = log_path.read_text()
        log_path.open("w").close()
        return f"the page said {said[-1500:]}"
    return service.wrong_now(MEMORY_MIB)


def _sent(host: str, number: int, data: bytes, *, is_http: bool) -> str:
    """What is wrong with the answer; "" = nothing."""
    try:
        with socket.create_connection((host, number), _WAIT_S) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                answer = _read_all(connection)
            except TimeoutError:
                return f"not hung up on within {_WAIT_S:g} s"
            except OSError:
                return ""  # it hung up first
    except OSError as exc:
        return f"cannot connect: {exc}"
    if not is_http or not answer.startswith(b"HTTP/1."):
        return ""
    statuses = [int(part[2:5]) for part in (b"\n" + answer).split(b"\nHTTP/1.")[1:] if part[2:5].isdigit()]
    return f"answered {max(statuses)}" if max(statuses, default=0) in (500, 502) else ""


def _read_all(connection: socket.socket) -> bytes:
    answer = b""
    while chunk := connection.recv(1 << 16):
        answer = (answer + chunk)[: 1 << 20]
    return answer


PORTS = [
    Target(name="grpc", share=2, make=mutants("grpc"), begin=port("grpc")),
    Target(name="probes", share=1, make=mutants("grpc"), begin=port("probes")),
    Target(name="metrics", share=1, make=mutants("metrics", text_token), begin=port("metrics")),
    Target(name="page", share=1, make=mutants("page", text_token), begin=port("page")),
]
