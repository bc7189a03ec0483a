"""Listens for browsers: a thread for each connection, which is an `Exchange`."""

import ipaddress
import socket
import sys
import traceback
from functools import partial
from socketserver import TCPServer, ThreadingMixIn

from .classification_api import Answers
from .http_handler import Exchange, Site
from .page import read_page


class PageServer(ThreadingMixIn, TCPServer):
    """Listens from the start, and answers in `serve_forever`.

    Args:
        address: HOST:PORT; port 0 = a free one.
        answers: What the page asks.
        request_s: Longest that a request may take to come, and a connection be idle, in seconds.

    Raises:
        OSError: Nobody can listen there; the message says where and why.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, answers: Answers, *, request_s: float = 10.0) -> None:
        host, port = _host_and_port(address)
        site = Site(read_page(), answers, host, request_s)
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), partial(Exchange, site))
        except OSError as exc:
            raise OSError(f"cannot listen on {address}: {exc.strerror}; choose another with --address") from exc

    @property
    def url(self) -> str:
        """Where to open the page on this machine."""
        host, port = self.server_address[:2]
        name = ipaddress.ip_address(str(host))
        if name.is_unspecified:
            return f"http://localhost:{port}/"
        return f"http://[{name}]:{port}/" if name.version == 6 else f"http://{name}:{port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves in the middle is no error."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise OSError(f"--address must be HOST:PORT, got {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
