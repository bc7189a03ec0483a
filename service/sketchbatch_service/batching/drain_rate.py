"""Measure how fast a busy model takes rows from its queue, to predict the waiting time of a new request.

Busy time lies between the starts of two model calls if no execution slot was idle meanwhile. It includes all work
between the calls, and no time in which nothing waits. Why the estimate cannot reject requests for ever:
docs/decisions/0031.
"""

from bisect import bisect_left, insort
from collections import deque

_OBSERVATIONS = 50  # that count; each later one replaces the oldest
_MIN_OBSERVATION_S = 0.005  # shorter calls are measured together: to measure each would cost microseconds per call
_OUTLIER_FACTOR = 4  # a slowest observation that is slower than the second slowest by this factor is an outlier
_EXPIRY_S = 5.0  # time without busy time after which the drain rate counts as unknown


class DrainRateEstimator:
    """Estimate the seconds per row of a busy model, all execution slots together.

    Times are seconds of any clock that does not go back. Not thread-safe: the batcher calls each method under its lock.
    """

    def __init__(self) -> None:
        self._all = _Observations()
        # Only calls that left rows in the queue. Other calls may be small, and small calls take more time per row.
        self._limited = _Observations()
        self._busy_since: float | None = None  # start of the last model call; None = a slot has been idle since then
        self._rows = 0  # of the last model call
        self._is_limited = False  # whether the last model call left rows in the queue
        self._measured_at = 0.0
        self._seconds_per_row = 0.0

    def seconds_per_row(self, now: float) -> float:
        """Return the estimate; 0 = unknown."""
        if self._busy_since is None:
            self._expire(now)
        return self._seconds_per_row

    def record_start(self, rows: int, rows_left: int, now: float, *, has_idle_slot: bool) -> None:
        """Record that a model call took `rows` rows from the queue, in which `rows_left` rows remain.

        `has_idle_slot` tells whether another slot could start a model call at once.
        """
        is_busy = not has_idle_slot
        if self._busy_since is None:
            self._expire(now)
        else:
            self._measure(now - self._busy_since, now)
            is_busy |= rows_left > 0
        self._busy_since = now if is_busy else None
        self._rows, self._is_limited = rows, rows_left > 0

    def record_idle(self) -> None:
        """Record that a slot becomes idle because no row waits: the time until the next call does not count."""
        self._busy_since = None

    def _measure(self, seconds: float, now: float) -> None:
        self._measured_at = now
        self._all.add(self._rows, seconds)
        if self._is_limited:
            self._limited.add(self._rows, seconds)
        self._seconds_per_row = min(self._limited.seconds_per_row, self._all.seconds_per_row)

    def _expire(self, now: float) -> None:
        if now >= self._measured_at + _EXPIRY_S:
            self._all.clear()
            self._limited.clear()
            self._seconds_per_row = 0.0


class _Observations:
    """The most recent observations. An outlier counts as if it had been as fast per row as the second slowest.

    So one observation alone never sets the estimate. If the process is stopped and resumed, such as in a container that
    is paused, one observation includes the whole pause.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.seconds_per_row = 0.0  # 0 = fewer than two observations
        self._in_order: deque[tuple[float, int]] = deque()  # seconds per row, and rows; oldest first
        self._by_speed: list[tuple[float, int]] = []  # the same; slowest last
        self._rows = 0
        self._seconds = 0.0
        self._next_rows = 0  # of the next observation, so far
        self._next_seconds = 0.0

    def add(self, rows: int, seconds: float) -> None:
        self._next_rows += rows
        self._next_seconds += seconds
        if self._next_seconds >= _MIN_OBSERVATION_S:
            self._append((self._next_seconds / self._next_rows, self._next_rows))
            self._next_rows, self._next_seconds = 0, 0.0

    def _append(self, observation: tuple[float, int]) -> None:
        self._in_order.append(observation)
        insort(self._by_speed, observation)
        self._count(observation, 1)
        if len(self._in_order) > _OBSERVATIONS:
            oldest = self._in_order.popleft()
            del self._by_speed[bisect_left(self._by_speed, oldest)]
            self._count(oldest, -1)
        if len(self._in_order) > 1:
            (second_rate, _), (slowest_rate, slowest_rows) = self._by_speed[-2:]
            is_outlier = slowest_rate > _OUTLIER_FACTOR * second_rate
            excess_s = (slowest_rate - second_rate) * slowest_rows if is_outlier else 0.0
            self.seconds_per_row = (self._seconds - excess_s) / self._rows

    def _count(self, observation: tuple[float, int], sign: int) -> None:
        seconds_per_row, rows = observation
        self._rows += sign * rows
        self._seconds += sign * rows * seconds_per_row
