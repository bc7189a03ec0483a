"""Handle the HTTP requests of a browser. This module knows nothing of drawings.

GET / returns the page, GET /models the served models, and POST /classify takes one .ndjson line and returns its scores.
Every error response is `{"error": "one line"}`.
"""

import ipaddress
import socket
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, RawIOBase
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from .. import errors
from ..strict_json import encode

if TYPE_CHECKING:
    from .server import PageServer

MAX_BODY_BYTES = 1 << 20

_CHUNK_BYTES = 1 << 16
_LENGTH_DIGITS = 20  # digits of a Content-Length that are parsed; a longer number is too large in any case

_STATUSES: dict[type[errors.SketchbatchError], HTTPStatus] = {
    errors.RequestRefused: HTTPStatus.BAD_REQUEST,
    errors.ModelNotFound: HTTPStatus.NOT_FOUND,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}  # all others: BAD_GATEWAY

_Query = Mapping[str, str]


class _Rejected(Exception):
    """Raised to reject a request; its arguments are the HTTP status and the error message of the response."""


class _DeadlineReader(RawIOBase):
    """Reads from a connection until a deadline, which a peer cannot extend by sending single bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0  # time.monotonic seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining_s = self.deadline - monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining_s)
        return self._connection.recv_into(buffer)


class RequestHandler(BaseHTTPRequestHandler):
    """Handles the requests of one connection, one after the other."""

    server: "PageServer"
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sketchbatch", ""
    disable_nagle_algorithm = True  # otherwise a body waits 40 ms for the acknowledgement of its header

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._reader = _DeadlineReader(self.connection)
        self.rfile = BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._reader.deadline = monotonic() + self.server.request_s
        self._unread_bytes = 0
        super().handle_one_request()

    def do_GET(self) -> None:
        self._handle({"/": self._get_page, "/models": self._get_models})

    def do_POST(self) -> None:
        self._handle({"/classify": self._classify})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the errors that `http.server` detects itself."""
        self._send_error(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, *_: object) -> None:
        """Log nothing: the page sends many requests per second."""

    def _handle(self, routes: Mapping[str, Callable[[_Query], None]]) -> None:
        try:
            length = self.headers.get("Content-Length", "")
            self._unread_bytes = int(length[:_LENGTH_DIGITS]) if length.isdecimal() else 0
            self._check_host()
            url = self._url()
            if url.path not in routes:
                raise _Rejected(HTTPStatus.NOT_FOUND, f"{self.command} must be for {', '.join(routes)}, got {url.path}")
            routes[url.path]({name: values[-1] for name, values in parse_qs(url.query).items()})
        except _Rejected as exc:
            self._send_error(*exc.args)
        except errors.SketchbatchError as exc:
            self._send_error(_STATUSES.get(type(exc), HTTPStatus.BAD_GATEWAY), str(exc))
        except OSError:  # the browser closed the connection
            raise
        except Exception:  # the page needs a response; the terminal shows the cause
            traceback.print_exc()
            message = "internal error: the terminal of `sketchbatch demo` shows the cause"
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, message)

    def _check_host(self) -> None:
        """Reject foreign host names: another site may let its name resolve to this server (DNS rebinding)."""
        host = self.headers.get("Host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name not in ("localhost", self.server.host):
                ipaddress.ip_address(name)
        except ValueError as exc:
            message = f"Host must be localhost or an IP address, got {host!r}"
            raise _Rejected(HTTPStatus.MISDIRECTED_REQUEST, message) from exc

    def _url(self) -> SplitResult:
        try:
            return urlsplit(self.path)
        except ValueError as exc:
            raise _Rejected(HTTPStatus.BAD_REQUEST, f"the path is not a valid URL: {exc}") from exc

    def _get_page(self, _: _Query) -> None:
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def _get_models(self, _: _Query) -> None:
        self._send_json(HTTPStatus.OK, self.server.api.models())

    def _classify(self, query: _Query) -> None:
        line = self._body()
        model = query.get("model_name", ""), query.get("model_version", "")
        self._send_json(HTTPStatus.OK, self.server.api.classify(line, *model))

    def _body(self) -> bytes:
        kind = self.headers.get_content_type()
        # A browser lets a page of another site send this type only if this server allows it (CORS).
        if kind != "application/json":
            raise _Rejected(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json, got {kind}")
        if not self._unread_bytes:
            raise _Rejected(HTTPStatus.LENGTH_REQUIRED, "Content-Length must be the number of bytes in the body")
        if self._unread_bytes > MAX_BODY_BYTES:
            message = f"a drawing must have at most {MAX_BODY_BYTES:,} bytes, got {self._unread_bytes:,}"
            raise _Rejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        try:
            body = self.rfile.read(self._unread_bytes)
        except TimeoutError as exc:
            message = f"a request must arrive completely within {self.server.request_s:g} s"
            raise _Rejected(HTTPStatus.REQUEST_TIMEOUT, message) from exc
        self._unread_bytes -= len(body)
        return body

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        """Send an error and close the connection, since the bytes that follow may not be a request."""
        self.close_connection = True
        self._send_json(status, {"error": " ".join(message.split())})
        while self._unread_bytes > 0 and (chunk := self.rfile.read(min(_CHUNK_BYTES, self._unread_bytes))):
            self._unread_bytes -= len(chunk)  # a close with unread bytes would discard the response

    def _send_json(self, status: HTTPStatus, content: Mapping[str, object]) -> None:
        self._send(status, "application/json", encode(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(self.server.request_s)
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close" if self.close_connection else "keep-alive",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
