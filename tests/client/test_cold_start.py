"""Concurrent first calls of a client share one request for what all of them need: the model's limit and its labels."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from patient_client import PatientClient
from sketchbatch_client import AsyncClient, DeadlineExceeded, ModelNotFound

THREADS = 128
TASKS = 1000
MOST_REQUESTS = 3  # one for the limit, one to discover workers, one for the labels


class GatedModels:
    """Part of a `ScriptedServicer`: count the GetModel requests, and hold them until `models_may_pass` is set.

    The next `missing` requests receive NOT_FOUND.
    """

    def __init__(self) -> None:
        super().__init__()
        self.models_may_pass = threading.Event()
        self.model_arrived = threading.Semaphore(0)
        self.model_requests = 0
        self.missing = 0

    def GetModel(self, request, context):  # noqa: N802
        self.model_requests += 1
        self.model_arrived.release()
        self.models_may_pass.wait(15)
        if self.missing:
            self.missing -= 1
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return super().GetModel(request, context)

    def release(self, **limits: float) -> None:
        self.models_may_pass.set()
        super().release(**limits)


@pytest.fixture
def models(servicer) -> GatedModels:
    return type("GatedModelsServicer", (GatedModels, type(servicer)), {})()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def begin(client, pool, drawing, calls: int):
    """Start calls in threads; return them when one has sent GetModel and all others wait for its response."""
    begun = [pool.submit(client.classify, drawing(1)) for _ in range(calls)]
    client.wait_for_queued(calls - 1)
    return begun


def test_threads_share_one_request_for_the_model(start_server, models, drawing, pool):
    """The cold start of 128 threads makes as many GetModel requests as that of one thread."""
    with PatientClient(start_server(models)) as client:
        started = threading.Barrier(THREADS, action=models.models_may_pass.set)

        def classify() -> int:
            started.wait()
            return len(client.classify(drawing(1)))

        assert sum(pool.map(lambda _: classify(), range(THREADS))) == THREADS
    assert models.model_requests <= MOST_REQUESTS


async def test_tasks_share_one_request_for_the_model(start_server, models, drawing):
    """The cold start of 1,000 tasks makes as many GetModel requests as that of one task."""
    async with AsyncClient(start_server(models)) as client:
        models.models_may_pass.set()
        results = await asyncio.gather(*(client.classify(drawing(1)) for _ in range(TASKS)))
    assert sum(map(len, results)) == TASKS
    assert models.model_requests <= MOST_REQUESTS


def test_an_error_reaches_all_waiting_threads_and_is_not_kept(start_server, models, drawing, pool):
    """All calls that wait for a failed request raise its error; the next call sends another request."""
    models.missing = 1
    with PatientClient(start_server(models)) as client:
        calls = begin(client, pool, drawing, 8)
        models.models_may_pass.set()
        assert {type(call.exception(15)) for call in calls} == {ModelNotFound}
        assert models.model_requests == 1
        assert len(client.classify(drawing(1))) == 1


async def test_an_error_reaches_all_waiting_tasks_and_is_not_kept(start_server, models, drawing):
    """The same holds for tasks."""
    models.missing = 1
    models.models_may_pass.set()
    async with AsyncClient(start_server(models)) as client:
        calls = (client.classify(drawing(1)) for _ in range(8))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert set(map(type, results)) == {ModelNotFound}
        assert models.model_requests == 1
        assert len(await client.classify(drawing(1))) == 1


def test_a_waiting_thread_keeps_its_own_deadline(start_server, models, drawing, pool):
    """A call with less time than the call that sends the request fails when its own time has passed."""
    with PatientClient(start_server(models)) as client:
        first = begin(client, pool, drawing, 1)[0]
        assert models.model_arrived.acquire(timeout=15)
        client._timeout_s = 0.1  # the timeout of the next call
        with pytest.raises(DeadlineExceeded, match=r"in 0\.1 s"):
            client.classify(drawing(1))
        client._timeout_s = 60.0
        models.models_may_pass.set()
        assert len(first.result(15)) == 1


async def test_a_cancelled_task_does_not_cancel_the_request_for_the_others(start_server, models, drawing):
    """If the task that has sent the request is cancelled, another task repeats it; other calls are not cancelled."""
    async with AsyncClient(start_server(models)) as client:
        calls = [asyncio.create_task(client.classify(drawing(1))) for _ in range(8)]
        assert await asyncio.to_thread(models.model_arrived.acquire, timeout=15)
        for cancelled in (calls[0], calls[3]):  # the task that leads, and one that waits
            cancelled.cancel()
        await asyncio.wait([calls[0], calls[3]])
        models.models_may_pass.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in (results.pop(3), results.pop(0))] == [asyncio.CancelledError] * 2
    assert sum(map(len, results)) == 6
    assert models.model_requests <= MOST_REQUESTS + 1
