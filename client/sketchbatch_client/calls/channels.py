"""Holds the connections to a service, and says which to use next.

A service of several worker processes gives each connection to one of them: `search` opens connections until each
worker has answered over one. Opens and closes channels of either kind, grpc's and grpc.aio's; asks nothing itself.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub

_CLASSIFY = f"/{pb.DESCRIPTOR.services_by_name['ClassifierService'].full_name}/Classify"
_TRIES_A_WORKER = 8  # connections fall to workers at random: of 4, 32 tries miss one once in 2,500 times


class Connection:
    """One channel and its RPCs."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.stub: Any = ClassifierServiceStub(channel)
        self.classify: Any = channel.unary_unary(  # takes bytes, see `questions.encoded`
            _CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString
        )
        self.under_way = 0


class Channels:
    """The connections to one target. Thread-safe.

    Args:
        target: host:port.
        open_channel: grpc's `insecure_channel`, or grpc.aio's.
        wanted: How many connections; None = one for each worker that answers there.
    """

    def __init__(self, target: str, open_channel: Callable[..., Any], wanted: int | None) -> None:
        if wanted is not None and wanted < 1:
            raise ValueError(f"channels must be 1 or more, or None, got {wanted}")
        self._open_channel = open_channel
        self._target = target
        self._lock = threading.Lock()
        self._by_worker: dict[int, Connection] = {}
        self._workers = 1
        self._connections = [self._open() for _ in range(wanted or 1)]
        self._search_is_over = wanted is not None

    @property
    def first(self) -> Connection:
        """Where all is asked that is not rows."""
        return self._connections[0]

    def close(self) -> list[Any]:
        """What closing each channel returned: for grpc.aio, what to await."""
        with self._lock:
            self._search_is_over = True
            return [connection.channel.close() for connection in self._connections]

    def borrow(self) -> Connection:
        """The connection with the fewest requests under way; give it back."""
        with self._lock:
            chosen = min(self._connections, key=_under_way) if len(self._connections) > 1 else self._connections[0]
            chosen.under_way += 1
            return chosen

    def give_back(self, connection: Connection) -> None:
        """The request is over."""
        with self._lock:
            connection.under_way -= 1

    def note(self, model: pb.Model) -> None:
        """Learns from an answer over the first connection how many workers there are, and which this one reached."""
        self._workers = max(1, model.workers)
        self._by_worker.setdefault(model.worker, self.first)

    def search(self) -> Iterator[Connection]:
        """New connections, each to be asked for its model, and then kept or closed by `keep`; once in a lifetime."""
        with self._lock:
            tries = 0 if self._search_is_over or self._workers == 1 else self._workers * _TRIES_A_WORKER
            self._search_is_over = True
        while tries and len(self._by_worker) < self._workers:
            tries -= 1
            yield self._open()

    def keep(self, connection: Connection, worker: int) -> bool:
        """Whether no other connection has reached that worker; if one has, close this one."""
        with self._lock:
            if self._by_worker.setdefault(worker, connection) is not connection:
                return False
            self._connections.append(connection)
            return True

    def _open(self) -> Connection:
        return Connection(self._open_channel(self._target, options=_options(self._target)))


def _under_way(connection: Connection) -> int:
    return connection.under_way


def _options(target: str) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", -1),  # all scores of a large request exceed the default 4 MiB
        ("grpc.use_local_subchannel_pool", 1),  # or channels to one target would share a connection
    ]
    if target.startswith(("localhost:", "127.", "[::1]:")):
        options.append(("grpc.enable_http_proxy", 0))  # an office's https_proxy knows no way back to this machine
    return options
