"""Bind the addresses of a gRPC server, HOST:PORT or unix:PATH, and close them with their connections."""

import asyncio
import errno
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from ..address import HostPort, socket_path
from ..errors import AddressUnusable

log = structlog.get_logger()

REJECTION_S = 0.1  # a stopping server rejects calls with UNAVAILABLE for this time, so that few end with CANCELLED

_CONNECT_S = 1.0
_GOAWAY_S = 1.0  # seconds in which the clients of a stopping server may close their connections
_IDLE_CHECK_S = 0.02  # seconds between two checks of whether the last call of a stopping server has ended


def bind(address: str, add_port: Callable[[str], int], *, purpose: str = "") -> str:
    """Bind `address` with `add_port`, and return the address with the bound port; an error message contains `purpose`.

    A socket file that no process listens on is replaced. gRPC removes the file when the server stops.

    Raises:
        AddressUnusable: The address is in use, does not belong to this machine, or is not a path for a socket.
    """
    path = socket_path(address)
    if path:
        _check_path(path, address, purpose)
        address = f"unix:{path}"  # the form in which gRPC binds the path that was checked
    try:
        port = add_port(address)
    except RuntimeError:  # grpc.aio's error for an address that it cannot bind
        port = 0
    if not port:
        reason = "the folder must exist and be writable" if path else _problem(HostPort.parse(address))
        raise AddressUnusable(f"cannot listen {purpose}on {address}: {reason}")
    return address if path else str(replace(HostPort.parse(address), port=port))


def _problem(address: HostPort) -> str:
    """Return why an address cannot be bound, which gRPC does not report."""
    try:
        family, place = address.resolve()
        with socket.socket(family) as tried:
            tried.bind(place)
    except socket.gaierror as exc:
        return f"{address.host} cannot be resolved: {exc.strerror}"
    except OSError as exc:
        known = {errno.EADDRINUSE: "the port is in use", errno.EADDRNOTAVAIL: "this machine has no such address"}
        return known.get(exc.errno or 0, exc.strerror or str(exc))
    return "the port was in use until now: start the service again"


def close(address: str) -> None:
    """Refuse connections to a bound address from now on; open connections stay.

    gRPC has no function for this. After `shutdown` of the listening socket, the kernel refuses connections, and gRPC
    stops accepting them. The listener stays open, with a warning, where /dev/fd cannot be read. A listener on
    a socket file stays open, too: another process would replace a file that refuses connections, and gRPC would then
    remove the file of that process.
    """
    if socket_path(address):
        return
    try:
        for listener in _sockets(accepts=True):
            with listener:
                if _is_bound_to(listener, address):
                    listener.shutdown(socket.SHUT_RDWR)
    except OSError as exc:  # no free file descriptor, no /dev/fd, or macOS, which cannot shut down a listener
        log.warning("listener not closed, a stop may refuse requests", address=address, reason=str(exc))


def close_connections(address: str) -> None:
    """Close the open connections of a bound address, whose calls have ended or receive UNAVAILABLE.

    gRPC has no function for this. It waits 20 s for a client that does not react to GOAWAY.
    """
    try:
        for connection in _sockets(accepts=False):
            with connection, suppress(OSError):  # closed meanwhile, or not connected
                if _is_bound_to(connection, address):
                    connection.shutdown(socket.SHUT_RDWR)
    except OSError as exc:
        log.warning("connections not closed, the stop may take 20 s", address=address, reason=str(exc))


def count_connections(addresses: Sequence[str]) -> int:
    """Return the number of open connections of bound addresses; it takes about 8 us per open file.

    gRPC reports this number only through channelz, which also counts each call and so makes calls slower.
    """
    paths = [socket_path(address) for address in addresses]
    names = {
        str(path) if path else HostPort.parse(address).port for address, path in zip(addresses, paths, strict=True)
    }
    return sum(_connection_name(number) in names for number in open_descriptors())


def _connection_name(descriptor: int) -> int | str | None:
    """Return the local port or path of a connected socket; None for every other file descriptor."""
    try:
        # The family is always given as AF_UNIX, because Python then makes two system calls less. This is harmless for
        # sockets of other families: the family only limits the length of addresses, and AF_UNIX has the longest.
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptor)
    except OSError:  # not a socket, or closed since it was listed
        return None
    try:
        address: tuple[str, int] | str = found.getsockname()
        accepts = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        return None
    finally:
        found.detach()  # gRPC closes it
    if accepts:
        return None
    return address if isinstance(address, str) else address[1]


def open_descriptors() -> Sequence[int]:
    """Return the open file descriptors of this process, also while no further one can be opened."""
    try:
        return [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - three times as fast as Path.iterdir
    except OSError as exc:
        if exc.errno != errno.EMFILE:
            raise
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # all up to the limit are open


async def wait_for_end(
    ended: "asyncio.Future[Any]", forced: "asyncio.Future[Any] | None", grace_s: float, is_idle: Callable[[], bool]
) -> bool:
    """Wait until a stopping server has `ended`, and return whether it has.

    The wait is shorter if `forced` is settled, after `grace_s` seconds, or a second after the last call has ended, as
    reported by `is_idle`: only connections of clients that do not react to GOAWAY are left then.
    """
    idle = asyncio.ensure_future(_become_idle(is_idle))
    reasons = [ended, forced] if forced else [ended]
    await asyncio.wait([*reasons, idle], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    if idle.done():
        await asyncio.wait(reasons, timeout=_GOAWAY_S, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    return ended.done()


async def _become_idle(is_idle: Callable[[], bool]) -> None:
    while not is_idle():
        await asyncio.sleep(_IDLE_CHECK_S)


def _sockets(*, accepts: bool) -> Iterator[socket.socket]:
    """Yield a duplicate of each socket of this process that accepts connections, or of each other socket."""
    for file in Path("/dev/fd").iterdir():
        try:
            duplicate = os.dup(int(file.name))
        except OSError as exc:
            if exc.errno == errno.EBADF:  # closed since it was listed
                continue
            raise
        if not stat.S_ISSOCK(os.fstat(duplicate).st_mode):
            os.close(duplicate)
            continue
        found = socket.socket(fileno=duplicate)
        if bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) is accepts:
            yield found
        else:
            found.close()


def _is_bound_to(found: socket.socket, address: str) -> bool:
    if path := socket_path(address):
        return found.family == socket.AF_UNIX and found.getsockname() == str(path)
    is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    return is_tcp and bool(found.getsockname()[1] == HostPort.parse(address).port)


def _check_path(path: Path, address: str, purpose: str) -> None:
    """Raise AddressUnusable if a process listens on the socket file, or if the file is not a socket."""
    if not path.exists():
        return
    if not path.is_socket():
        raise AddressUnusable(f"cannot listen {purpose}on {address}: the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_S)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # its process has ended
        except PermissionError as exc:
            raise AddressUnusable(f"cannot listen {purpose}on {address}: {exc.strerror}") from exc
        except OSError:  # its process is too busy to accept a connection
            pass
    raise AddressUnusable(f"cannot listen {purpose}on {address}: another process listens on it")
