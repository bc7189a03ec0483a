"""A bulk call has as many requests in flight as the servers accept."""

import threading

import numpy as np
import pytest
from gates import Clock
from sketchbatch_client import AsyncClient, Client
from sketchbatch_client.rpc.blocking_backend import BlockingBackend, BlockingRequests
from sketchbatch_client.rpc.retries.aimd_limit import AimdLimit

ROWS = np.arange(200, dtype=np.uint8).repeat(784).reshape(-1, 28, 28)


def first_pixels(parts) -> list[int]:
    return np.rint(np.concatenate([part.scores[:, 0] for part in parts]) * 256).astype(int).tolist()


def test_the_limit_halves_after_a_pushback_and_grows_by_one_per_full_set_of_responses():
    """The AIMD limit halves after a pushback. A limit of N grows by one after N responses.

    The limit stays between one and its maximum.
    """
    limit = AimdLimit(8)
    for value in (4, 2, 1, 1):
        limit.decrease(0.0)
        assert limit.value == value
    for responses, value in [(1, 2), (3, 3), (4, 4), (60, 8)]:
        for _ in range(responses):
            limit.increase()
        assert limit.value == value


def test_pushbacks_within_the_pause_of_the_first_count_once():
    """After a pushback, further pushbacks do not lower the limit until the delay of the first pushback has passed.

    Such pushbacks belong to requests that were already in flight when the first pushback arrived.
    """
    limit = AimdLimit(8)
    for _ in range(8):
        limit.decrease(60.0)
    assert limit.value == 4


def test_the_limit_grows_to_its_maximum_after_a_freeze_of_the_server():
    """After any number of pushbacks of a frozen or full server, 40 responses raise the limit from 1 to 8."""
    clock = Clock()
    limit = AimdLimit(8, clock=clock)
    for _ in range(100):
        limit.decrease(0.3)
        clock.advance(0.3)
    assert limit.value == 1
    for _ in range(40):
        limit.increase()
    assert limit.value == 8


def test_pushbacks_that_a_stopped_client_reads_late_halve_the_limit_once():
    """If a client was stopped for a minute, the pushbacks of all requests in flight arrive together, and count once."""
    clock = Clock()
    limit = AimdLimit(8, clock=clock)
    limit.decrease(0.3)
    limit.increase()
    clock.advance(60)
    for _ in range(8):
        limit.decrease(0.3)
    assert limit.value == 2


class RecordingClient(Client):
    """A client that counts its requests in flight each time a bulk call waits for its oldest request."""

    def _make_backend(self) -> BlockingBackend:
        self.in_flight = in_flight = []

        class RecordingRequests(BlockingRequests):
            async def next(self):
                in_flight.append(len(self))
                return await super().next()

        class RecordingBackend(BlockingBackend):
            def ordered_requests(self, max_in_flight: int) -> RecordingRequests:
                return RecordingRequests(max_in_flight)

        return RecordingBackend()


def test_a_bulk_call_has_half_as_many_requests_in_flight_after_a_pushback(start_server, servicer):
    """After a pushback halves the limit from 8 to 4, a bulk call sends no request until fewer than 4 are in flight.

    Every row is scored.
    """
    with RecordingClient(start_server(servicer), rows_per_request=1, in_flight=8) as client:
        servicer.hold()
        parts = []
        job = threading.Thread(target=lambda: parts.extend(client.score([ROWS])))
        job.start()
        servicer.wait_for_rows(8)
        servicer.pushbacks, servicer.pushback_ms = 1, 5
        servicer.release(below=1)
        servicer.wait_for_rows(9)  # the request that was pushed back has arrived again
        servicer.release()
        job.join()
    assert client.in_flight[:5] == [8, 8, 7, 6, 5]
    assert first_pixels(parts) == list(range(200))


def test_a_bulk_call_uses_the_whole_limit_again_after_pushbacks(start_server, servicer):
    """After many pushbacks, a bulk call returns to 8 requests in flight while its requests succeed."""
    with RecordingClient(start_server(servicer), rows_per_request=1, in_flight=8) as client:
        servicer.pushbacks, servicer.pushback_ms = 30, 1
        assert first_pixels(client.score([ROWS])) == list(range(200))
    assert min(client.in_flight[:60]) < 8
    assert max(client.in_flight[-60:]) == 8


async def test_pushed_back_requests_of_tasks_are_sent_again(start_server, servicer):
    """A bulk call of the asyncio client sends pushed-back requests again and loses no row."""
    servicer.pushbacks, servicer.pushback_ms = 40, 1
    async with AsyncClient(start_server(servicer), rows_per_request=1, in_flight=8) as client:
        parts = [part async for part in client.score([ROWS])]
    assert first_pixels(parts) == list(range(200))


def test_a_full_server_gets_no_requests_while_another_accepts_them(start_server, workers):
    """If one of two servers is full, the client sends the rejected requests to the other server without a delay.

    The full server receives no more requests during the pushback of 60 s.
    """
    full, free = [*workers(1), *workers(1)]
    full.pushbacks, full.pushback_ms = 99, 60_000
    with Client([start_server(full), start_server(free)], rows_per_request=1) as client:
        assert first_pixels(client.score([ROWS])) == list(range(200))
    assert sum(map(len, free.requests)) == 200
    assert full.pushbacks >= 99 - 8  # the full server received at most 8 requests, sent before the first pushback


def test_in_flight_must_be_positive():
    """The constructor of the client refuses the value 0 for the option `in_flight`."""
    with pytest.raises(ValueError, match="in_flight must be 1 or more, or None, got 0"):
        Client("localhost:1", in_flight=0)
