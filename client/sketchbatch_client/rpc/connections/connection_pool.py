"""Hold the connections of a client and choose one for each request.

A request uses the connection with the fewest requests in flight; of equals, the one that was used least recently. A
connection that failed backs off for the time that its server or the retry policy sets, and is then used again.

The kernel assigns each connection of a service to one of its worker processes. `Server.candidates` opens connections
until every worker has responded over one. The pool works with channels of grpc and grpc.aio and sends no RPC itself.

If all servers of a DNS name fail, the name may have other servers now, but gRPC resolves it again only when a
connection closes. A new channel resolves the name at once, so `replace` puts one in the place of the failed channel.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any

from sketchbatch.v1 import classifier_pb2 as pb

from ...arguments import optional_whole_number
from ...errors import Unavailable
from .connection import Connection, OpenChannel, Server
from .targets import server_count

_LOAD = attrgetter("in_flight", "last_request")  # the connection with the lowest value is chosen
# Requests that keep one server busy: one or two in a model call, one that is read, and one whose response is sent.
_IN_FLIGHT = 4
_MAX_CHANNELS = 1_000  # to each target; each costs a socket and memory
_REPLACE_AFTER_S = 0.5  # lowest age of a channel that is replaced, so that an outage does not open many channels


class ConnectionPool:
    """The connections to all targets: `channels` to each, or one to each of its workers. Thread-safe."""

    def __init__(
        self,
        targets: Sequence[str],
        open_channel: OpenChannel,
        channels: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        channels = optional_whole_number("channels", channels, 1, _MAX_CHANNELS)
        self._clock = clock
        self._lock = threading.Lock()
        self._requests = 0
        self._connections = [
            server.open()
            for server in [Server(target, open_channel, clock) for target in targets]
            for _ in range(channels or 1)
        ]
        self._retired: set[Connection] = set()  # replaced connections that still have requests in flight
        self._needs_discovery = channels is None
        self.is_closed = False

    @property
    def default_in_flight(self) -> int:
        """Requests in flight that keep all servers busy."""
        return _IN_FLIGHT * sum(server_count(each.server.target) for each in self._connections)

    def close(self) -> list[Any]:
        """Hand out no more connections; return the channels that the caller must close."""
        with self._lock:
            self.is_closed = True
            self._needs_discovery = False
            retired, self._retired = self._retired, set()
            return [connection.channel for connection in (*self._connections, *retired)]

    def check_open(self, cause: Exception | None = None) -> None:
        """Raise Unavailable, caused by `cause`, if the client was closed."""
        if self.is_closed:
            raise Unavailable("the client was closed") from cause

    def acquire(self, tried: Collection[Connection]) -> Connection:
        """Return a connection, to use and then `release`; avoid those in `tried` and those that back off, if possible.

        Raises Unavailable if the client was closed.
        """
        with self._lock:
            self.check_open()
            usable = self._usable(tried)
            chosen = min(usable, key=_LOAD) if usable else min(self._connections, key=lambda each: each.backs_off_until)
            return self._begin_request(chosen)

    def release(self, connection: Connection) -> list[Any]:
        """End a request over a connection; return the channels that the caller must close.

        This is the channel of the connection itself, if it was replaced and has no more requests in flight.
        """
        with self._lock:
            connection.in_flight -= 1
            if connection.in_flight or connection not in self._retired:
                return []
            self._retired.remove(connection)
            return [connection.channel]

    def back_off(self, connection: Connection, delay_s: float) -> None:
        """Avoid a connection for `delay_s` after a failure; further failures in that time do not count."""
        with self._lock:
            now = self._clock()
            if connection.backs_off_until <= now:
                if not connection.failures:
                    connection.failing_since = now
                connection.failures += 1
                connection.backs_off_until = now + delay_s

    def restore(self, connection: Connection) -> None:
        """Reset the failures after a response, unless the connection backs off: a draining server still responds."""
        with self._lock:
            if connection.backs_off_until <= self._clock():
                connection.failures = 0

    def has_other(self, tried: Collection[Connection]) -> bool:
        """Return whether a connection that does not back off is left to try."""
        with self._lock:
            return bool(self._usable(tried))

    def replace(self, failed: Connection) -> bool:
        """Replace a failed channel to a name by a new one; return whether a connection is left to try.

        The failed channel takes no new requests, and is closed after its last request in flight: closing it at once
        would cancel these requests.
        """
        with self._lock:
            if failed not in self._connections:  # another request has replaced it
                return bool(self._usable([failed]))
            if not failed.server.is_name or self.is_closed or self._clock() < failed.opened_at + _REPLACE_AFTER_S:
                return False
            self._connections[self._connections.index(failed)] = failed.server.reopen(failed)
            self._retired.add(failed)
            return True

    def replaceable_in_s(self) -> float:
        """Return the seconds until the next channel is old enough for `replace`; infinity if there is no such one."""
        with self._lock:
            now = self._clock()
            times = (each.opened_at + _REPLACE_AFTER_S - now for each in self._connections if each.server.is_name)
            return min((each for each in times if each > 0), default=math.inf)

    def begin_discovery(self) -> list[Server]:
        """Return the servers whose workers must be discovered; only the first call returns any."""
        with self._lock:
            needs_discovery, self._needs_discovery = self._needs_discovery, False
            return [each.server for each in self._connections] if needs_discovery else []

    def acquire_from(self, server: Server) -> Connection:
        """Return a connection to one server, to use and then `release`. Raises Unavailable if the client was closed."""
        with self._lock:
            self.check_open()
            return self._begin_request(next(each for each in self._connections if each.server is server))

    def register(self, connection: Connection, model: pb.Model) -> bool:
        """Record which worker a connection reaches.

        Return False if another connection already reaches the same worker; the caller then closes this connection.
        """
        server = connection.server
        with self._lock:
            if connection in self._retired:
                return True
            server.workers = max(1, model.workers)
            is_first = server.by_worker.setdefault(model.worker, connection) is connection
            if connection in self._connections:
                return True
            if is_first:
                self._connections.append(connection)
            return is_first

    def _begin_request(self, connection: Connection) -> Connection:
        self._requests += 1
        connection.last_request = self._requests
        connection.in_flight += 1
        return connection

    def _usable(self, tried: Collection[Connection]) -> list[Connection]:
        now = self._clock()
        return [each for each in self._connections if each.backs_off_until <= now and each not in tried]
