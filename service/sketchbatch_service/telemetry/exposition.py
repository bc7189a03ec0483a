"""Serve metrics to Prometheus over HTTP, on a separate port and separate threads."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric

from ..address import HostPort
from ..errors import AddressUnusable

log = structlog.get_logger()


class MetricsPort:
    """HTTP server for metrics; without an address it does nothing, and `address` is empty."""

    def __init__(self, address: str, collect: Callable[[], Iterable[Metric]]) -> None:
        """Bind HOST:PORT, or raise AddressUnusable. Several threads call `collect` concurrently."""
        self.address = address
        if not address:
            return
        registry = CollectorRegistry(auto_describe=False)
        self.collect = collect  # the registry calls the method of this name
        registry.register(self)
        wanted = HostPort.parse(address)
        try:
            self._server = _Server(*wanted.resolve())
        except OSError as exc:
            raise AddressUnusable(f"cannot listen for metrics on {address}: {exc.strerror}") from exc
        self._server.set_app(_reject_bad_headers(make_wsgi_app(registry)))
        self.address = str(replace(wanted, port=self._server.server_port))

    def start(self) -> None:
        """Answer scrapes until the process ends, so that the last scrape includes the counts of the drain."""
        if self.address:
            threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()


def merge_metrics(processes: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Merge the metrics of several processes; the label `worker` distinguishes their series."""
    merged: dict[str, Metric] = {}
    for metric in chain.from_iterable(processes):
        if metric.name in merged:
            merged[metric.name].samples.extend(metric.samples)
        else:
            merged[metric.name] = metric
    return list(merged.values())


def _reject_bad_headers(app: Any) -> Any:
    """Wrap `app` to answer 400 if prometheus_client fails on a header such as `Accept: ...; version=x`."""

    def answer(environ: Any, start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except (TypeError, ValueError) as exc:
            log.debug("metrics request rejected", reason=str(exc))
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"the request's headers cannot be read\n"]

    return answer


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds after which an idle connection is closed

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the default is one line per scrape."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, family: int, address: tuple[Any, ...]) -> None:
        self.address_family = family
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log that the client closed the connection before it received the response."""
        log.debug("metrics not delivered", client=str(client_address), exc_info=True)
