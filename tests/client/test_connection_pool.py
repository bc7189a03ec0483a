"""Several servers: who is asked, who is left alone, and what becomes of requests when one goes."""

import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import onnxruntime as ort
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer
from sketchbatch_client import AsyncClient, Client, Unavailable
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy

pytestmark = pytest.mark.timeout(60)  # three start two processes each

IN_NO_HURRY = RetryPolicy(max_attempts=1, first_backoff_s=60, max_backoff_s=60)


@pytest.fixture
def free_address() -> Iterator[str]:
    """Where nobody listens, nor can anyone else come to."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def by_list(addresses: list[str]) -> list[str]:
    return addresses


def by_text(addresses: list[str]) -> str:
    return ",".join(addresses)


def by_name(addresses: list[str]) -> str:
    """One target of several addresses, among which gRPC itself chooses."""
    return "ipv4:" + ",".join(addresses)


def numbered(rows: int) -> np.ndarray:
    """Drawings told apart by their first pixel."""
    return np.arange(rows, dtype=np.uint8).repeat(784).reshape(-1, 28, 28)


def numbers(result) -> list[int]:
    return np.rint(result.scores[:, 0] * 256).astype(int).tolist()


@pytest.fixture
def doomed(start_service, tiny_model, noise) -> Callable[[list[str]], tuple[list[str], Iterator[np.ndarray]]]:
    """Two more servers, and batches amid which one is killed with requests under way and the other drains."""

    def begin(others: list[str]) -> tuple[list[str], Iterator[np.ndarray]]:
        killed, drained = start_service(tiny_model), start_service(tiny_model)

        def batches() -> Iterator[np.ndarray]:
            for number in range(120):
                if number == 30:
                    os.kill(killed.process.pid, signal.SIGSTOP)  # what it is asked from now on, it never answers
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
    """The scores of those batches, by ONNX Runtime itself."""
    rows = np.concatenate([noise(200)[number : number + 50] for number in range(120)])
    return ort.InferenceSession(tiny_model).run(["scores"], {"bitmaps": rows})[0]


@pytest.mark.parametrize("named", [by_list, by_name])
def test_a_bulk_job_loses_no_row_when_one_server_dies_and_another_drains(tiny_service, doomed, expected, named):
    """None comes twice and the order is kept, whoever chooses among the servers."""
    addresses, batches = doomed([tiny_service.address])
    with Client(named(addresses), rows_per_request=20) as client:
        scores = np.concatenate([part.scores for part in client.score(batches)])
    assert scores.shape == expected.shape
    assert np.allclose(scores, expected, atol=1e-6)


async def test_a_bulk_job_of_tasks_loses_no_row_either(tiny_service, doomed, expected):
    """The rules are the same."""
    addresses, batches = doomed([tiny_service.address])

    async def in_a_loop() -> AsyncIterator[np.ndarray]:
        for batch in batches:
            yield batch

    async with AsyncClient(addresses, rows_per_request=20) as client:
        scores = np.concatenate([part.scores async for part in client.score(in_a_loop())])
    assert np.allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("named", [by_list, by_text, by_name])
def test_a_bulk_job_keeps_every_server_busy(start_watched, workers, named):
    """Each of three has its four requests before any has answered."""
    servicers = [servicer for _ in range(3) for servicer in workers(1)]
    addresses = [start_watched(servicer) for servicer in servicers]
    with Client(named(addresses), rows_per_request=1) as client:
        assert numbers(client.classify(numbered(100))) == list(range(100))  # all connections stand
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


def test_calls_one_after_the_other_take_turns(start_watched, workers, drawing):
    """Of servers that are equally busy, the one asked longest ago is next."""
    servicers = [*workers(1), *workers(1)]
    with Client([start_watched(servicer) for servicer in servicers]) as client:
        for pixel in range(20):
            client.classify(drawing(pixel))
    assert [len(servicer.requests) for servicer in servicers] == [10, 10]


def test_a_request_that_fails_goes_to_another_server_at_once(start_watched, watched, drawing, free_address):
    """It waits for no back-off, and the server that failed rests."""
    with Client([free_address, start_watched(watched)], retry=IN_NO_HURRY) as client:
        for pixel in range(10):
            assert numbers(client.classify(drawing(pixel))) == [pixel]
    assert len(watched.requests) == 10


def test_a_server_that_comes_back_is_asked_again(start_watched, workers, drawing, free_address):
    """Once it has rested."""
    steady, back = [*workers(1), *workers(1)]
    retry = RetryPolicy(first_backoff_s=0.05, max_backoff_s=0.1)
    with Client([free_address, start_watched(steady)], retry=retry) as client:
        client.classify(drawing(1))
        start_watched(back, free_address)
        give_up_at = time.monotonic() + 10
        while not back.requests:
            assert time.monotonic() < give_up_at
            client.classify(drawing(2))


def test_a_server_rests_longer_each_time_it_fails_but_not_once_it_has_answered(start_watched, workers, drawing):
    """By `first_backoff_s` at first, twice that next, and anew after an answer."""
    retry = RetryPolicy(first_backoff_s=0.01, max_backoff_s=60)

    def asked_within(wanted_s: float, *unavailable: bool) -> int:
        shaky, steady = [*workers(1), *workers(1)]
        shaky.unavailable = list(unavailable)
        with Client([start_watched(shaky), start_watched(steady)], retry=retry) as client:
            give_up_at = time.monotonic() + wanted_s
            while shaky.unavailable and time.monotonic() < give_up_at:
                client.classify(drawing(1))
        return len(unavailable) - len(shaky.unavailable)

    assert asked_within(10, *[True, False] * 12) == 24
    assert asked_within(0.5, *[True] * 12) < 10  # 0.01 x (1 + 2 + ... + 512) x 0.5 = 5 s for ten


def test_servers_of_which_none_answers_are_named(free_address):
    """All of them, and how often they were tried."""
    retry = RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    with (
        Client([free_address, "127.0.0.1:1"], retry=retry) as client,
        pytest.raises(Unavailable, match=f"no answer from {free_address}, 127.0.0.1:1 in 2 attempts"),
    ):
        client.classify(numbered(1))


@pytest.mark.parametrize("named", [by_list, by_name])
def test_a_server_that_says_not_serving_gets_no_new_request(start_watched, workers, drawing, named):
    """Although it would answer: it is about to go."""
    leaving, staying = [*workers(1), *workers(1)]
    health = HealthServicer()
    addresses = [start_watched(leaving, health=health), start_watched(staying, health=HealthServicer())]
    with Client(named(addresses)) as client, Client(addresses[0]) as one:
        while not (leaving.requests and staying.requests):
            client.classify(drawing(1))
        assert one.health() == "SERVING"
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert one.health() == "NOT_SERVING"
        time.sleep(0.1)  # the news crosses a socket
        leaving.requests.clear()
        for pixel in range(20):
            assert numbers(client.classify(drawing(pixel))) == [pixel]
    assert not leaving.requests


def test_health_is_that_of_the_moment(start_watched, watched, drawing, free_address):
    """One server that serves is enough; where none answers, that is said without the patience that requests have."""
    health, retry = HealthServicer(), RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    address = start_watched(watched, health=health)
    with Client([free_address, address], retry=retry) as client:
        client.classify(drawing(1))
        assert client.health() == "SERVING"
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert client.health() == "NOT_SERVING"
    health.set("", health_pb2.HealthCheckResponse.SERVING)
    with Client([address, free_address], retry=retry) as client:
        client.classify(drawing(1))
        assert client.health("no.such.Service") == "SERVICE_UNKNOWN"
        watched.server.stop(None).wait()
        with pytest.raises(Unavailable, match=f"no answer from {free_address} in 2 attempts"):
            client.health()


def test_every_worker_of_every_server_is_met(start_watched, workers):
    """Two servers of two processes each take four connections, as many requests as keep four busy."""
    servers = [workers(2), workers(2)]
    addresses = [start_watched(first) for first, _ in servers]
    for (_, second), address in zip(servers, addresses, strict=True):
        start_watched(second, address)
    with Client(addresses, rows_per_request=1) as client:
        assert numbers(client.classify(numbered(200))) == list(range(200))
    assert [len(worker.peers) for server in servers for worker in server] == [1] * 4


def test_a_socket_in_the_file_system_is_a_server_too(start_watched, watched, tmp_path):
    """Any target that gRPC knows."""
    start_watched(watched, f"unix:{tmp_path}/s")
    with Client(f"unix:{tmp_path}/s") as client:
        assert numbers(client.classify(numbered(3))) == [0, 1, 2]


@pytest.mark.parametrize("target", ["", "a:1,,b:1", [], ["a:1", ""]])
def test_targets_that_name_nobody_are_refused(target):
    """At once, with what came."""
    with pytest.raises(ValueError, match="expected HOST:PORT, several with commas between, or gRPC targets, got"):
        Client(target)
