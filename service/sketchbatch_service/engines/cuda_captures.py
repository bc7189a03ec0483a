"""Keeps calls off CUDA while graphs are captured, so that other models can serve while one is loaded.

A capture fails when another thread of the process uses CUDA, and so may what that thread does. Must not know what calls
and captures do.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Captures:
    """Lets calls run beside each other, and captures alone: they wait for the calls under way, and others for them."""

    def __init__(self) -> None:
        self._calls = 0
        self._is_alone = False
        self._changed = threading.Condition()  # guards both

    @contextmanager
    def call(self) -> Iterator[None]:
        """Uses CUDA, beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Uses CUDA while no other does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone)
            self._is_alone = True
            self._changed.wait_for(lambda: not self._calls)
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


CAPTURES = Captures()
"""The process's."""
