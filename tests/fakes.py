"""A model whose calls the test starts, holds and breaks, and what it takes to run it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sketchbatch_service.batching.batcher import Batcher
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool


class FakeModel:
    """Scores a drawing by its first pixel; holds each call until `release` is set."""

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


def drawings(*first_pixels: int):
    """One drawing per value, told apart by its first pixel."""
    out = np.zeros((len(first_pixels), 28, 28), np.uint8)
    out[:, 0, 0] = first_pixels
    return out


@contextmanager
def running(batcher: Batcher) -> Iterator[Batcher]:
    """The batcher with threads to run it."""
    with LeaderFollowerPool([batcher], slots=batcher.limits.slots):
        yield batcher


def busy(model: FakeModel, batcher: Batcher):
    """Occupies the model, so that whatever is submitted next has to queue."""
    future = batcher.submit(drawings(0))
    assert model.started.wait(5)
    return future


def first_pixels(future):
    """Which drawings an answer is about, in its order."""
    return future.result(5).scores[:, 0].tolist()
