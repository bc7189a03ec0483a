"""Listen at the address of the page, and serve its application with uvicorn."""

import ipaddress
import os
import socket

import uvicorn

from ..rpc.connections.targets import split_address
from .application import application
from .classification_api import ClassificationApi
from .page import read_page

_STOPPING_S = 2  # longest time for open requests after Ctrl-C or SIGTERM
_MOST_CONNECTIONS = 100  # more than the tabs of some browsers; others receive status 503


class PageServer:
    """The server of the page: listens once constructed, and responds in `serve_forever`.

    The address is HOST:PORT; port 0 = a free port. `request_s` is the longest time to receive the body of a request,
    in seconds. Raises ValueError if the address is invalid, OSError if it is unusable.
    """

    def __init__(self, address: str, api: ClassificationApi, *, request_s: float = 10.0) -> None:
        host, port = split_address(address)
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"must be HOST:PORT, got {address!r}")
        try:
            self._listener = _listen(host, int(port))
        except OSError as exc:
            raise OSError(f"cannot listen on {address}: {exc.strerror}; choose another with --address") from exc
        self.server_address = self._listener.getsockname()
        page, policy = read_page()
        app = application(api, page, host=host, request_s=request_s)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the page sends many requests per second, and a peer may send anything
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[
                    ("Cache-Control", "no-store"),
                    ("Content-Security-Policy", policy),
                    ("Cross-Origin-Resource-Policy", "same-origin"),
                    ("Referrer-Policy", "no-referrer"),
                    ("X-Content-Type-Options", "nosniff"),
                ],
                timeout_graceful_shutdown=_STOPPING_S,
                limit_concurrency=_MOST_CONNECTIONS,
            )
        )

    def __enter__(self) -> "PageServer":
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()

    @property
    def url(self) -> str:
        """Address of the page for a browser on this machine."""
        host, port = self.server_address[:2]
        name = ipaddress.ip_address(str(host))
        if name.is_unspecified:
            return f"http://localhost:{port}/"
        return f"http://[{name}]:{port}/" if name.version == 6 else f"http://{name}:{port}/"

    def serve_forever(self) -> None:
        """Respond until `shutdown`, SIGINT or SIGTERM; then call the handler that the signal had before."""
        self._server.run(sockets=[self._listener])

    def shutdown(self) -> None:
        """Let `serve_forever` return after the open requests."""
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    # asyncio sends without delay (TCP_NODELAY) only if the protocol is named; otherwise each response waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # on Windows, the option would allow two servers at one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
