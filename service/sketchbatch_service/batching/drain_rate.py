"""Measure how fast rows leave a queue that is not empty, to predict the waiting time of a new request."""

_KEEP = 0.98  # each measurement multiplies the weight of all earlier ones by this: about fifty measurements count
_LARGEST_STEP = 2.0  # most by which one measurement multiplies the estimate
_LARGEST_RATIO = 4.0  # most seconds per row that are estimated, per second per row of the newest model call
_VALID_S = 1.0  # how long a measurement is valid, at least
_VALID_MEASUREMENTS = 2.0  # how long it is valid, at least, in multiples of the time that such a measurement takes


class DrainRateEstimator:
    """Estimate the seconds per row of a busy model, including all work between the model calls.

    A measurement is the time in which as many model calls end as there are slots, while rows are waiting. With fewer
    calls it would mislead: calls of several slots may end at the same moment. Calls on an empty queue are not measured:
    a small batch takes more time per row than a large one.

    A wrong estimate cannot last, although the batcher rejects requests because of it and so prevents measurements:

    - One measurement at most doubles the estimate, however long the process was paused meanwhile.
    - A model call alone takes more time per row than a busy model. So every model call, on an empty queue, too, ends an
      estimate that is far above its own time per row.
    - Without a new measurement, the estimate soon becomes unknown, and the batcher rejects no request because of it.

    Not thread-safe: the batcher calls each method under its own lock.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._estimate = 0.0  # seconds per row; 0 = unknown
        self._weight = 0.0  # rows of the measurements, weighted
        self._measured_rows = 0  # of the last measurement
        self._measured_at = 0.0
        self._busy_since: float | None = None  # since when rows have been waiting; None = no row is waiting
        self._started_at = 0.0  # when the measurement started; meaningful while rows are waiting
        self._calls = 0  # that ended during the measurement
        self._rows = 0  # of these calls

    def seconds_per_row(self, now: float) -> float:
        """Return the seconds per row of all slots together; 0 = unknown."""
        valid_s = max(_VALID_S, _VALID_MEASUREMENTS * self._estimate * self._measured_rows)
        return self._estimate if now < self._measured_at + valid_s else 0.0

    def record_queue(self, rows: int, now: float) -> None:
        """Record that `rows` rows are waiting, after a model call took rows or after rows were removed."""
        if not rows:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
            self._start(now)

    def record_end(self, rows: int, taken_at: float, now: float) -> None:
        """Record the end of a model call that took `rows` rows from the queue at `taken_at`."""
        self._estimate = min(self._estimate, _LARGEST_RATIO * (now - taken_at) / rows)
        if self._busy_since is None or taken_at < self._busy_since:
            return
        self._calls += 1
        self._rows += rows
        if self._calls >= self._slots:
            self._measure(self._rows, now - self._started_at, now)
            self._start(now)

    def _start(self, now: float) -> None:
        self._started_at, self._calls, self._rows = now, 0, 0

    def _measure(self, rows: int, took_s: float, now: float) -> None:
        known = self.seconds_per_row(now)
        weight = self._weight * _KEEP if known else 0.0
        self._weight = weight + rows
        measured = (known * weight + took_s) / self._weight
        self._estimate = min(measured, _LARGEST_STEP * known) if known else measured
        self._measured_rows, self._measured_at = rows, now
