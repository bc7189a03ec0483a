"""Accept connections of browsers, with one thread and one `RequestHandler` for each."""

import ipaddress
import socket
import sys
import traceback
from socketserver import TCPServer, ThreadingMixIn

from ..rpc.connections.targets import split_address
from .classification_api import ClassificationApi
from .http_handler import RequestHandler
from .page import read_page


class PageServer(ThreadingMixIn, TCPServer):
    """The server of the page: listens once constructed, and responds in `serve_forever`.

    The address is HOST:PORT; port 0 = a free port. `request_s` is the longest time to receive a request and the longest
    idle time of a connection, in seconds. Raises ValueError if the address is invalid, OSError if it is unusable.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, api: ClassificationApi, *, request_s: float = 10.0) -> None:
        host, port = split_address(address)
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"must be HOST:PORT, got {address!r}")
        self.page, self.policy = read_page()
        self.api, self.host, self.request_s = api, host, request_s
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, int(port)), RequestHandler)
        except OSError as exc:
            raise OSError(f"cannot listen on {address}: {exc.strerror}; choose another with --address") from exc

    @property
    def url(self) -> str:
        """Address of the page for a browser on this machine."""
        host, port = self.server_address[:2]
        name = ipaddress.ip_address(str(host))
        if name.is_unspecified:
            return f"http://localhost:{port}/"
        return f"http://[{name}]:{port}/" if name.version == 6 else f"http://{name}:{port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print unexpected errors, but not those of a browser that closed its connection."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()
