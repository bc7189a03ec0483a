"""Answers a browser over HTTP. Knows nothing of drawings.

GET / is the page; GET /models says what is served; POST /classify takes a line of .ndjson and says what a model makes
of it. Whatever cannot be answered is `{"error": "one line"}`.
"""

import ipaddress
import json
import socket
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, RawIOBase
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from .. import errors
from .classification_api import Answers
from .page import Page

MAX_BODY_BYTES = 1 << 20

_CHUNK_BYTES = 1 << 16
_LENGTH_DIGITS = 20  # of a Content-Length: already far too many

_STATUSES: dict[type[errors.SketchbatchError], HTTPStatus] = {
    errors.RequestRefused: HTTPStatus.BAD_REQUEST,
    errors.ModelNotFound: HTTPStatus.NOT_FOUND,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}  # any other: BAD_GATEWAY

_Query = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Site:
    """What every exchange needs."""

    page: Page
    answers: Answers
    host: str
    """Where we were told to listen, as it was said."""
    request_s: float
    """Longest that a request may take to come, and a connection be idle, in seconds."""


class _Refused(Exception):
    """A request that is not answered, and the status that says so."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Incoming(RawIOBase):
    """What a connection brings until a given moment: a peer that sends a byte now and then gains nothing by it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.give_up_at = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining_s = self.give_up_at - monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining_s)
        return self._connection.recv_into(buffer)


class Exchange(BaseHTTPRequestHandler):
    """One connection: its requests, one after the other."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sketchbatch", ""
    disable_nagle_algorithm = True  # or a body would wait 40 ms for its head to be acknowledged

    def __init__(self, site: Site, *connection: Any) -> None:
        self._site = site
        super().__init__(*connection)

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.give_up_at = monotonic() + self._site.request_s
        self._unread_bytes = 0
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer({"/": self._page, "/models": self._models})

    def do_POST(self) -> None:
        self._answer({"/classify": self._classify})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Says what http.server refuses by itself."""
        self._send_error(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, *_: object) -> None:
        """Nothing: who draws asks many times a second."""

    def _answer(self, answers: Mapping[str, Callable[[_Query], None]]) -> None:
        try:
            length = self.headers.get("Content-Length", "")
            self._unread_bytes = int(length[:_LENGTH_DIGITS]) if length.isdecimal() else 0
            self._check_host()
            url = self._url()
            if url.path not in answers:
                raise _Refused(HTTPStatus.NOT_FOUND, f"{self.command} takes {', '.join(answers)}, got {url.path}")
            answers[url.path]({name: values[-1] for name, values in parse_qs(url.query).items()})
        except _Refused as exc:
            self._send_error(exc.status, str(exc))
        except errors.SketchbatchError as exc:
            self._send_error(_STATUSES.get(type(exc), HTTPStatus.BAD_GATEWAY), str(exc))
        except OSError:  # the browser has left
            raise
        except Exception:  # the page must hear of it; the cause is for the terminal
            traceback.print_exc()
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "this broke; the terminal of `sketchbatch demo` has why")

    def _check_host(self) -> None:
        """Refuses other pages whose name somebody points here (DNS rebinding): no address, no localhost."""
        asked = self.headers.get("Host", "")
        if not _is_own_name(asked, self._site.host):
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, f"Host must be localhost or an IP address, got {asked!r}")

    def _url(self) -> SplitResult:
        try:
            return urlsplit(self.path)
        except ValueError as exc:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"no address of this page: {exc}") from exc

    def _page(self, _: _Query) -> None:
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self._site.page.html)

    def _models(self, _: _Query) -> None:
        self._send_json(HTTPStatus.OK, asdict(self._site.answers.models()))

    def _classify(self, query: _Query) -> None:
        line = self._body()
        scored = self._site.answers.classify(line, query.get("model_name", ""), query.get("model_version", ""))
        self._send_json(HTTPStatus.OK, asdict(scored))

    def _body(self) -> bytes:
        kind = self.headers.get_content_type()
        if kind != "application/json":  # the one kind of these that no other page can send here unasked
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json, got {kind}")
        if not self._unread_bytes:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length must say how many bytes come")
        if self._unread_bytes > MAX_BODY_BYTES:
            message = f"a drawing must have at most {MAX_BODY_BYTES:,} bytes, got {self._unread_bytes:,}"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        try:
            body = self.rfile.read(self._unread_bytes)
        except TimeoutError as exc:
            message = f"a request must come whole within {self._site.request_s:g} s"
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, message) from exc
        self._unread_bytes -= len(body)
        return body

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        """Ends the connection, too: what else comes on it need not be a request."""
        self.close_connection = True
        self._send_json(status, {"error": " ".join(message.split())})
        while self._unread_bytes > 0 and (chunk := self.rfile.read(min(_CHUNK_BYTES, self._unread_bytes))):
            self._unread_bytes -= len(chunk)  # closed before all has come, the connection would lose the answer

    def _send_json(self, status: HTTPStatus, answer: Mapping[str, object]) -> None:
        self._send(status, "application/json", json.dumps(answer, ensure_ascii=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(self._site.request_s)
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": self._site.page.policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close" if self.close_connection else "keep-alive",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _is_own_name(asked: str, own: str) -> bool:
    """Whether a Host header says an IP address, localhost, or where we were told to listen."""
    try:
        name = urlsplit(f"//{asked}").hostname or ""
        if name not in ("localhost", own):
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
