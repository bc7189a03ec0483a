"""Make model calls wait while CUDA graphs are captured, so that a model can be loaded while others serve.

A capture fails if another thread of the process uses CUDA meanwhile, and that thread's call may fail, too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Captures:
    """A lock that model calls share and that a capture holds exclusively. A waiting capture runs before later calls."""

    def __init__(self) -> None:
        self._calls = 0
        self._is_capturing = False
        self._changed = threading.Condition()  # guards both attributes

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold the lock for a model call, concurrently with other calls."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_capturing)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Hold the lock exclusively, for a capture."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_capturing)
            self._is_capturing = True
            self._changed.wait_for(lambda: not self._calls)
        try:
            yield
        finally:
            with self._changed:
                self._is_capturing = False
                self._changed.notify_all()


CAPTURES = Captures()  # the lock of this process
