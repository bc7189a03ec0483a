"""A model whose calls the test starts, holds and breaks."""

import threading

import numpy as np


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
