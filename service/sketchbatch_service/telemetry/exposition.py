"""Answers Prometheus over HTTP, on a port and threads of its own."""

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric

from ..errors import AddressUnusable

log = structlog.get_logger()


class MetricsPort:
    """Where metrics are asked for; `address` is empty where that is nowhere.

    Args:
        address: HOST:PORT, or empty.
        collect: Gives the metrics as they are; called on any thread, by several at a time.

    Raises:
        AddressUnusable: The address cannot be had.
    """

    def __init__(self, address: str, collect: Callable[[], Iterable[Metric]]) -> None:
        self.address = address
        if not address:
            return
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(collect))
        host, _, port = address.rpartition(":")
        try:
            family, *_, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            self._server = _Server(family, (str(place[0]), int(place[1])))
        except OSError as exc:
            raise AddressUnusable(f"cannot listen for metrics on {address}: {exc.strerror}") from exc
        self._server.set_app(_polite(make_wsgi_app(registry)))
        self.address = f"{host}:{self._server.server_port}"

    def start(self) -> None:
        """Answers from now on, until the process ends: the last scrape of a draining service counts, too."""
        if self.address:
            threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()


def merge_metrics(processes: Iterable[Iterable[Metric]]) -> list[Metric]:
    """The metrics of several processes as one: their labels tell them apart."""
    merged: dict[str, Metric] = {}
    for metrics in processes:
        for metric in metrics:
            if metric.name in merged:
                merged[metric.name].samples.extend(metric.samples)
            else:
                merged[metric.name] = metric
    return list(merged.values())


def _polite(app: Any) -> Any:
    """`app`, which answers 400 where prometheus_client breaks on a header, such as `Accept: ...; version=x`."""

    def answer(environ: Any, start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except (TypeError, ValueError) as exc:
            log.debug("metrics refused", reason=str(exc))
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"the request's headers cannot be read\n"]

    return answer


class _Collector:
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds: a connection that says nothing ends

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for each scrape."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, family: int, place: tuple[str, int]) -> None:
        self.address_family = family
        super().__init__(place, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asked has left in the middle."""
        log.debug("metrics not delivered", client=str(client_address), exc_info=True)
