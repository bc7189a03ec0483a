"""Open the connections to one target, and keep the load and the failures of each connection."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub

from .targets import CONNECT_TIMEOUT_S, is_name

_CLASSIFY = f"/{pb.DESCRIPTOR.services_by_name['ClassifierService'].full_name}/Classify"
# New connections per worker to reach all workers. The kernel picks the worker of each connection at random: 32
# connections to a server of 4 workers miss a worker in 1 of 2,500 cases.
_TRIES_PER_WORKER = 8
# Connect timeout for a DNS name. It is short: packets to the address of a deleted pod are lost, and the new pod has
# another address.
_NAME_CONNECT_TIMEOUT_S = 0.8
# Connect timeout of a new channel, as a share of the time for which no server behind the DNS name has responded.
_CONNECT_SHARE = 0.25

OpenChannel = Callable[[str, float], Any]
"""Opens a channel of grpc or grpc.aio to a target, with the connect timeout in seconds."""


class Connection:
    """One channel with its RPCs, and the load and failures by which `ConnectionPool` chooses a connection."""

    def __init__(self, server: "Server", channel: Any, opened_at: float) -> None:
        self.server = server
        self.channel = channel
        self.opened_at = opened_at  # clock seconds
        self.stub: Any = ClassifierServiceStub(channel)
        self.classify: Any = channel.unary_unary(  # takes the bytes that `request.encode` returns
            _CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString
        )
        self.in_flight = 0
        self.last_request = 0  # position of its latest request among the requests of all connections; higher = later
        self.failures = 0  # consecutive, over this channel and the channels that it replaced
        self.failing_since = 0.0  # clock seconds of the first of these failures
        self.backs_off_until = 0.0  # clock seconds


class Server:
    """One target: a server of one or more worker processes, or a name that gRPC resolves to several servers."""

    def __init__(self, target: str, open_channel: OpenChannel, clock: Callable[[], float] = time.monotonic) -> None:
        self.target = target
        self.is_name = is_name(target)
        self.workers = 1
        self.by_worker: dict[int, Connection] = {}
        self._open_channel = open_channel
        self._clock = clock

    def open(self) -> Connection:
        return self._open(_NAME_CONNECT_TIMEOUT_S if self.is_name else CONNECT_TIMEOUT_S)

    def reopen(self, failed: Connection) -> Connection:
        """Return a connection over a new channel, to use instead of `failed`.

        The longer no server has responded, the longer is the connect timeout: servers may be slow to accept
        connections, for example because all their clients connect at once.
        """
        failing_s = self._clock() - failed.failing_since
        fresh = self._open(min(max(_NAME_CONNECT_TIMEOUT_S, _CONNECT_SHARE * failing_s), CONNECT_TIMEOUT_S))
        fresh.failures, fresh.failing_since = failed.failures, failed.failing_since
        for worker, connection in self.by_worker.items():
            if connection is failed:
                self.by_worker[worker] = fresh
        return fresh

    def candidates(self, first: Connection) -> Iterator[Connection]:
        """Yield `first` and new connections; the caller sends GetModel over each and registers the response."""
        if not self.by_worker:
            yield first
        for _ in range(self.workers * _TRIES_PER_WORKER):
            if len(self.by_worker) >= self.workers:
                return
            yield self.open()

    def _open(self, connect_timeout_s: float) -> Connection:
        return Connection(self, self._open_channel(self.target, connect_timeout_s), self._clock())
