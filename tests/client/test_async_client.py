"""The asyncio client: the same answers and the same manners as `Client`."""

import asyncio

import numpy as np
import pytest
from sketchbatch_client import AsyncClient, Client, ModelNotFound, RequestRefused, Unavailable
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy


def pixel(result) -> int:
    assert len(result) == 1
    return round(float(result.scores[0, 0]) * 256)


async def queued_behind_two(client, watched, drawing, pixels) -> list[asyncio.Task]:
    """Asks about one drawing each while the server holds two requests, so that the rest share."""
    watched.hold()
    ahead = []
    for number in range(2):
        ahead.append(asyncio.create_task(client.classify(drawing(1))))
        await asyncio.to_thread(watched.wait_for_rows, number + 1)
    calls = [asyncio.create_task(client.classify(drawing(value))) for value in pixels]
    await asyncio.to_thread(watched.wait_for_rows, 2 + len(pixels))
    assert len(watched.requests) == (3 if pixels else 2)
    watched.ahead = ahead  # kept from being collected
    return calls


@pytest.mark.parametrize("rows", [1, 7, 8, 100])
async def test_any_number_of_rows_gets_the_answer_that_client_gives(tiny_service, noise, rows):
    """Both decode alike."""
    with Client(tiny_service.address) as threads:
        expected = threads.classify(noise(rows))
    async with AsyncClient(tiny_service.address, rows_per_request=7) as client:
        result = await client.classify(noise(rows))
        best = await client.classify(noise(rows), top_k=1)
    assert np.allclose(result.scores, expected.scores, atol=1e-6)
    assert result.label.tolist() == best.label.tolist() == expected.label.tolist()


@pytest.mark.parametrize("is_async", [True, False])
async def test_batches_are_scored_in_order(tiny_service, noise, is_async):
    """From an iterable of either kind."""

    async def batches():
        for number in range(1, 30):
            yield noise(number)

    async with AsyncClient(tiny_service.address, rows_per_request=7) as client:
        source = batches() if is_async else map(noise, range(1, 30))
        parts = [part.scores async for part in client.score(source)]
        alone = [(await client.classify(noise(number))).scores for number in range(1, 30)]
    assert max(map(len, parts)) == 7
    assert np.allclose(np.concatenate(parts), np.concatenate(alone), atol=1e-6)


async def test_models_health_and_refusals_are_told(tiny_service, noise):
    """As `Client` tells them."""
    async with AsyncClient(tiny_service.address) as client:
        assert [await client.model()] == await client.models()
        assert await client.health() == "SERVING"
        assert await client.health("no.such.Service") == "SERVICE_UNKNOWN"
        with pytest.raises(RequestRefused, match=r"top_k must be 0\.\.3"):
            await client.classify(noise(1), top_k=4)
        with pytest.raises(ModelNotFound):
            await client.classify(noise(1), model_name="zebra")


async def test_a_storm_of_tasks_is_answered_by_far_fewer_requests(start_watched, watched, drawing):
    """No call is lost, and nobody hears another's answer."""
    async with AsyncClient(start_watched(watched)) as client:

        async def ask(number: int) -> list[int]:
            return [pixel(await client.classify(drawing((number + call) % 250))) for call in range(100)]

        answers = await asyncio.gather(*map(ask, range(32)))
    assert answers == [[(number + call) % 250 for call in range(100)] for number in range(32)]
    assert sum(map(len, watched.requests)) == 3200
    assert len(watched.requests) < 3200 / 4


async def test_a_refused_caller_is_refused_alone(start_watched, watched, drawing):
    """The request that it shared fails; its neighbours are answered all the same."""
    async with AsyncClient(start_watched(watched)) as client:
        calls = await queued_behind_two(client, watched, drawing, [10, 255, 11])
        watched.release()
        with pytest.raises(RequestRefused, match="no such drawing"):
            await calls.pop(1)
        assert [pixel(await call) for call in calls] == [10, 11]
    assert [10, 255, 11] in watched.requests


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_a_cancelled_caller_leaves_alone(start_watched, watched, drawing, leaver):
    """Whichever of those that share it is."""
    async with AsyncClient(start_watched(watched)) as client:
        calls = await queued_behind_two(client, watched, drawing, [10, 11, 12])
        calls[leaver].cancel()
        watched.ahead[0].cancel()  # this one asked by itself
        await asyncio.sleep(0.01)
        watched.release()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        assert pixel(await client.classify(drawing(4))) == 4
    for number, answer in enumerate(answers):
        if number == leaver:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert pixel(answer) == 10 + number


async def test_what_a_caller_that_has_left_wanted_is_not_sent(start_watched, watched, drawing):
    """Its rows are dropped while they wait; the next in line goes without them."""
    async with AsyncClient(start_watched(watched)) as client:
        await client.model()
        await queued_behind_two(client, watched, drawing, [])
        calls = [asyncio.create_task(client.classify(drawing(value))) for value in (10, 11)]
        await asyncio.sleep(0.001)
        calls[0].cancel()
        watched.release()
        assert pixel(await calls[1]) == 11
    assert [11] in watched.requests
    assert not any(10 in request for request in watched.requests)


async def test_a_server_that_is_not_there_is_said_to_all(drawing):
    """Each caller has its own attempts."""
    retry = RetryPolicy(max_attempts=2, first_backoff_s=0.01)
    async with AsyncClient("127.0.0.1:1", retry=retry) as client:
        answers = await asyncio.gather(*(client.classify(drawing(1)) for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 5
