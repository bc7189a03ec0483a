"""Serve metrics to Prometheus over HTTP, on a separate port and separate threads."""

import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from socketserver import ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric

from ..address import HostPort
from ..background import Component, ComponentName, keep_running
from ..errors import AddressUnusable

log = structlog.get_logger()


class MetricsPort:
    """HTTP server for metrics, as a context manager; without an address it does nothing, and `address` is empty.

    Health ignores its errors: Prometheus reports a scrape that fails.
    """

    def __init__(self, address: str, collect: Callable[[], Iterable[Metric]]) -> None:
        """Bind HOST:PORT, or raise AddressUnusable. Several threads call `collect` concurrently."""
        self.address = address
        self._server: _Server | None = None
        if not address:
            return
        self._collect = collect
        self._component = Component(ComponentName.METRICS_PORT)
        self._closing = threading.Event()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        wanted = HostPort.parse(address)
        try:
            self._server = self._listen(wanted)
        except OSError as exc:
            raise AddressUnusable(f"cannot listen for metrics on {address}: {exc.strerror}") from exc
        self._server.set_app(_answer_errors(make_wsgi_app(registry)))
        self.address = str(replace(wanted, port=self._server.server_port))
        work = partial(keep_running, self._component, self._answer_scrapes, self._closing)
        self._thread = threading.Thread(target=work, name="metrics", daemon=True)

    def _listen(self, wanted: HostPort) -> "_Server":
        """Bind the port; 0.0.0.0 includes IPv6 if the machine has it, as for gRPC."""
        if wanted.host == "0.0.0.0":  # noqa: S104 - the address of the settings
            with suppress(OSError):
                return self._server_at(replace(wanted, host="[::]"))
        return self._server_at(wanted)

    def _server_at(self, address: HostPort) -> "_Server":
        return _Server(*address.resolve(), component=self._component, closing=self._closing)

    def __enter__(self) -> Self:
        """Start to answer scrapes."""
        if self._server:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the port; a scrape that is being answered may be cut off."""
        if self._server:
            self._closing.set()
            with suppress(OSError):  # macOS cannot shut down a listener: the thread then ends after `timeout`
                self._server.socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._server.server_close()

    def _answer_scrapes(self) -> None:
        while self._server and not self._closing.is_set():
            self._server.handle_request()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics; the registry calls the method of this name."""
        try:
            metrics = list(self._collect())
        except Exception as exc:
            self._component.record_error(exc)
            raise _CollectFailed from exc
        self._component.record_success()
        return metrics


def merge_metrics(processes: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Merge the metrics of several processes; the label `worker` distinguishes their series."""
    merged: dict[str, Metric] = {}
    for metric in chain.from_iterable(processes):
        if metric.name in merged:
            merged[metric.name].samples.extend(metric.samples)
        else:
            merged[metric.name] = metric
    return list(merged.values())


class _CollectFailed(Exception):
    """The metrics could not be collected; the cause is in the log."""


def _answer_errors(app: Any) -> Any:
    """Wrap `app` to answer 500 if the metrics cannot be collected, and 400 for a header that `app` cannot read.

    An example of such a header is `Accept: ...; version=x`.
    """

    def answer(environ: Any, start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except _CollectFailed:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"the metrics cannot be collected: see the log\n"]
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
    timeout = 0.5  # longest wait of `handle_request`, in seconds

    def __init__(
        self, family: int, address: tuple[Any, ...], *, component: Component, closing: threading.Event
    ) -> None:
        self.address_family = family
        self._component = component
        self._closing = closing
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def server_bind(self) -> None:
        """Bind the socket; `[::]` includes IPv4, whatever the default of the machine is."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; after an error, wait: without a file descriptor the loop would use all of a processor.

        Raise OSError, which the loop ignores, if no connection can be accepted.
        """
        try:
            return super().get_request()
        except OSError as exc:
            if not self._closing.is_set():
                self._closing.wait(self._component.record_error(exc))
            raise

    def handle_error(self, request: object, client_address: object) -> None:
        """Log that the client closed the connection before it received the response, or that no thread could start."""
        error = sys.exception()
        if error is None or isinstance(error, ConnectionError | TimeoutError):
            log.debug("metrics not delivered", client=str(client_address), exc_info=True)
        else:
            self._component.record_error(error)
