"""Parse the HOST:PORT addresses of the settings."""

import socket
from dataclasses import dataclass
from typing import Any

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104 - nothing listens here


@dataclass(frozen=True, slots=True)
class HostPort:
    """Host and port of a TCP socket."""

    host: str  # name or IP address; an IPv6 address stands in brackets, as in `[::1]`
    port: int  # 0 to 65535; 0 = the kernel chooses a free port

    @classmethod
    def parse(cls, address: str) -> "HostPort":
        """Split `address` at its last colon; raise ValueError without a host, or unless the port is 0 to 65535."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"must be HOST:PORT, PORT 0..65535, got {address!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def loopback(self) -> "HostPort":
        """Return the same port on the loopback interface if the host means all interfaces."""
        return HostPort(_LOOPBACK.get(self.host, self.host), self.port)

    def resolve(self) -> tuple[int, Any]:
        """Return the socket family and address that the resolver returns first; raise OSError if it finds none."""
        family, *_, address = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)[0]
        return family, address
