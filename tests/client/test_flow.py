"""How much of a bulk job is under way: as much as the servers take, and more again when they take more."""

import threading
import time

import numpy as np
import pytest
from sketchbatch_client import AsyncClient, Client
from sketchbatch_client.rpc.retries.aimd_limit import Window

ROWS = np.arange(200, dtype=np.uint8).repeat(784).reshape(-1, 28, 28)


def first_pixels(parts) -> list[int]:
    return np.rint(np.concatenate([part.scores[:, 0] for part in parts]) * 256).astype(int).tolist()


def test_a_window_halves_when_pushed_back_and_grows_by_one_a_window():
    """Never below one nor above the most."""
    window = Window(8)
    for size in (4, 2, 1, 1):
        window.shrink(0.0)
        assert window.size == size
    for answers, size in [(1, 2), (3, 3), (4, 4), (60, 8)]:
        for _ in range(answers):
            window.grow()
        assert window.size == size


def test_refusals_of_one_moment_count_once():
    """Those that were under way when the first came say nothing new until its pushback has passed."""
    window = Window(8)
    for _ in range(8):
        window.shrink(60.0)
    assert window.size == 4


def test_a_job_that_is_pushed_back_has_fewer_requests_under_way(start_watched, watched):
    """And loses none: each is sent again when the server said it might."""
    with Client(start_watched(watched), rows_per_request=1, in_flight=8) as client:
        watched.hold()
        parts = []
        job = threading.Thread(target=lambda: parts.extend(client.score([ROWS])))
        job.start()
        watched.wait_for_rows(8)
        watched.full_for, watched.pushback_ms = 1, 5
        watched.release(below=1)
        watched.wait_for_rows(9)  # the next, which was pushed back, and has come again
        watched.release(below=9)
        watched.wait_for_rows(9 + 4)
        time.sleep(0.1)  # nothing more comes
        assert len(watched.requests) - 9 in (4, 5)  # half of eight, and one that eight answers brought
        watched.release()
        job.join(10)
    assert first_pixels(parts) == list(range(200))


async def test_tasks_are_held_back_likewise(start_watched, watched):
    """By the same window."""
    watched.full_for, watched.pushback_ms = 40, 1
    async with AsyncClient(start_watched(watched), rows_per_request=1, in_flight=8) as client:
        parts = [part async for part in client.score([ROWS])]
    assert first_pixels(parts) == list(range(200))


def test_a_full_server_is_left_alone_while_another_takes_its_requests(start_watched, workers):
    """Its pushback is obeyed, and nobody waits for it."""
    full, free = [*workers(1), *workers(1)]
    full.full_for, full.pushback_ms = 99, 60_000
    with Client([start_watched(full), start_watched(free)], rows_per_request=1) as client:
        assert first_pixels(client.score([ROWS])) == list(range(200))
    assert sum(map(len, free.requests)) == 200
    assert full.full_for >= 99 - 8  # only what was under way before the first refusal was heard


def test_a_window_of_none_is_refused():
    """At once."""
    with pytest.raises(ValueError, match="in_flight must be 1 or more, or None, got 0"):
        Client("localhost:1", in_flight=0)
