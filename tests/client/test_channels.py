"""One connection for each worker process of a service, and requests spread over them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sketchbatch_client import Client


def ask_in_bulk(address: str, **options: object) -> None:
    with Client(address, rows_per_request=10, **options) as client:
        rows = np.arange(200, dtype=np.uint8).repeat(784).reshape(-1, 28, 28)
        assert np.array_equal(np.rint(client.classify(rows).scores[:, 0] * 256), np.arange(200))


@pytest.mark.parametrize("count", [2, 3])
def test_every_worker_is_reached_and_used(start_watched, workers, count):
    """The kernel gives a connection to one of those that listen; the client tries until it has met them all."""
    servicers = workers(count)
    address = start_watched(servicers[0])
    for servicer in servicers[1:]:
        assert start_watched(servicer, address) == address
    ask_in_bulk(address)
    assert [len(servicer.peers) for servicer in servicers] == [1] * count


def test_concurrent_small_calls_reach_every_worker(start_watched, workers, drawing):
    """Not large calls alone."""
    servicers = workers(2)
    address = start_watched(servicers[0])
    start_watched(servicers[1], address)
    with Client(address) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(client.classify, map(drawing, [7] * 400)))
    assert all(servicer.requests for servicer in servicers)


def test_one_worker_is_asked_over_one_connection(start_watched, watched):
    """However much is asked."""
    ask_in_bulk(start_watched(watched))
    assert len(watched.peers) == 1


def test_workers_that_cannot_be_met_are_done_without(start_watched, workers):
    """A service that speaks of three workers, of which one answers, is used as it is."""
    only = workers(3)[0]
    ask_in_bulk(start_watched(only))
    assert len(only.peers) == 1


def test_the_number_of_connections_can_be_given(start_watched, watched):
    """It is kept, whatever the service says; none at all is refused."""
    ask_in_bulk(start_watched(watched), channels=3)
    assert len(watched.peers) == 3
    with pytest.raises(ValueError, match="channels must be 1 or more, or None, got 0"):
        Client("localhost:1", channels=0)
