"""A client that is closed while it is used raises `Unavailable` in every call, at once, and never another error."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from patient_client import PatientClient
from polling import wait_until
from sketchbatch_client import AsyncClient, Client, Unavailable

CLOSED = "^the client was closed$"
THREADS = 8
ROUNDS = 20


@pytest.fixture
def pool():
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def errors_of(calls) -> set[str]:
    """Return the types and messages of the errors of all calls; each call must end with one."""
    return {repr(call.exception(timeout=15)) for call in calls}


def test_threads_in_flight_and_in_the_queue_receive_unavailable(start_server, servicer, drawing, pool):
    """Two calls are in flight and six wait in the coalescing queue when the client is closed."""
    address = start_server(servicer)
    for _ in range(ROUNDS):
        servicer.release()
        client = PatientClient(address)
        client.classify(drawing(0))
        servicer.hold()
        calls, arrived = [], sum(map(len, servicer.requests))
        for number in range(THREADS):
            calls.append(pool.submit(client.classify, drawing(number)))
            if number < 2:
                servicer.wait_for_rows(arrived + number + 1)
        client.wait_for_queued(THREADS - 1)
        client.close()
        assert errors_of(calls) == {"Unavailable('the client was closed')"}


def test_threads_that_start_calls_all_the_time_receive_unavailable(start_server, servicer, drawing, pool):
    """The client may be closed at any moment of a call: while it is sent, decoded, queued or started."""
    address = start_server(servicer)
    for _ in range(20):
        client = Client(address)
        client.classify(drawing(0))
        enough = len(servicer.requests) + 2 * THREADS

        def classify_for_ever(client: Client = client) -> None:
            while True:
                client.classify(drawing(1))

        calls = [pool.submit(classify_for_ever) for _ in range(THREADS)]
        servicer.wait_for_rows(enough)
        client.close()
        assert errors_of(calls) == {"Unavailable('the client was closed')"}


def test_a_large_call_and_an_open_iterator_receive_unavailable(start_server, servicer, pool):
    """A call of several requests fails as a whole, and an iterator at its next result."""
    client = Client(start_server(servicer), rows_per_request=1, in_flight=2)
    bitmaps = np.zeros((50, 28, 28), np.uint8)
    scores = client.score([bitmaps])
    next(scores)
    servicer.hold()
    held = sum(map(len, servicer.requests))
    call = pool.submit(client.classify, bitmaps)
    servicer.wait_for_rows(held + 2)
    client.close()
    assert errors_of([call]) == {"Unavailable('the client was closed')"}
    with pytest.raises(Unavailable, match=CLOSED):
        list(scores)


def test_a_call_that_waits_to_retry_ends_at_once(start_server, servicer, drawing, pool):
    """A closed client does not wait for the end of a pushback of a minute."""
    client = Client(start_server(servicer), timeout_s=1000)
    client.classify(drawing(1))
    servicer.pushbacks, servicer.pushback_ms = 2, 60_000
    call = pool.submit(client.classify, drawing(1))
    wait_until(lambda: servicer.pushbacks < 2)
    client.close()
    assert errors_of([call]) == {"Unavailable('the client was closed')"}


def test_every_method_of_a_closed_client_raises_unavailable(start_server, servicer, drawing):
    """All methods agree, and a second `close` does nothing."""
    client = Client(start_server(servicer))
    client.classify(drawing(1))
    for _ in range(2):
        client.close()
        for call in (client.model, client.models, client.health, lambda: client.classify(drawing(1))):
            with pytest.raises(Unavailable, match=CLOSED):
                call()
        with pytest.raises(Unavailable, match=CLOSED):
            list(client.score([drawing(1)]))


@pytest.mark.parametrize("rows", [1, 50])
async def test_tasks_receive_unavailable_and_are_not_cancelled(start_server, servicer, rows):
    """A closed channel of grpc.aio cancels its calls; without care, tasks would end as if they had been cancelled."""
    client = AsyncClient(start_server(servicer))
    await client.model()
    servicer.hold()
    calls = [asyncio.create_task(client.classify(np.zeros((rows, 28, 28), np.uint8))) for _ in range(THREADS)]
    await asyncio.to_thread(servicer.wait_for_rows, 2 * rows)
    await client.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert set(map(repr, results)) == {"Unavailable('the client was closed')"}


async def test_every_method_of_a_closed_async_client_raises_unavailable(start_server, servicer, drawing):
    """All methods agree, an open iterator too, and a second `close` does nothing."""
    client = AsyncClient(start_server(servicer))
    scores = client.score([drawing(1)] * 50)
    await anext(scores)
    for _ in range(2):
        await client.close()
        for call in (client.model(), client.models(), client.health(), client.classify(drawing(1))):
            with pytest.raises(Unavailable, match=CLOSED):
                await call
    with pytest.raises(Unavailable, match=CLOSED):
        assert len([part async for part in scores]) < 50


async def test_a_cancelled_task_is_still_cancelled(start_server, servicer, drawing):
    """A task that is cancelled while the client is being closed ends with CancelledError."""
    client = AsyncClient(start_server(servicer))
    await client.model()
    servicer.hold()
    call = asyncio.create_task(client.classify(drawing(1)))
    await asyncio.to_thread(servicer.wait_for_rows, 1)
    call.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await call


ENDING = """
import sys, threading
import numpy as np
from sketchbatch_client import Client

client = Client(sys.argv[1])
bitmaps = np.zeros((1, 28, 28), np.uint8)
client.classify(bitmaps)
main = threading.main_thread()

def classify():
    main.join()  # the main thread has ended, and Python waits for this thread
    for _ in range(20):
        client.classify(bitmaps)
    assert len(list(client.score([bitmaps] * 20))) == 20
    sys.stdout.write("answered\\n")  # one write, which other threads do not interrupt

for _ in range(8):
    threading.Thread(target=classify).start()
"""


def test_threads_that_outlive_the_main_thread_are_answered(tiny_service):
    """While the interpreter ends, no pool starts threads, but the remaining threads of a program may still classify."""
    command = [sys.executable, "-c", ENDING, tiny_service.address]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=18)
    assert ended.stdout.split() == ["answered"] * 8, ended.stderr
