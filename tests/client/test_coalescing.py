"""Concurrent small calls of one client share requests, and nobody's trouble is another's."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from sketchbatch_client import Client, DeadlineExceeded, RequestRefused
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy

THREADS = 32


@pytest.fixture
def pool():
    """Callers of one client."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def pixel(result) -> int:
    """The first pixel of the one drawing that was answered."""
    assert len(result) == 1
    return round(float(result.scores[0, 0]) * 256)


def queued_behind_two(client, watched, pool, drawing, pixels) -> list[Future]:
    """Asks about one drawing each while the server holds two requests, so that the rest share."""
    watched.hold()
    calls = []
    for number, value in enumerate((1, 2, *pixels)):
        calls.append(pool.submit(client.classify, drawing(value)))
        if number < 2:
            watched.wait_for_rows(number + 1)
    watched.wait_for_rows(2 + len(pixels))
    return calls[2:]


def test_many_threads_get_the_answers_they_would_get_alone(tiny_service, tiny_model, noise, pool):
    """Calls of one row and of several, of two questions, from 32 threads at once: each hears of its own rows."""
    scores = ort.InferenceSession(tiny_model).run(["scores"], {"bitmaps": noise(200)})[0]

    def ask(number: int) -> bool:
        rows = slice(number, number + 1 + number % 3)
        top_k = number % 2
        result = client.classify(noise(200)[rows], top_k=top_k)
        best = np.array_equal(result.class_index[:, 0], scores[rows].argmax(axis=1))
        return (
            best
            and np.allclose(result.score[:, 0], scores[rows].max(axis=1), atol=1e-6)
            and bool(top_k) == (result.scores is None)
        )

    with Client(tiny_service.address) as client:
        assert all(pool.map(ask, [*range(190)] * 5))


def test_a_storm_of_calls_is_answered_by_far_fewer_requests(start_watched, watched, drawing, pool):
    """No call is lost, none is sent twice, and nobody hears another's answer."""
    with Client(start_watched(watched)) as client:
        calls = [number % 250 for number in range(4000)]
        started_at = time.monotonic()
        assert [pixel(result) for result in pool.map(client.classify, map(drawing, calls))] == calls
        assert time.monotonic() - started_at < 5
    assert sorted(value for request in watched.requests for value in request) == sorted(calls)
    assert len(watched.requests) < len(calls) / 2


def test_a_lone_caller_asks_at_once_and_by_itself(start_watched, watched, drawing):
    """One request a call, of which none waits for company, nor goes through another thread."""
    with Client(start_watched(watched)) as client:
        assert [pixel(client.classify(drawing(value))) for value in range(200)] == list(range(200))
        assert not [thread for thread in threading.enumerate() if "sketchbatch-shared" in thread.name]
    assert watched.requests == [[value] for value in range(200)]


def test_calls_do_not_wait_for_requests_that_are_not_answered(start_watched, watched, drawing, pool):
    """The wait is bounded: what waits goes together, beside the requests that the server holds."""
    with Client(start_watched(watched)) as client:
        calls = queued_behind_two(client, watched, pool, drawing, range(10, 30))
        assert len(watched.requests) < 12
        watched.release()
        assert [pixel(call.result(10)) for call in calls] == list(range(10, 30))


def test_a_refused_caller_is_refused_alone(start_watched, watched, drawing, pool):
    """The request that it shared fails; its neighbours are answered all the same."""
    with Client(start_watched(watched)) as client:
        calls = queued_behind_two(client, watched, pool, drawing, [10, 255, 11, 12])
        watched.release()
        with pytest.raises(RequestRefused, match="no such drawing"):
            calls.pop(1).result(10)
        assert [pixel(call.result(10)) for call in calls] == [10, 11, 12]
    assert any(255 in request and len(request) > 1 for request in watched.requests)


@pytest.mark.parametrize("top_k", [-1, -1000])
def test_a_question_that_cannot_be_sent_is_refused_before_it_is_shared(start_watched, watched, drawing, top_k):
    """It never gets near a neighbour."""
    with Client(start_watched(watched)) as client, pytest.raises(RequestRefused, match="top_k must be 0 or more"):
        client.classify(drawing(1), top_k=top_k)
    assert not watched.requests


def test_a_caller_out_of_time_leaves_alone(start_watched, watched, drawing, pool):
    """Each has its own `timeout_s`: those that came later are answered."""
    with Client(start_watched(watched), timeout_s=0.5) as client:
        client.model()
        early = queued_behind_two(client, watched, pool, drawing, [10])
        time.sleep(0.25)
        late = [pool.submit(client.classify, drawing(value)) for value in (20, 21, 22)]
        with pytest.raises(DeadlineExceeded, match=r"in 0\.5 s"):
            early[0].result(10)
        watched.release()
        assert [pixel(call.result(10)) for call in late] == [20, 21, 22]


@pytest.fixture
def ctrl_c() -> Callable[[], None]:
    """Presses it: the main thread, which runs the test, is interrupted."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("calls_ahead", [0, 1, 2])
def test_ctrl_c_in_one_caller_leaves_the_others_to_be_answered(
    start_watched, watched, drawing, pool, ctrl_c, calls_ahead
):
    """Whether it asked by itself, in a shared request under way, or beside two; and the client goes on to work."""
    with Client(start_watched(watched)) as client:
        assert pixel(client.classify(drawing(3))) == 3
        watched.hold()
        for number in range(calls_ahead):
            pool.submit(client.classify, drawing(1))
            watched.wait_for_rows(2 + number)

        def interrupt() -> list[Future]:
            watched.wait_for_rows(2 + calls_ahead)
            neighbours = [pool.submit(client.classify, drawing(value)) for value in range(20, 28)]
            ctrl_c()
            return neighbours

        interrupter = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.classify(drawing(9))
        watched.release()
        assert [pixel(call.result(10)) for call in interrupter.result(10)] == list(range(20, 28))
        assert pixel(client.classify(drawing(4))) == 4


def test_callers_outlive_a_restart_of_the_server(start_service, tiny_model, noise, pool):
    """Those who shared a request that broke ask again until it is back, however few attempts a stranger gets."""
    service = start_service(tiny_model)
    with Client(service.address, retry=RetryPolicy(max_attempts=1, first_backoff_s=0.05)) as client:
        client.classify(noise(1))
        stop = threading.Event()

        def ask(_: int) -> int:
            asked = 0
            while not stop.is_set():
                assert len(client.classify(noise(1))) == 1
                asked += 1
            return asked

        calls = [pool.submit(ask, number) for number in range(8)]
        service.stop(signal.SIGKILL)
        again = start_service(tiny_model, "--address", service.address)
        time.sleep(0.3)
        stop.set()
        assert all(call.result(15) for call in calls)
        assert len(client.classify(noise(3))) == 3
        again.stop()
