"""With several servers, the client balances requests, avoids failed servers and loses no request."""

import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from blocking_health import BlockingHealthServicer
from grpc_health.v1 import health_pb2
from sketchbatch_client import AsyncClient, Client, Unavailable
from sketchbatch_client.rpc.connections.connection_pool import ConnectionPool
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy

pytestmark = pytest.mark.timeout(60)  # three tests start two services each

LONG_BACKOFF = RetryPolicy(max_attempts=1, first_backoff_s=60, max_backoff_s=60)


@pytest.fixture
def free_address() -> Iterator[str]:
    """Reserve an address on which no server listens; a test may start a server on this address later."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def by_list(addresses: list[str]) -> list[str]:
    return addresses


def by_text(addresses: list[str]) -> str:
    return ",".join(addresses)


def by_name(addresses: list[str]) -> str:
    """Return one gRPC target for the addresses; gRPC, not our client, then chooses the server of each request."""
    return "ipv4:" + ",".join(addresses)


def numbered(rows: int) -> np.ndarray:
    """Return drawings 0 to `rows` - 1; the first pixel of each drawing is its number."""
    return np.arange(rows, dtype=np.uint8).repeat(784).reshape(-1, 28, 28)


def numbers(result) -> list[int]:
    return np.rint(result.scores[:, 0] * 256).astype(int).tolist()


@pytest.fixture
def doomed(start_service, tiny_model, noise) -> Callable[[list[str]], tuple[list[str], Iterator[np.ndarray]]]:
    """Return a function that starts two more services, both of which stop during a bulk job.

    The function takes the addresses of other services. It returns the addresses of all services, and the batches of the
    job. One of the two services is killed while requests to it are in flight; the other one drains after a later batch.
    """

    def begin(others: list[str]) -> tuple[list[str], Iterator[np.ndarray]]:
        killed, drained = start_service(tiny_model), start_service(tiny_model)

        def batches() -> Iterator[np.ndarray]:
            for number in range(120):
                if number == 30:
                    os.kill(killed.process.pid, signal.SIGSTOP)  # later requests to this service get no response
                    threading.Timer(0.2, os.kill, (killed.process.pid, signal.SIGKILL)).start()
                if number == 80:
                    assert killed.stop(signal.SIGKILL)[0] == -signal.SIGKILL
                    os.kill(drained.process.pid, signal.SIGTERM)
                yield noise(200)[number : number + 50]
            assert drained.stop()[0] == 0

        return [*others, killed.address, drained.address], batches()

    return begin


@pytest.fixture
def expected(tiny_model, noise) -> np.ndarray:
    """Return the scores that ONNX Runtime, called directly, computes for the batches of `doomed`."""
    rows = np.concatenate([noise(200)[number : number + 50] for number in range(120)])
    return ort.InferenceSession(tiny_model).run(["scores"], {"bitmaps": rows})[0]


@pytest.mark.parametrize("named", [by_list, by_name])
def test_a_bulk_job_loses_no_row_when_one_server_dies_and_another_drains(tiny_service, doomed, expected, named):
    """If one server is killed and another one drains, a bulk job still scores every row once and in order.

    The result is the same whether our client or gRPC balances the requests between the servers.
    """
    addresses, batches = doomed([tiny_service.address])
    with Client(named(addresses), rows_per_request=20) as client:
        scores = np.concatenate([part.scores for part in client.score(batches)])
    assert scores.shape == expected.shape
    assert np.allclose(scores, expected, atol=1e-6)


async def test_a_bulk_job_of_tasks_loses_no_row(tiny_service, doomed, expected):
    """If one server is killed and another one drains, a bulk job of the asyncio client loses no row."""
    addresses, batches = doomed([tiny_service.address])

    async def in_a_loop() -> AsyncIterator[np.ndarray]:
        for batch in batches:
            yield batch

    async with AsyncClient(addresses, rows_per_request=20) as client:
        scores = np.concatenate([part.scores async for part in client.score(in_a_loop())])
    assert np.allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("named", [by_list, by_text, by_name])
def test_a_bulk_job_keeps_every_server_busy(start_server, workers, named):
    """With three servers, a bulk call sends four requests to each server before any server responds."""
    servicers = [servicer for _ in range(3) for servicer in workers(1)]
    addresses = [start_server(servicer) for servicer in servicers]
    with Client(named(addresses), rows_per_request=1) as client:
        while not all(servicer.requests for servicer in servicers):  # until all connections are open
            assert numbers(client.classify(numbered(100))) == list(range(100))
        for servicer in servicers:
            servicer.requests.clear()
            servicer.hold()
        job = threading.Thread(target=lambda: list(client.score([numbered(30)])))
        job.start()
        for servicer in servicers:
            servicer.wait_for_rows(4)
        assert sum(len(servicer.requests) for servicer in servicers) == 12
        for servicer in servicers:
            servicer.release()
        job.join(10)
    assert sum(len(servicer.requests) for servicer in servicers) == 30


def test_consecutive_calls_go_to_the_servers_in_turn(start_server, workers, drawing):
    """Of connections with equal load, the least recently used one is next."""
    servicers = [*workers(1), *workers(1)]
    with Client([start_server(servicer) for servicer in servicers]) as client:
        for pixel in range(20):
            client.classify(drawing(pixel))
    assert [len(servicer.requests) for servicer in servicers] == [10, 10]


def test_a_request_that_fails_goes_to_another_server_at_once(start_server, servicer, drawing, free_address):
    """A failed request is sent to another server at once.

    The failed server gets no request during the back-off of 60 s.
    """
    with Client([free_address, start_server(servicer)], retry=LONG_BACKOFF) as client:
        for pixel in range(10):
            assert numbers(client.classify(drawing(pixel))) == [pixel]
    assert len(servicer.requests) == 10


def test_a_server_that_returns_is_used_again(start_server, workers, drawing, free_address):
    """A server that was unreachable and is started again receives requests after the back-off of its connection."""
    steady, back = [*workers(1), *workers(1)]
    retry = RetryPolicy(first_backoff_s=0.05, max_backoff_s=0.1)
    with Client([free_address, start_server(steady)], retry=retry) as client:
        client.classify(drawing(1))
        start_server(back, free_address)
        give_up_at = time.monotonic() + 10
        while not back.requests:
            assert time.monotonic() < give_up_at
            client.classify(drawing(2))


def test_a_connection_backs_off_after_each_failure_and_counts_failures_in_a_row():
    """After a failure, a connection is not used until its back-off ends.

    Failures and responses during the back-off belong to requests that were sent earlier, so they do not change the
    number of consecutive failures. A response after the back-off resets this number to 0.
    """
    now_s = 0.0
    pool = ConnectionPool(["a:1", "b:1"], lambda target, _: grpc.insecure_channel(target), None, clock=lambda: now_s)
    shaky, steady = pool.acquire([]), pool.acquire([])
    pool.back_off(shaky, 10)
    pool.back_off(shaky, 99)  # a request that was in flight at the first failure
    pool.restore(shaky)  # a response that a draining server still sent
    assert shaky.failures == 1
    assert {pool.acquire([]) for _ in range(5)} == {steady}
    assert not pool.has_other([steady])
    now_s = 10.0
    assert pool.has_other([steady])
    assert pool.acquire([]) is shaky
    pool.back_off(shaky, 20)
    assert shaky.failures == 2
    now_s = 30.0
    pool.restore(shaky)
    assert shaky.failures == 0
    pool.back_off(shaky, 20)
    pool.back_off(steady, 10)
    assert pool.acquire([]) is steady  # all servers back off; `steady` is the first to be usable again
    for channel in pool.close():
        channel.close()


def test_the_error_names_all_servers_if_none_responds(free_address):
    """The error names every server and the number of attempts."""
    retry = RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    with (
        Client([free_address, "127.0.0.1:1"], retry=retry) as client,
        pytest.raises(Unavailable, match=f"no response from {free_address}, 127.0.0.1:1 in 2 attempts"),
    ):
        client.classify(numbered(1))


@pytest.mark.parametrize("named", [by_list, by_name])
def test_a_server_that_is_not_serving_gets_no_new_request(start_server, workers, drawing, named):
    """A server whose health is NOT_SERVING receives no new request, although the server would still respond.

    A draining server reports NOT_SERVING shortly before it stops.
    """
    leaving, staying = [*workers(1), *workers(1)]
    health = BlockingHealthServicer()
    addresses = [start_server(leaving, health=health), start_server(staying, health=BlockingHealthServicer())]
    with Client(named(addresses)) as client, Client(addresses[0]) as one:
        while not (leaving.requests and staying.requests):
            client.classify(drawing(1))
        assert one.health() == "SERVING"
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert one.health() == "NOT_SERVING"
        is_used = True
        # Repeat until gRPC has received the new status. Until then the server gets every second request.
        while is_used:
            leaving.requests.clear()
            for pixel in range(20):
                assert numbers(client.classify(drawing(pixel))) == [pixel]
            is_used = bool(leaving.requests)


@pytest.mark.parametrize("named", [by_list, by_name])
def test_a_lone_server_that_is_not_serving_still_gets_requests(start_server, servicer, drawing, named):
    """A lame duck reports NOT_SERVING and still accepts calls; without another server, the client goes on sending."""
    health = BlockingHealthServicer()
    address = start_server(servicer, health=health)
    with Client(named([address]), timeout_s=10) as client:
        client.classify(drawing(0))
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        watched = set(servicer.peers)
        while servicer.peers == watched:  # gRPC has not received the new status
            client.classify(drawing(1))
        servicer.requests.clear()
        for pixel in range(20):
            assert numbers(client.classify(drawing(pixel))) == [pixel]
        assert len(servicer.requests) == 20


def test_health_is_checked_with_few_retries(start_server, servicer, drawing, free_address):
    """If one of two servers is unreachable, `Client.health` returns the status that the other server reports.

    If no server responds, `health` raises Unavailable after `max_attempts` attempts.
    """
    health, retry = BlockingHealthServicer(), RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    address = start_server(servicer, health=health)
    with Client([free_address, address], retry=retry) as client:
        client.classify(drawing(1))
        assert client.health() == "SERVING"
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert client.health() == "NOT_SERVING"
    health.set("", health_pb2.HealthCheckResponse.SERVING)
    with Client([address, free_address], retry=retry) as client:
        client.classify(drawing(1))
        assert client.health("no.such.Service") == "SERVICE_UNKNOWN"
        servicer.server.stop(None).wait()
        with pytest.raises(Unavailable, match=f"no response from {free_address} in 2 attempts"):
            client.health()


def test_every_worker_of_every_server_is_discovered(start_server, workers):
    """Two servers of two worker processes each get four connections."""
    servers = [workers(2), workers(2)]
    addresses = [start_server(first) for first, _ in servers]
    for (_, second), address in zip(servers, addresses, strict=True):
        start_server(second, address)
    with Client(addresses, rows_per_request=1) as client:
        assert numbers(client.classify(numbered(200))) == list(range(200))
    assert [len(worker.peers) for server in servers for worker in server] == [1] * 4


@pytest.mark.parametrize("spelling", ["unix:{}/s", "unix://{}/s", "unix:{}/s:0", "unix-abstract:{}/s"])
def test_a_unix_socket_is_a_target(start_server, servicer, tmp_path, spelling):
    """The client accepts gRPC targets of other kinds than HOST:PORT, such as all spellings of a Unix socket."""
    target = spelling.format(tmp_path)
    start_server(servicer, target)
    with Client(target) as client:
        assert numbers(client.classify(numbered(3))) == [0, 1, 2]


@pytest.mark.parametrize("target", ["", "a:1,,b:1", [], ["a:1", ""]])
def test_empty_targets_are_refused(target):
    """The constructor of the client refuses empty targets; the error contains the given value."""
    with pytest.raises(ValueError, match="target must be HOST:PORT, several separated by commas, or gRPC targets, got"):
        Client(target)
