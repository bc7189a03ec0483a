"""The asyncio client gives the same results and errors as `Client`."""

import asyncio
import pickle

import numpy as np
import pytest
from sketchbatch_client import AsyncClient, Client, ModelNotFound, RequestRefused, Unavailable
from sketchbatch_client.rpc import asyncio_backend
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy


def pixel(result) -> int:
    assert len(result) == 1
    return round(float(result.scores[0, 0]) * 256)


async def fill_both_requests(client, servicer, drawing) -> list[asyncio.Task]:
    """Send two requests that the server holds, so that further calls wait in the client's coalescing queue.

    A coalescing queue has at most two requests in flight. The first pixel of both drawings is 1.
    """
    servicer.hold()
    calls = []
    for number in range(2):
        calls.append(asyncio.create_task(client.classify(drawing(1))))
        await asyncio.to_thread(servicer.wait_for_rows, number + 1)
    return calls


async def queue_calls(client, drawing, pixels) -> list[asyncio.Task]:
    """Start one call per value of `pixels`, and wait until all these calls are in the coalescing queue."""
    calls = [asyncio.create_task(client.classify(drawing(value))) for value in pixels]
    await asyncio.sleep(0)
    return calls


@pytest.mark.parametrize("rows", [1, 7, 8, 100])
async def test_results_equal_those_of_client(tiny_service, noise, rows):
    """The asyncio client splits and joins any number of rows like the blocking client."""
    with Client(tiny_service.address) as blocking:
        expected = blocking.classify(noise(rows))
    async with AsyncClient(tiny_service.address, rows_per_request=7) as client:
        result = await client.classify(noise(rows))
        best = await client.classify(noise(rows), top_k=1)
    assert np.allclose(result.scores, expected.scores, atol=1e-6)
    assert result.label.tolist() == best.label.tolist() == expected.label.tolist()


@pytest.mark.parametrize("is_async", [True, False])
async def test_batches_are_scored_in_order(tiny_service, noise, is_async):
    """Batches from an iterable or an asynchronous iterable are scored in order."""

    async def batches():
        for number in range(1, 30):
            yield noise(number)

    async with AsyncClient(tiny_service.address, rows_per_request=7) as client:
        source = batches() if is_async else map(noise, range(1, 30))
        parts = [part.scores async for part in client.score(source)]
        alone = [(await client.classify(noise(number))).scores for number in range(1, 30)]
    assert max(map(len, parts)) == 7
    assert np.allclose(np.concatenate(parts), np.concatenate(alone), atol=1e-6)


async def test_models_health_and_errors_equal_those_of_client(tiny_service, noise):
    """Models, health and server errors have the types of the blocking client."""
    async with AsyncClient(tiny_service.address) as client:
        assert [await client.model()] == await client.models()
        assert await client.health() == "SERVING"
        assert await client.health("no.such.Service") == "SERVICE_UNKNOWN"
        with pytest.raises(RequestRefused, match=r"top_k must be 1\.\.3"):
            await client.classify(noise(1), top_k=4)
        with pytest.raises(ModelNotFound):
            await client.classify(noise(1), model_name="zebra")


async def test_each_of_many_concurrent_calls_gets_its_own_rows(start_server, servicer, drawing):
    """Each of 3,200 concurrent calls is sent once, and receives the scores of its own rows."""
    async with AsyncClient(start_server(servicer)) as client:

        async def classify(number: int) -> list[int]:
            return [pixel(await client.classify(drawing((number + call) % 250))) for call in range(100)]

        results = await asyncio.gather(*map(classify, range(32)))
    assert results == [[(number + call) % 250 for call in range(100)] for number in range(32)]
    assert sum(map(len, servicer.requests)) == 3200
    assert len(servicer.requests) < 3200


async def test_queued_calls_share_one_request(start_server, servicer, drawing):
    """Calls that wait in the coalescing queue while two requests are in flight share the next request."""
    async with AsyncClient(start_server(servicer)) as client:
        await fill_both_requests(client, servicer, drawing)
        calls = await queue_calls(client, drawing, range(10, 30))
        servicer.release()
        assert [pixel(await call) for call in calls] == list(range(10, 30))
    assert servicer.requests == [[1], [1], list(range(10, 30))]


async def test_a_rejected_call_does_not_affect_the_calls_that_share_its_request(start_server, servicer, drawing):
    """After a shared request has failed, the client sends each of its calls in a request of its own."""
    async with AsyncClient(start_server(servicer)) as client:
        await fill_both_requests(client, servicer, drawing)
        calls = await queue_calls(client, drawing, [10, 255, 11])
        servicer.release()
        with pytest.raises(RequestRefused, match="rejected drawing"):
            await calls.pop(1)
        assert [pixel(await call) for call in calls] == [10, 11]
    assert [10, 255, 11] in servicer.requests


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_call_does_not_affect_the_calls_that_share_its_request(
    start_server, servicer, drawing, cancelled
):
    """If one of the calls that share a request is cancelled while it is in flight, the others receive their scores."""
    async with AsyncClient(start_server(servicer)) as client:
        ahead = await fill_both_requests(client, servicer, drawing)
        calls = await queue_calls(client, drawing, [10, 11, 12])
        await asyncio.to_thread(servicer.wait_for_rows, 5)
        for call in (calls[cancelled], ahead[0]):  # `ahead[0]` is a call that was sent in a request of its own
            call.cancel()
            await asyncio.wait([call])
        servicer.release()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert pixel(await client.classify(drawing(4))) == 4
    assert [10, 11, 12] in servicer.requests
    for number, result in enumerate(results):
        if number == cancelled:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert pixel(result) == 10 + number


async def test_the_rows_of_a_call_that_was_cancelled_in_the_queue_are_not_sent(start_server, servicer, drawing):
    """If a call is cancelled in the coalescing queue, the next shared request does not contain its rows."""
    async with AsyncClient(start_server(servicer)) as client:
        await fill_both_requests(client, servicer, drawing)
        calls = await queue_calls(client, drawing, [10, 11])
        calls[0].cancel()
        await asyncio.sleep(0)  # the cancelled call ends
        servicer.release()
        assert pixel(await calls[1]) == 11
    assert servicer.requests == [[1], [1], [11]]


async def test_an_unreachable_server_is_reported_to_every_call(drawing):
    """If the server is unreachable, each of five concurrent calls raises Unavailable."""
    retry = RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    async with AsyncClient("127.0.0.1:1", retry=retry) as client:
        results = await asyncio.gather(*(client.classify(drawing(1)) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 5


@pytest.mark.parametrize("how", ["raises an exception", "is cancelled before its first step"])
async def test_calls_whose_sender_fails_are_sent_alone(start_server, servicer, drawing, monkeypatch, how):
    """If the sender of shared requests fails or is cancelled, its waiting calls are sent alone.

    This also holds after more failures than a queue has requests in flight.
    """
    monkeypatch.setattr(asyncio_backend, "MAX_WAIT_S", 60)  # without bypass, only the sender ends the wait
    async with AsyncClient(start_server(servicer)) as client:
        await client.classify(drawing(0))
        for _ in range(3):
            servicer.requests.clear()
            servicer.hold()
            first = asyncio.create_task(client.classify(drawing(1)))
            await asyncio.to_thread(servicer.wait_for_rows, 1)
            before = asyncio.all_tasks()
            if how == "raises an exception":
                monkeypatch.setattr(client, "_discover_workers", broken)
            [second] = await queue_calls(client, drawing, [2])
            if how != "raises an exception":
                [sender] = asyncio.all_tasks() - before - {second}
                sender.cancel()
            await asyncio.to_thread(servicer.wait_for_rows, 2)
            servicer.release()
            assert [pixel(await call) for call in (first, second)] == [1, 2]


async def broken() -> None:
    """Fail as code with a defect does."""
    raise ZeroDivisionError("injected")


def test_a_client_serves_one_event_loop_after_the_other(tiny_service, noise):
    """A client that was made outside an event loop works in each `asyncio.run`; closing it outside is no error."""
    client = AsyncClient(tiny_service.address, rows_per_request=2)

    async def rows() -> list[int]:
        return [len(await client.classify(noise(2))), *[len(part) async for part in client.score([noise(3)])]]

    assert [asyncio.run(rows()) for _ in range(2)] == [[2, 2, 1]] * 2
    asyncio.run(client.close())
    with pytest.raises(Unavailable, match="the client was closed"):
        asyncio.run(rows())


async def test_a_client_is_refused_in_a_second_loop_that_runs_concurrently(tiny_service, noise):
    """The error is one line of the client's own; the first loop is not disturbed."""
    async with AsyncClient(tiny_service.address) as client:
        await client.classify(noise(1))
        with pytest.raises(RequestRefused, match="must be used in one event loop at a time"):
            await asyncio.to_thread(asyncio.run, client.classify(noise(1)))
        assert len(await client.classify(noise(1))) == 1


@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_a_client_cannot_be_pickled(client):
    """The error says what to do in another process."""
    with pytest.raises(TypeError, match="Client cannot be pickled: open one in each process"):
        pickle.dumps(client("localhost:1"))
