"""Respond to the HTTP requests of a browser. This module knows nothing of drawings.

GET / returns the page, GET /models the served models, and POST /classify takes one .ndjson line and returns its scores.
Every error response is `{"error": "one line"}`.
"""

import asyncio
import ipaddress
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import h11
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import errors
from ..strict_json import encode
from .classification_api import ClassificationApi

MAX_BODY_BYTES = 1 << 20

_STATUSES: dict[type[errors.SketchbatchError], HTTPStatus] = {
    errors.RequestRefused: HTTPStatus.BAD_REQUEST,
    errors.ModelNotFound: HTTPStatus.NOT_FOUND,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}  # all others: BAD_GATEWAY


def application(api: ClassificationApi, page: bytes, *, host: str, request_s: float) -> Starlette:
    """Return the ASGI application of the page.

    It accepts `host` as name of this machine, localhost and IP addresses. `request_s` is the longest time to receive
    the body of a request, in seconds.
    """
    endpoints = _Endpoints(api, page, request_s)
    return Starlette(
        routes=[
            Route("/", endpoints.get_page, methods=["GET"]),
            Route("/models", endpoints.get_models, methods=["GET"]),
            Route("/classify", endpoints.classify, methods=["POST"]),
        ],
        middleware=[Middleware(_HostCheck, host=host)],
        exception_handlers={
            HTTPStatus.NOT_FOUND: _no_route,
            HTTPStatus.METHOD_NOT_ALLOWED: _no_route,
            HTTPException: _rejected,
            errors.SketchbatchError: _failed,
            Exception: _internal_error,
        },
    )


@dataclass(frozen=True, slots=True)
class _Endpoints:
    api: ClassificationApi
    page: bytes
    request_s: float

    async def get_page(self, _: Request) -> Response:
        return Response(self.page, media_type="text/html")

    async def get_models(self, _: Request) -> Response:
        return _json(await self.api.models())

    async def classify(self, request: Request) -> Response:
        line = await _body(request, self.request_s)
        query = request.query_params
        return _json(await self.api.classify(line, query.get("model_name", ""), query.get("model_version", "")))


class _HostCheck:
    """Rejects foreign host names: another site may let its name resolve to this server (DNS rebinding)."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            host = Request(scope).headers.get("host", "")
            if not self._is_own(host):
                message = f"Host must be localhost or an IP address, got {host!r}"
                app = _error(HTTPStatus.MISDIRECTED_REQUEST, message)
        await app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in ("localhost", self._host) or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


async def _body(request: Request, request_s: float) -> bytes:
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    # A browser lets a page of another site send this type only if this server allows it (CORS).
    if kind != "application/json":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be application/json, got {kind}")
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not length.isdecimal() or not int(length):
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "Content-Length must be the number of bytes in the body")
    if int(length) > MAX_BODY_BYTES:
        message = f"a drawing must have at most {MAX_BODY_BYTES:,} bytes, got {int(length):,}"
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    try:
        async with asyncio.timeout(request_s):
            return await request.body()
    except TimeoutError as exc:
        message = f"a request must arrive completely within {request_s:g} s"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message, {"Connection": "close"}) from exc
    except ClientDisconnect as exc:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the connection ended before the body") from exc


async def _no_route(request: Request, _: Exception) -> Response:
    routes = [route for route in request.app.routes if request.method in route.methods]
    if not routes:
        return _error(HTTPStatus.NOT_IMPLEMENTED, f"the method must be GET or POST, got {request.method}")
    paths = ", ".join(route.path for route in routes)
    return _error(HTTPStatus.NOT_FOUND, f"{request.method} must be for {paths}, got {request.scope['path']}")


async def _rejected(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return _error(exc.status_code, exc.detail, exc.headers)


async def _failed(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.SketchbatchError)
    return _error(_STATUSES.get(type(exc), HTTPStatus.BAD_GATEWAY), str(exc))


async def _internal_error(_: Request, exc: Exception) -> Response:
    if not isinstance(exc, h11.LocalProtocolError):  # uvicorn has already rejected a malformed body with status 400
        traceback.print_exception(exc)  # the page needs a response; the terminal shows the cause
    return _error(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the terminal of `sketchbatch demo` shows the cause"
    )


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": " ".join(message.split())}, status, headers)


def _json(
    content: Mapping[str, object], status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(encode(content), status, headers, media_type="application/json")
