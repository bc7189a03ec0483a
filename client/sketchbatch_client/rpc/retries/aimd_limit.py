"""Limit how many requests of one bulk call are in flight. Never waits itself.

The limit follows additive increase, multiplicative decrease (AIMD), as TCP does (RFC 5681). A pushback of a
server halves the limit. The limit grows by one after N responses, where N is the limit itself. Therefore many clients
share a service fairly, although they do not communicate with each other.
"""

import math
import threading
import time
from collections.abc import Callable


class AimdLimit:
    """A limit from 1 to `maximum` requests that starts at `maximum`. Thread-safe."""

    def __init__(self, maximum: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum = maximum
        self._clock = clock
        self._value = float(maximum)
        self._ignores_until = -math.inf  # seconds of the clock
        self._lock = threading.Lock()

    @property
    def value(self) -> int:
        """Requests that may be in flight now."""
        return int(self._value)

    def increase(self) -> None:
        """Raise the limit after a response, by 1 / limit."""
        with self._lock:
            self._value = min(float(self.maximum), self._value + 1 / self._value)

    def decrease(self, pause_s: float) -> None:
        """Halve the limit after a pushback; further pushbacks within `pause_s` do not count."""
        with self._lock:
            now = self._clock()
            if now >= self._ignores_until:
                self._value = max(1.0, self._value / 2)
                self._ignores_until = now + pause_s
