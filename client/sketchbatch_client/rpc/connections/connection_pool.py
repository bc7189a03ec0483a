"""Hold the connections of a client and choose one for each request.

A request uses the connection with the fewest requests in flight; of equals, the one that was used least recently. A
connection that failed backs off for the time that its server or the retry policy sets, and is then used again.

The kernel assigns each connection of a service to one of its worker processes. `Server.candidates` opens connections
until every worker has responded over one. The pool works with channels of grpc and grpc.aio and sends no RPC itself.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import attrgetter
from typing import Any

from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub

from ...errors import Unavailable
from .targets import server_count

_CLASSIFY = f"/{pb.DESCRIPTOR.services_by_name['ClassifierService'].full_name}/Classify"
_TRIES_PER_WORKER = 8  # the kernel picks a worker at random: with 4 workers, 32 tries miss one in 1 of 2,500 cases
_LOAD = attrgetter("in_flight", "last_request")  # sort key of a connection
_IN_FLIGHT = 4  # requests that keep one server busy: one or two in the model, one being read, one being answered


class Connection:
    """One channel, its RPCs, its load and its failures."""

    def __init__(self, server: "Server", channel: Any) -> None:
        self.server = server
        self.channel = channel
        self.stub: Any = ClassifierServiceStub(channel)
        self.classify: Any = channel.unary_unary(  # takes the bytes that `request.encode` returns
            _CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString
        )
        self.in_flight = 0
        self.last_request = 0  # number of the last request, counted over all connections
        self.failures = 0  # consecutive
        self.backs_off_until = 0.0  # clock seconds


class Server:
    """One target: a server of one or more worker processes, or a name that gRPC resolves to several servers."""

    def __init__(self, target: str, open_channel: Callable[[str], Any]) -> None:
        self.target = target
        self.workers = 1
        self.by_worker: dict[int, Connection] = {}
        self._open_channel = open_channel

    def open(self) -> Connection:
        return Connection(self, self._open_channel(self.target))

    def candidates(self, first: Connection) -> Iterator[Connection]:
        """Yield `first` and new connections; the caller sends GetModel over each and registers the response."""
        if not self.by_worker:
            yield first
        for _ in range(self.workers * _TRIES_PER_WORKER):
            if len(self.by_worker) >= self.workers:
                return
            yield self.open()


class ConnectionPool:
    """The connections to all targets: `channels` to each, or one to each of its workers. Thread-safe."""

    def __init__(
        self,
        targets: Sequence[str],
        open_channel: Callable[[str], Any],
        channels: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be 1 or more, or None, got {channels}")
        self._clock = clock
        self._lock = threading.Lock()
        self._requests = 0
        self._connections = [
            server.open()
            for server in [Server(target, open_channel) for target in targets]
            for _ in range(channels or 1)
        ]
        self._needs_discovery = channels is None
        self._is_closed = False

    @property
    def default_in_flight(self) -> int:
        """Requests in flight that keep all servers busy."""
        return _IN_FLIGHT * sum(server_count(each.server.target) for each in self._connections)

    def close(self) -> list[Any]:
        """Hand out no more connections; return the channels that the caller must close."""
        with self._lock:
            self._is_closed = True
            self._needs_discovery = False
            return [connection.channel for connection in self._connections]

    def acquire(self, tried: Collection[Connection]) -> Connection:
        """Return a connection to use and `release`; none of `tried` if another is usable. Raises Unavailable."""
        with self._lock:
            if self._is_closed:
                raise Unavailable("the client was closed")
            usable = self._usable(tried)
            chosen = min(usable, key=_LOAD) if usable else min(self._connections, key=lambda each: each.backs_off_until)
            self._requests += 1
            chosen.last_request = self._requests
            chosen.in_flight += 1
            return chosen

    def release(self, connection: Connection) -> None:
        with self._lock:
            connection.in_flight -= 1

    def back_off(self, connection: Connection, delay_s: float) -> None:
        """Avoid a connection for `delay_s` after a failure; further failures in that time do not count."""
        with self._lock:
            now = self._clock()
            if connection.backs_off_until <= now:
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

    def begin_discovery(self) -> list[tuple[Server, Connection]]:
        """Return each server with its first connection, to discover its workers; nothing after the first call."""
        with self._lock:
            needs_discovery, self._needs_discovery = self._needs_discovery, False
            return [(each.server, each) for each in self._connections] if needs_discovery else []

    def register(self, connection: Connection, model: pb.Model) -> bool:
        """Record which worker a connection reaches.

        Return False if another connection already reaches the same worker; the caller then closes this connection.
        """
        server = connection.server
        with self._lock:
            server.workers = max(1, model.workers)
            is_first = server.by_worker.setdefault(model.worker, connection) is connection
            if connection in self._connections:
                return True
            if is_first:
                self._connections.append(connection)
            return is_first

    def _usable(self, tried: Collection[Connection]) -> list[Connection]:
        now = self._clock()
        return [each for each in self._connections if each.backs_off_until <= now and each not in tried]
