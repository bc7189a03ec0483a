"""The client opens one connection to each worker of a service and distributes its requests over these connections."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from patient_client import PatientClient
from sketchbatch_client import Client


def classify_200_rows(address: str, **options: object) -> None:
    with Client(address, rows_per_request=10, **options) as client:
        rows = np.arange(200, dtype=np.uint8).repeat(784).reshape(-1, 28, 28)
        assert np.array_equal(np.rint(client.classify(rows).scores[:, 0] * 256), np.arange(200))


@pytest.mark.parametrize("count", [2, 3])
def test_a_bulk_call_discovers_and_uses_every_worker(start_server, workers, count):
    """The client opens more connections until it has one to each worker.

    The client cannot choose the worker of a new connection, because the kernel chooses the worker at random.
    """
    servicers = workers(count)
    address = start_server(servicers[0])
    for servicer in servicers[1:]:
        assert start_server(servicer, address) == address
    classify_200_rows(address)
    assert [len(servicer.peers) for servicer in servicers] == [1] * count


def test_concurrent_small_calls_reach_every_worker(start_server, workers, drawing):
    """While one worker holds the first small call, the second call discovers and uses the other worker."""
    servicers = workers(2)
    address = start_server(servicers[0])
    start_server(servicers[1], address)
    for servicer in servicers:
        servicer.hold()
    with PatientClient(address) as client, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.classify, drawing(7)) for _ in range(2)]
        for servicer in servicers:
            servicer.wait_for_rows(1)
        for servicer in servicers:
            servicer.release()
        assert all(call.result() for call in calls)


def test_one_worker_gets_one_connection(start_server, servicer):
    """A service with a single worker needs no second connection."""
    classify_200_rows(start_server(servicer))
    assert len(servicer.peers) == 1


def test_workers_that_do_not_respond_are_ignored(start_server, workers):
    """If a service reports three workers and only one responds, the client uses the responding worker."""
    only = workers(3)[0]
    classify_200_rows(start_server(only))
    assert len(only.peers) == 1


def test_channels_sets_the_number_of_connections(start_server, servicer):
    """With the option `channels`, the client opens this number of connections and discovers no workers.

    The value 0 is refused.
    """
    classify_200_rows(start_server(servicer), channels=3)
    assert len(servicer.peers) == 3
    with pytest.raises(ValueError, match="channels must be 1 or more, or None, got 0"):
        Client("localhost:1", channels=0)
