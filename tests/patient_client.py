"""Provide a client whose small calls wait in the coalescing queue for as long as a test needs."""

import threading
from collections.abc import Callable

from sketchbatch_client import Client
from sketchbatch_client.rpc.blocking_backend import BlockingBackend, BlockingEvent


class PatientClient(Client):
    """A client without bypass: a small call stays in the coalescing queue until a request in flight ends.

    The semaphore `queued` is released once for each call that enters the queue, or that waits for the labels which
    another call has requested.
    """

    def _make_backend(self) -> BlockingBackend:
        self.queued = queued = threading.Semaphore(0)

        class PatientEvent(BlockingEvent):
            async def wait(self, bypass: Callable[[], object], timeout_s: float) -> bool:
                queued.release()
                return await super().wait(lambda: None, timeout_s)

        class PatientBackend(BlockingBackend):
            def event(self) -> PatientEvent:
                return PatientEvent()

        return PatientBackend()

    def wait_for_queued(self, calls: int) -> None:
        """Wait until `calls` more calls are in the coalescing queue."""
        for _ in range(calls):
            assert self.queued.acquire(timeout=15)
