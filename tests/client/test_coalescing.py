"""Concurrent small calls of one client share requests, and an error of one call does not affect the others."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import onnxruntime as ort
import pytest
from patient_client import PatientClient
from sketchbatch_client import Client, DeadlineExceeded, RequestRefused
from sketchbatch_client.rpc.classification import Classification, select
from sketchbatch_client.rpc.coalescing_queue import MAX_IN_FLIGHT, CoalescingQueue, PendingCall
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy

THREADS = 32


@pytest.fixture
def pool():
    """Yield a pool of threads, which the tests use for concurrent calls of one client."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def pixel(result) -> int:
    """Return the first pixel of the classified drawing, which the scripted server returns as the first score."""
    assert len(result) == 1
    return round(float(result.scores[0, 0]) * 256)


def fill_both_requests(client, servicer, pool, drawing) -> None:
    """Send two requests that the server holds, so that further calls wait in the client's coalescing queue.

    A coalescing queue has at most two requests in flight. The first pixel of the drawing is 1 in the first request and
    2 in the second request.
    """
    servicer.hold()
    for value in (1, 2):
        pool.submit(client.classify, drawing(value))
        servicer.wait_for_rows(value)
    client.wait_for_queued(1)  # the second call was queued before it was sent, and must not be counted later


def queue_calls(client, pool, drawing, pixels) -> list[Future]:
    """Start one call per value of `pixels`, and wait until all these calls are in the coalescing queue."""
    calls = [pool.submit(client.classify, drawing(value)) for value in pixels]
    client.wait_for_queued(len(pixels))
    return calls


def test_each_of_many_threads_gets_the_scores_of_its_own_rows(tiny_service, tiny_model, noise, pool):
    """In 32 concurrent threads, each call receives the scores of its own rows.

    A call has one to three rows and one of two request keys.
    """
    scores = ort.InferenceSession(tiny_model).run(["scores"], {"bitmaps": noise(200)})[0]

    def is_right(number: int) -> bool:
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
        assert all(pool.map(is_right, [*range(190)] * 5))


def test_each_of_many_calls_is_sent_once(start_server, servicer, drawing, pool):
    """Each call of many threads is sent once and receives the scores of its own rows, and some calls share requests."""
    with Client(start_server(servicer)) as client:
        calls = [number % 250 for number in range(4000)]
        assert [pixel(result) for result in pool.map(client.classify, map(drawing, calls))] == calls
    assert sorted(value for request in servicer.requests for value in request) == sorted(calls)
    assert len(servicer.requests) < len(calls)


def test_a_lone_call_is_sent_at_once_and_alone(start_server, servicer, drawing):
    """Each of several consecutive calls is sent at once in a request of its own, and no sender thread is started."""
    with Client(start_server(servicer)) as client:
        assert [pixel(client.classify(drawing(value))) for value in range(200)] == list(range(200))
        assert not [thread for thread in threading.enumerate() if "sketchbatch-shared" in thread.name]
    assert servicer.requests == [[value] for value in range(200)]


def test_queued_calls_share_one_request(start_server, servicer, drawing, pool):
    """When a response arrives, all calls that wait in the coalescing queue are sent in one request."""
    with PatientClient(start_server(servicer)) as client:
        fill_both_requests(client, servicer, pool, drawing)
        calls = queue_calls(client, pool, drawing, range(10, 30))
        servicer.release()
        assert [pixel(call.result()) for call in calls] == list(range(10, 30))
    assert sorted(map(sorted, servicer.requests)) == [[1], [2], list(range(10, 30))]


def test_queued_calls_bypass_requests_that_get_no_response(start_server, servicer, drawing, pool):
    """Queued calls are sent after a bounded wait, even if the two requests in flight receive no response."""
    with Client(start_server(servicer)) as client:
        servicer.hold()
        calls = [pool.submit(client.classify, drawing(value)) for value in range(10)]
        servicer.wait_for_rows(10)
        servicer.release()
        assert [pixel(call.result()) for call in calls] == list(range(10))


def test_a_bypassing_call_takes_all_queued_calls_along():
    """A bypass sends one more request, which contains all calls of the coalescing queue that were not cancelled."""
    queue = CoalescingQueue(64)
    bitmap = np.zeros((1, 28, 28), np.uint8)
    calls = [PendingCall(bitmap, 0.0, lambda: None) for _ in range(MAX_IN_FLIGHT + 4)]
    assert [queue.add(call) and queue.take() == [call] for call in calls] == [True] * MAX_IN_FLIGHT + [False] * 4
    first, cancelled, *others = calls[MAX_IN_FLIGHT:]
    cancelled.is_cancelled = True
    assert queue.bypass(first)
    assert queue.take() == [first, *others]
    assert not queue.bypass(others[0])


def test_a_rejected_call_does_not_affect_the_calls_that_share_its_request(start_server, servicer, drawing, pool):
    """After a shared request has failed, the client sends each of its calls in a request of its own."""
    with PatientClient(start_server(servicer)) as client:
        fill_both_requests(client, servicer, pool, drawing)
        calls = queue_calls(client, pool, drawing, [10, 255, 11, 12])
        servicer.release()
        with pytest.raises(RequestRefused, match="rejected drawing"):
            calls.pop(1).result()
        assert [pixel(call.result()) for call in calls] == [10, 11, 12]
    assert [10, 11, 12, 255] in map(sorted, servicer.requests)


@pytest.mark.parametrize("top_k", [-1, -1000])
def test_a_call_with_invalid_options_is_refused_before_it_is_queued(start_server, servicer, drawing, top_k):
    """A call with a negative `top_k` is refused before it is queued.

    Protobuf cannot encode a negative `top_k`, so the call would make a shared request and all its calls fail.
    """
    with Client(start_server(servicer)) as client, pytest.raises(RequestRefused, match="top_k must be 0 or more"):
        client.classify(drawing(1), top_k=top_k)
    assert not servicer.requests


def test_an_expired_call_does_not_affect_the_calls_that_share_its_request(start_server, servicer, drawing, pool):
    """If the deadline of a queued call passes, only this call fails; the calls that were queued later succeed."""
    with PatientClient(start_server(servicer)) as client:
        fill_both_requests(client, servicer, pool, drawing)
        client._timeout_s = 0.1  # the timeout of the next call
        early = queue_calls(client, pool, drawing, [10])
        client._timeout_s = 60.0
        late = queue_calls(client, pool, drawing, [20, 21, 22])
        with pytest.raises(DeadlineExceeded, match=r"in 0\.1 s"):
            early[0].result()
        servicer.release()
        assert [pixel(call.result()) for call in late] == [20, 21, 22]
    assert not any(10 in request for request in servicer.requests)


@pytest.mark.parametrize("failures", [1, 5])
def test_calls_whose_sender_fails_are_sent_alone(start_server, servicer, drawing, pool, caplog, failures):
    """If the sender of shared requests fails unexpectedly, its waiting calls are sent alone, and the error is logged.

    Later calls share requests as before, even after more failures than a queue has requests in flight.
    """
    with PatientClient(start_server(servicer), timeout_s=30) as client:
        client.classify(drawing(0))  # later calls know the labels, so they wait only in the queue, not for GetModel
        for _ in range(failures):
            servicer.requests.clear()
            servicer.hold()
            first = pool.submit(client.classify, drawing(1))
            servicer.wait_for_rows(1)
            discover, client._discover_workers = client._discover_workers, broken
            waiting = queue_calls(client, pool, drawing, [2])
            servicer.wait_for_rows(2)  # the sender has failed, and the call was sent alone
            servicer.release()
            assert [pixel(first.result(10)), pixel(waiting[0].result(10))] == [1, 2]
            client._discover_workers = discover
        assert [pixel(client.classify(drawing(value))) for value in range(3)] == [0, 1, 2]
        assert not client.queued.acquire(blocking=False)  # these calls did not wait: no request counts as in flight
    assert len([record for record in caplog.records if record.exc_info]) == failures


async def broken() -> None:
    """Fail as code with a defect does."""
    raise ZeroDivisionError("injected")


@pytest.fixture
def ctrl_c() -> Callable[[], None]:
    """Return a function that sends SIGINT to the main thread, which runs the test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the test process may ignore SIGINT
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("calls_ahead", [0, 1, 2])
def test_ctrl_c_in_one_call_does_not_affect_the_others(start_server, servicer, drawing, pool, ctrl_c, calls_ahead):
    """Ctrl-C ends only the call of the main thread; all other calls receive responses, and the client stays usable.

    `calls_ahead` is the number of requests in flight when the main thread calls. With two requests in flight, the call
    waits in the coalescing queue and then bypasses these requests.
    """
    with Client(start_server(servicer)) as client:
        assert pixel(client.classify(drawing(3))) == 3
        servicer.hold()
        for number in range(calls_ahead):
            pool.submit(client.classify, drawing(1))
            servicer.wait_for_rows(2 + number)

        def interrupt() -> list[Future]:
            servicer.wait_for_rows(2 + calls_ahead)
            others = [pool.submit(client.classify, drawing(value)) for value in range(20, 28)]
            ctrl_c()
            return others

        interrupter = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.classify(drawing(9))
        servicer.release()
        assert [pixel(call.result()) for call in interrupter.result()] == list(range(20, 28))
        assert pixel(client.classify(drawing(4))) == 4


def test_calls_survive_a_restart_of_the_server(start_service, tiny_model, noise, pool):
    """After the server is killed and started again, calls in shared requests receive responses.

    The client retries these calls until the server responds, even after `max_attempts` attempts.
    """
    service = start_service(tiny_model)
    is_back = threading.Event()
    started = threading.Barrier(9)

    def classify_until_back(_: int) -> bool:
        started.wait()
        while True:
            is_last = is_back.is_set()
            assert len(client.classify(noise(1))) == 1
            if is_last:
                return True

    with Client(service.address, retry=RetryPolicy(max_attempts=1, first_backoff_s=0.05)) as client:
        client.classify(noise(1))
        calls = [pool.submit(classify_until_back, number) for number in range(8)]
        started.wait()
        service.stop(signal.SIGKILL)
        again = start_service(tiny_model, "--address", service.address)
        is_back.set()
        assert all(call.result() for call in calls)
        again.stop()


def test_each_part_of_a_shared_response_keeps_every_field():
    """`select` copies the fields by name; a new field of a classification must not be lost there."""
    rows = np.arange(3).reshape(3, 1)
    whole = Classification(
        model_name="m",
        model_version="2",
        labels=("a", "b", "c"),
        class_index=rows,
        score=rows.astype(np.float32),
        scores=np.eye(3, dtype=np.float32),
        digests=("d",),
        queue_us=5,
        inference_us=6,
        index=np.array([7, 8, 9]),
    )
    part = select(whole, slice(1, 3))
    for each in fields(Classification):
        before, after = getattr(whole, each.name), getattr(part, each.name)
        assert not np.array_equal(before, each.default), "the field needs another value than its default in this test"
        assert np.array_equal(after, before[1:] if isinstance(before, np.ndarray) else before)
