"""Test that a client whose target is a DNS name finds new servers that replace the servers that it knows."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager

import grpc
import numpy as np
import pytest
from blocking_health import BlockingHealthServicer
from dns_server import DnsServer
from gates import Clock
from grpc_health.v1 import health_pb2
from polling import wait_until
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_client import AsyncClient, Client, RetryPolicy, Unavailable
from sketchbatch_client.rpc.connections import connection_pool
from sketchbatch_client.rpc.connections.connection_pool import ConnectionPool
from sketchbatch_client.rpc.connections.targets import channel_options, is_name, parse_targets

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
TIMEOUT_S = 12.0  # gRPC alone would find the new servers after 30 s or never


class NamedServers:
    """Run servers on several addresses with the same port, and a DNS server that returns some of these addresses."""

    def __init__(self, dns: DnsServer, port: int, start_server: Callable[..., str], servicers: list) -> None:
        self.dns = dns
        self.target = f"dns://{dns.address}/drawings.test:{port}"
        self.servicers = dict(zip(HOSTS, servicers, strict=True))
        self._health = {host: BlockingHealthServicer() for host in HOSTS}
        for host in HOSTS:
            start_server(self.servicers[host], f"{host}:{port}", self._health[host])

    def leave(self, *hosts: str) -> None:
        """Make the health of these servers NOT_SERVING; their connections stay open."""
        for host in hosts:
            self._health[host].set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    def stop(self, *hosts: str) -> None:
        """Close the ports and all connections of these servers."""
        for host in hosts:
            self.servicers[host].server.stop(None).wait()


@pytest.fixture
def port() -> Iterator[int]:
    """Reserve a port that is free on all addresses."""
    while True:
        with ExitStack() as sockets:
            port = 0
            try:
                for host in HOSTS:
                    reserved = sockets.enter_context(socket.socket())
                    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    reserved.bind((host, port))
                    port = reserved.getsockname()[1]
            except OSError:  # another program uses this port on one of the addresses
                continue
            yield port
            return


@pytest.fixture
def servers(port, start_server, workers) -> Iterator[NamedServers]:
    """Start one server on each address; DNS returns the first two."""
    dns = DnsServer(*HOSTS[:2])
    dns.start()
    yield NamedServers(dns, port, start_server, [*workers(1), *workers(1), *workers(1)])
    dns.stop()


Classify = Callable[[np.ndarray], object]


@asynccontextmanager
async def connected(kind: type, target: str, **options: object) -> AsyncIterator[Classify]:
    """Yield a coroutine function that classifies bitmaps with a `Client` in a thread or with an `AsyncClient`."""
    options = {"timeout_s": TIMEOUT_S} | options
    if kind is Client:
        with Client(target, **options) as client:
            yield lambda bitmaps: asyncio.to_thread(client.classify, bitmaps)
    else:
        async with AsyncClient(target, **options) as client:
            yield client.classify


@pytest.fixture(params=[Client, AsyncClient])
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture(params=[1, 20])
def rows(request: pytest.FixtureRequest, drawing) -> Callable[[int], np.ndarray]:
    """Return a function that makes one row, for a small call, or 20 rows, whose call never shares a request."""
    return lambda pixel: np.repeat(drawing(pixel)[None], request.param, axis=0)


async def call_until(classify: Classify, bitmaps: np.ndarray, servicer) -> None:
    """Send calls until `servicer` has received a request; fail if a call fails."""
    while not servicer.requests:
        await classify(bitmaps)


async def test_servers_that_are_not_serving_are_replaced(servers, kind, rows):
    """If all known servers report NOT_SERVING and DNS returns a new server, the new server receives requests."""
    async with connected(kind, servers.target) as classify:
        await classify(rows(1))
        servers.dns.set_addresses(HOSTS[2:])
        servers.leave(*HOSTS[:2])
        await call_until(classify, rows(2), servers.servicers[HOSTS[2]])


async def test_servers_that_have_stopped_are_replaced(servers, kind, rows):
    """If all known servers have stopped and DNS returns a new server, the new server receives requests."""
    async with connected(kind, servers.target) as classify:
        await classify(rows(1))
        servers.dns.set_addresses(HOSTS[2:])
        servers.stop(*HOSTS[:2])
        await call_until(classify, rows(2), servers.servicers[HOSTS[2]])


@pytest.mark.parametrize("shared_rows", [1, 20])
async def test_a_request_waits_only_until_dns_returns_a_server(servers, kind, drawing, shared_rows):
    """While no server accepts a request, the client resolves the name again every half second.

    The back-off of the retry policy, here 300 s, does not delay this.
    """
    policy = RetryPolicy(first_backoff_s=300, max_backoff_s=300)
    bitmaps = np.repeat(drawing(1)[None], shared_rows, axis=0)
    async with connected(kind, servers.target, retry=policy, timeout_s=900) as classify:
        await classify(bitmaps)
        servers.leave(*HOSTS[:2])
        queries = servers.dns.queries
        new = servers.servicers[HOSTS[2]]
        calls = asyncio.gather(*(call_until(classify, bitmaps, new) for _ in range(6)))  # small calls share requests
        await asyncio.to_thread(wait_until, lambda: servers.dns.queries >= queries + 2)
        servers.dns.set_addresses(HOSTS[2:])
        await calls


async def test_requests_in_flight_of_a_replaced_channel_end_normally(servers, kind, drawing):
    """A request in flight to a leaving server receives its response, although later requests use a new channel."""
    old, new = servers.servicers[HOSTS[0]], servers.servicers[HOSTS[2]]
    servers.dns.set_addresses(HOSTS[:1])
    old.hold()
    async with connected(kind, servers.target, rows_per_request=100) as classify:
        held = asyncio.create_task(classify(np.repeat(drawing(7)[None], 20, axis=0)))
        await asyncio.to_thread(old.wait_for_rows, 20)
        servers.dns.set_addresses(HOSTS[2:])
        old.release(below=7)
        servers.leave(HOSTS[0])
        await call_until(classify, np.repeat(drawing(5)[None], 20, axis=0), new)
        old.release()
        await held
    assert [7] * 20 not in new.requests


async def test_one_failed_request_does_not_replace_a_channel(servers, kind, drawing, monkeypatch):
    """If one of two servers under a name fails a request, the same channel sends it to the other server."""
    monkeypatch.setattr(connection_pool, "_REPLACE_AFTER_S", 0)
    known = [servers.servicers[host] for host in HOSTS[:2]]
    async with connected(kind, servers.target) as classify:
        for servicer in known:
            await call_until(classify, drawing(1), servicer)
        queries = servers.dns.queries
        known[0].unavailable = [True]
        while known[0].unavailable:
            await classify(drawing(2))
        assert servers.dns.queries == queries


async def test_an_outage_ends_in_the_same_error_as_for_an_address(servers, kind, drawing):
    """If no server of a name responds to a new client, a call raises Unavailable after `max_attempts` attempts."""
    servers.stop(*HOSTS)
    retry = RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    async with connected(kind, servers.target, retry=retry) as classify:
        with pytest.raises(Unavailable, match=f"no response from {servers.target} in 2 attempts: "):
            await classify(drawing(1))


def test_a_channel_resolves_its_name_soon_after_a_connection_has_closed(servers):
    """A channel resolves its name again within seconds after a connection has closed; gRPC's default is 30 s."""
    servers.dns.set_addresses(HOSTS[:1])
    with grpc.insecure_channel(servers.target, channel_options(servers.target)) as channel:
        classify = channel.unary_unary("/sketchbatch.v1.ClassifierService/ListModels")
        classify(b"", wait_for_ready=True, timeout=TIMEOUT_S)
        servers.dns.set_addresses(HOSTS[2:])
        servers.stop(HOSTS[0])
        classify(b"", wait_for_ready=True, timeout=TIMEOUT_S)


@pytest.mark.parametrize("target", ["dns:///a:1", "dns://9.9.9.9/a.b:1", "dns:a:1", "a:1", "a.b", "unixes:1"])
def test_names_are_resolved_again(target):
    """A target with a host name is resolved by DNS."""
    assert is_name(target)


ADDRESSES = ["1.2.3.4:1", "[::1]:1", "localhost:1", "dns:///1.2.3.4:1", "ipv4:1.2.3.4:1", "ipv6:[::1]:1", "unix:/a:1"]


@pytest.mark.parametrize("target", [*ADDRESSES, "xds:///a:1"])
def test_addresses_are_not_resolved(target):
    """A target with an IP address needs no resolution, and targets of other schemes have their own resolvers."""
    assert not is_name(target)


@pytest.mark.parametrize(
    "target",
    [
        "dns://localhost:1",
        "dns:///a:1/x",
        "dns://a/b/c:1",
        "dns:http://a:1",
        "dns:",
        "dns:///a:0",
        "dns:///a:1?b",
        "dns:///",
    ],
)
def test_names_that_cannot_be_resolved_are_refused(target):
    """The constructor refuses them; gRPC would report an unreachable server, or an unknown error, at each request."""
    with pytest.raises(ValueError, match=r"target must be dns:///HOST:PORT, without a path, PORT 1..65535, got 'dns:"):
        parse_targets(target)


class Opened:
    """Open channels that never connect, in place of real channels, and record their connect timeouts."""

    def __init__(self) -> None:
        self.timeouts_s: list[float] = []

    def __call__(self, target: str, connect_timeout_s: float) -> grpc.Channel:
        self.timeouts_s.append(connect_timeout_s)
        return grpc.insecure_channel(target)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def pool(clock, opened) -> Iterator[ConnectionPool]:
    """Return a connection pool whose only target is a name."""
    pool = ConnectionPool(["a:1"], opened, None, clock=clock)
    yield pool
    for channel in pool.close():
        channel.close()


def test_an_outage_opens_at_most_two_channels_in_a_second(pool, clock, opened):
    """However many requests fail, a channel to a name is replaced when it is half a second old, and not earlier."""
    for _ in range(100):
        failed = pool.acquire([])
        pool.back_off(failed, 0.01)
        pool.replace(failed)
        pool.release(failed)
        clock.advance(0.1)
    assert len(opened.timeouts_s) == 20


def test_retries_wait_for_the_next_possible_replacement(pool, clock):
    """`replaceable_in_s` returns the time until a channel is half a second old and may be replaced, then infinity."""
    assert pool.replaceable_in_s() == 0.5
    clock.advance(0.375)
    assert pool.replaceable_in_s() == 0.125
    clock.advance(0.125)
    assert pool.replaceable_in_s() == np.inf


def test_the_connect_timeout_grows_while_no_server_responds(pool, clock, opened):
    """A new channel to a name has 0.8 s to connect.

    In a long outage this time grows to 5 s. A response resets it.
    """
    for _ in range(30):
        failed = pool.acquire([])
        pool.back_off(failed, 0)
        clock.advance(1)
        assert pool.replace(failed)
        pool.release(failed)
    assert opened.timeouts_s[:6] == [0.8, 0.8, 0.8, 0.8, 1.0, 1.25]
    assert opened.timeouts_s[-1] == 5.0
    pool.restore(pool.acquire([]))
    failed = pool.acquire([])
    clock.advance(1)
    pool.back_off(failed, 0)
    assert pool.replace(failed)
    assert opened.timeouts_s[-1] == 0.8


def test_a_replaced_channel_is_closed_after_its_last_request(pool, clock):
    """`release` returns a replaced channel, so that it is closed, only when the last of its requests ends.

    Later requests use the new channel.
    """
    clock.advance(1)
    failed, other = pool.acquire([]), pool.acquire([])
    assert failed is other
    assert pool.replace(failed)
    fresh = pool.acquire([])
    assert fresh is not failed
    assert pool.replace(failed)  # a second failed request of this channel uses the new channel and replaces nothing
    assert pool.acquire([]) is fresh
    assert pool.release(failed) == []
    assert pool.release(other) == [failed.channel]
    assert pool.release(fresh) == []
    failed.channel.close()


def test_closing_the_pool_returns_replaced_channels_too(pool, clock):
    """`close` also returns replaced channels with requests in flight; their last request does not return them again."""
    clock.advance(1)
    failed = pool.acquire([])
    pool.replace(failed)
    fresh = pool.acquire([])
    channels = pool.close()
    assert set(channels) == {failed.channel, fresh.channel}
    assert pool.release(failed) == []
    clock.advance(1)
    assert not pool.replace(fresh)
    for channel in channels:
        channel.close()


def test_a_channel_to_an_address_is_not_replaced(clock, opened):
    """A channel to an IP address is never replaced, because a new one would reach the same server.

    Such a channel has the full 5 s to connect.
    """
    pool = ConnectionPool(["127.0.0.1:1"], opened, None, clock=clock)
    clock.advance(1)
    assert not pool.replace(pool.acquire([]))
    assert pool.replaceable_in_s() == np.inf
    assert opened.timeouts_s == [5.0]
    for channel in pool.close():
        channel.close()


def test_a_replaced_connection_has_no_worker(pool, clock):
    """After a replacement, the new connection counts as the connection to the worker of the replaced connection.

    A later response over the replaced connection, which names another worker, does not change the list of workers.
    """
    clock.advance(1)
    failed = pool.acquire([])
    assert pool.register(failed, pb.Model(worker=1, workers=2))
    assert pool.replace(failed)
    fresh = pool.acquire([])
    assert failed.server.by_worker == {1: fresh}
    assert pool.register(failed, pb.Model(worker=2, workers=2))
    assert failed.server.by_worker == {1: fresh}
    assert pool.acquire([]) is fresh
    pool.release(failed)[0].close()


@pytest.fixture
def silent_port():
    """Yield the port of a listener on 127.0.0.9 that accepts no more connections: its queue is full."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.9", 0))
        listener.listen(0)
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_max_attempts_limits_the_attempts_to_reach_a_name_that_drops_packets(silent_port):
    """If no server of a name answers connections, the request ends after `max_attempts`, before its deadline."""
    dns = DnsServer("127.0.0.9")
    dns.start()
    try:
        retry = RetryPolicy(max_attempts=2, first_backoff_s=0.01)
        target = f"dns://{dns.address}/silent.test:{silent_port}"
        with Client(target, timeout_s=3600, retry=retry) as client, pytest.raises(Unavailable, match="in 2 attempts"):
            client.classify(np.zeros((1, 28, 28), np.uint8))
    finally:
        dns.stop()
