"""Provide a clock and a condition with which a test decides the order of events."""

import threading


class Clock:
    """A clock in seconds that only the test advances; it replaces `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ObservedCondition(threading.Condition):
    """A condition that releases the semaphore `waits` each time a thread is about to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.release()
        return super().wait(timeout)
