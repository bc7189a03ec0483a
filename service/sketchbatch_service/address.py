"""Parse the addresses of the settings: HOST:PORT or unix:PATH."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - nothing listens here
_SOCKETS = ("unix", "unix-abstract")  # the schemes of gRPC for sockets of this machine
_UNUSABLE = "%?#,"  # characters that clients do not read as a part of the path
_MAX_PATH_BYTES = 107  # Linux: sockaddr_un.sun_path, without its last zero byte


@dataclass(frozen=True, slots=True)
class HostPort:
    """Host and port of a TCP socket."""

    host: str  # name or IP address; an IPv6 address stands in brackets, as in `[::1]`
    port: int  # 0 to 65535; 0 = the kernel chooses a free port

    @classmethod
    def parse(cls, address: str) -> "HostPort":
        """Split `address` at its last colon; raise ValueError unless both sides are valid."""
        host, _, port = address.rpartition(":")
        if address.partition(":")[0] in _SOCKETS:
            raise ValueError(f"must be HOST:PORT or [IPV6]:PORT, not a socket file, got {address!r}")
        is_host = host and "/" not in host and (":" not in host or (host[0], host[-1]) == ("[", "]"))
        if not is_host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"must be HOST:PORT or [IPV6]:PORT, PORT 0..65535, got {address!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def loopback(self) -> "HostPort":
        """Return this address; a host that means all interfaces is replaced by the loopback host."""
        return HostPort(_LOOPBACK.get(self.host, self.host), self.port)

    def resolve(self) -> tuple[int, Any]:
        """Return the socket family and address that the resolver returns first; raise OSError if it finds none."""
        try:
            found = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except UnicodeError as exc:  # a part of the name is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, "not a name of a host") from exc
        family, *_, address = found[0]
        return family, address


def socket_path(address: str) -> Path | None:
    """Return the path of the address unix:PATH; None for other addresses. Raise ValueError for an unusable path."""
    scheme, _, path = address.partition(":")
    if scheme not in _SOCKETS:
        return None
    if scheme == "unix-abstract":  # it has no file, and so no permissions
        text = "must be HOST:PORT or unix:PATH, not an abstract socket, which any process may use"
        raise ValueError(f"{text}, got {address!r}")
    if path.startswith("///"):  # gRPC also accepts unix:///absolute/path
        path = path.removeprefix("//")
    # gRPC clients would use another path than the one given here: they decode %20, cut the path at ? and #, and read
    # unix://a/b as /a/b. Our clients separate several targets with commas.
    is_readable = not set(path) & set(_UNUSABLE) and not path.startswith("//") and path[-1:] != "/"
    if not path or len(path.encode()) > _MAX_PATH_BYTES or not is_readable:
        raise ValueError(
            f"must be unix:PATH, PATH of 1..{_MAX_PATH_BYTES} bytes without any of {_UNUSABLE!r}, and not a folder, "
            f"got {address!r}"
        )
    return Path(path)


def loopback(address: str) -> str:
    """Return the address at which this machine reaches a server that listens on `address`."""
    return address if socket_path(address) else str(HostPort.parse(address).loopback())
