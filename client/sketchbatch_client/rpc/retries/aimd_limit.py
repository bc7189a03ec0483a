"""Decides how many requests of one bulk call are under way at once; does no waiting itself.

Additive increase, multiplicative decrease, as TCP does it (RFC 5681): half as many when the servers push back, one more
for each window that was answered. So many clients of one service come to share it without being told of each other.
"""

import threading
import time


class Window:
    """From 1 to `most` requests, `most` at first. Thread-safe."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._size = float(most)
        self._counts_from = 0.0  # time.monotonic seconds
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Requests that may be under way now."""
        return int(self._size)

    def grow(self) -> None:
        """A request was answered."""
        with self._lock:
            self._size = min(float(self.most), self._size + 1 / self._size)

    def shrink(self, pause_s: float) -> None:
        """A request was pushed back for `pause_s`; others that are within that time say nothing new."""
        with self._lock:
            now = time.monotonic()
            if now >= self._counts_from:
                self._size = max(1.0, self._size / 2)
                self._counts_from = now + pause_s
