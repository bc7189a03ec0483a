"""Holds the connections to the servers, and says which to use next.

A request goes to the connection with the fewest under way, of equals to the one used longest ago. One that failed rests
for as long as its server's advice or the retry policy says, and is then tried again.

A service of several worker processes gives each connection to one of them: `Server.search` opens connections until
each worker has answered over one. Opens channels of either kind, grpc's and grpc.aio's; asks nothing itself.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub

from ...errors import Unavailable
from .targets import servers_behind

_CLASSIFY = f"/{pb.DESCRIPTOR.services_by_name['ClassifierService'].full_name}/Classify"
_TRIES_A_WORKER = 8  # connections fall to workers at random: of 4, 32 tries miss one once in 2,500 times
_IN_FLIGHT = 4  # requests that keep one server busy: one or two in the model, one read, one answered

OpenChannel = Callable[[str], Any]


class Connection:
    """One channel, its RPCs, and how they fare."""

    def __init__(self, server: "Server", channel: Any) -> None:
        self.server = server
        self.channel = channel
        self.stub: Any = ClassifierServiceStub(channel)
        self.classify: Any = channel.unary_unary(  # takes bytes, see `questions.encoded`
            _CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString
        )
        self.under_way = 0
        self.turn = 0  # of the last request, counted over all connections
        self.failed = 0  # times in a row
        self.rests_until = 0.0  # time.monotonic seconds


class Server:
    """One target: a server of one or more worker processes, or a name behind which gRPC finds several servers."""

    def __init__(self, target: str, open_channel: OpenChannel) -> None:
        self.target = target
        self.workers = 1
        self.by_worker: dict[int, Connection] = {}
        self._open_channel = open_channel

    def open(self) -> Connection:
        """Another connection."""
        return Connection(self, self._open_channel(self.target))

    def search(self, first: Connection) -> Iterator[Connection]:
        """`first` and new connections, each to be asked for its model and then given to `Servers.note`."""
        if not self.by_worker:
            yield first
        for _ in range(self.workers * _TRIES_A_WORKER):
            if len(self.by_worker) >= self.workers:
                return
            yield self.open()


class Servers:
    """The connections to all servers. Thread-safe.

    Args:
        targets: Each a server, or a name of several.
        open_channel: Opens one to a target.
        channels: How many to each target; None = one for each worker that answers there.
    """

    def __init__(self, targets: Sequence[str], open_channel: OpenChannel, channels: int | None) -> None:
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be 1 or more, or None, got {channels}")
        self._lock = threading.Lock()
        self._turns = 0
        self._connections = [
            server.open()
            for server in [Server(target, open_channel) for target in targets]
            for _ in range(channels or 1)
        ]
        self._search_is_over = channels is not None
        self._is_closed = False

    @property
    def in_flight(self) -> int:
        """Requests that keep all servers busy."""
        return _IN_FLIGHT * sum(servers_behind(each.server.target) for each in self._connections)

    def close(self) -> list[Any]:
        """The channels that now must be closed; no others are opened."""
        with self._lock:
            self._is_closed = self._search_is_over = True
            return [connection.channel for connection in self._connections]

    def borrow(self, tried: Collection[Connection]) -> Connection:
        """The connection for the next request, not one of `tried` while another may do; give it back.

        Raises:
            Unavailable: All are closed.
        """
        with self._lock:
            if self._is_closed:
                raise Unavailable("the client was closed")
            chosen = self._choose(tried) if len(self._connections) > 1 else self._connections[0]
            chosen.under_way += 1
            return chosen

    def give_back(self, connection: Connection) -> None:
        """The request is over."""
        with self._lock:
            connection.under_way -= 1

    def rest(self, connection: Connection, rest_s: float) -> None:
        """Leaves one alone that has failed; what was under way then fails with it, and counts once."""
        with self._lock:
            now = time.monotonic()
            if connection.rests_until <= now:
                connection.failed += 1
                connection.rests_until = now + rest_s

    def recover(self, connection: Connection) -> None:
        """After an answer; one that drains may still answer what it accepted, so a rest is not cut short."""
        with self._lock:
            if connection.rests_until <= time.monotonic():
                connection.failed = 0

    def has_other(self, tried: Collection[Connection]) -> bool:
        """Whether one that does not rest is left to try."""
        with self._lock:
            return len(self._connections) > len(tried) and bool(self._fit(tried))

    def first_search(self) -> list[tuple[Server, Connection]]:
        """Each server whose workers are to be met, with its first connection; none after the first time."""
        with self._lock:
            is_over, self._search_is_over = self._search_is_over, True
            return [] if is_over else [(connection.server, connection) for connection in self._connections]

    def note(self, connection: Connection, model: pb.Model) -> bool:
        """Learns from a connection's answer how many workers there are, and which it reached.

        Returns:
            Whether to keep it; if not, another connection reaches that worker: close this one.
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

    def _choose(self, tried: Collection[Connection]) -> Connection:
        fit = self._fit(tried)
        chosen = min(fit, key=_load) if fit else min(self._connections, key=_rests_until)
        self._turns += 1
        chosen.turn = self._turns
        return chosen

    def _fit(self, tried: Collection[Connection]) -> list[Connection]:
        now = time.monotonic()
        return [each for each in self._connections if each.rests_until <= now and each not in tried]


def _load(connection: Connection) -> tuple[int, int]:
    return connection.under_way, connection.turn


def _rests_until(connection: Connection) -> float:
    return connection.rests_until
