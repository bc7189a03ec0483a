"""Provide a fake model and functions that run a batcher with this model.

A test can hold the model calls, or make them fail.
"""

import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sketchbatch_service.batching.batcher import Batcher
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool


class FakeModel:
    """Act as a model with one class whose score is the first pixel of the drawing.

    A held model completes no model call until `release` is set.
    """

    def __init__(self, *, held: bool = False) -> None:
        self.batch_sizes: list[int] = []
        self.started = threading.Event()
        self.release = threading.Event()
        self.error: Exception | None = None
        if not held:
            self.release.set()

    def predict(self, bitmaps):
        self.batch_sizes.append(len(bitmaps))
        self.started.set()
        assert self.release.wait(5)
        if self.error:
            raise self.error
        return bitmaps[:, 0, :1].astype(np.float32)


class RecordingBatcher(Batcher):
    """A batcher that records which requests it has accepted."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        # The references are weak, because one test checks that no object of a call exists after the call.
        self._futures: list[weakref.ref] = []

    def submit(self, bitmaps, *, expires_at=math.inf):
        future = super().submit(bitmaps, expires_at=expires_at)
        self._futures.append(weakref.ref(future))
        return future

    @property
    def accepted_requests(self) -> int:
        return len(self._futures)

    @property
    def open_requests(self) -> int:
        """Return the number of accepted requests that have no scores and no error, and are not cancelled."""
        return sum(future is not None and not future.done() for future in [ref() for ref in self._futures])


def drawings(*first_pixels: int):
    """Return one drawing per value; the first pixel of a drawing holds its value."""
    out = np.zeros((len(first_pixels), 28, 28), np.uint8)
    out[:, 0, 0] = first_pixels
    return out


@contextmanager
def running(batcher: Batcher) -> Iterator[Batcher]:
    """Run the batcher on a thread pool until the context ends."""
    with LeaderFollowerPool([batcher], slots=batcher.limits.slots):
        yield batcher


def busy(model: FakeModel, batcher: Batcher):
    """Submit one drawing to the held model and wait until its call starts; the next requests then stay in the queue."""
    future = batcher.submit(drawings(0))
    assert model.started.wait(5)
    return future


def first_pixels(future):
    """Return the first pixel of each scored drawing, in the order of the request's rows."""
    return future.result(5).scores[:, 0].tolist()
