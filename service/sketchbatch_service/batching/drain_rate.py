"""Measure how fast rows leave a queue that is not empty, to predict the waiting time of a new request."""

_KEEP = 0.98  # each measurement multiplies the weight of all earlier ones by this: about fifty measurements count
_LARGEST_STEP = 2.0  # most by which one measurement multiplies the estimate
_LARGEST_RATIO = 4.0  # largest ratio of the estimate to the seconds per row of the newest model call
_VALID_S = 1.0  # least time for which a measurement is valid, in seconds
_VALID_MEASUREMENTS = 2.0  # least time for which it is valid, as a multiple of the time that the measurement takes


class DrainRateEstimator:
    """Estimate the seconds per row of a busy model, including all work between the model calls.

    A measurement is the time in which as many model calls end as there are slots, while rows are waiting. With fewer
    calls it would mislead: calls of several slots may end at the same moment. Calls on an empty queue are not measured:
    a small batch takes more time per row than a large one.

    A wrong estimate cannot last, although the batcher rejects requests because of it and so prevents measurements:

    - One measurement at most doubles the estimate, however long the process was paused meanwhile. The first estimate is
      the lower of two measurements: only one of them can include a pause.
    - A model call alone takes more time per row than a busy model. So every model call, on an empty queue, too,
      lowers an estimate that is more than `_LARGEST_RATIO` times the call's own time per row.
    - Without a new measurement, the estimate soon becomes unknown, and the batcher rejects no request because of it.

    Not thread-safe: the batcher calls each method under its own lock.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._estimate = 0.0  # seconds per row; 0 = unknown
        self._weight = 0.0  # rows of the measurements, weighted
        self._measurements = 0  # number since the estimate was unknown; below two, it is still unknown
        self._measured_rows = 0  # rows of the last measurement
        self._measured_at = 0.0
        self._busy_since: float | None = None  # since when rows have been waiting; None = no row is waiting
        self._started_at = 0.0  # when the measurement started; meaningful while rows are waiting
        self._calls = 0  # model calls that ended during the measurement
        self._rows = 0  # rows of these calls

    def seconds_per_row(self, now: float) -> float:
        """Return the seconds per row of all slots together; 0 = unknown."""
        return self._estimate if self._measurements > 1 and self._is_valid(now) else 0.0

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

    def _is_valid(self, now: float) -> bool:
        valid_s = max(_VALID_S, _VALID_MEASUREMENTS * self._estimate * self._measured_rows)
        return now < self._measured_at + valid_s

    def _measure(self, rows: int, took_s: float, now: float) -> None:
        if not self._is_valid(now):
            self._measurements = 0
        if self._measurements < 2:
            measured = took_s / rows
            self._estimate = min(self._estimate, measured) if self._measurements else measured
            self._weight = rows
        else:
            weight = self._weight * _KEEP
            self._weight = weight + rows
            measured = (self._estimate * weight + took_s) / self._weight
            self._estimate = min(measured, _LARGEST_STEP * self._estimate)
        self._measurements += 1
        self._measured_rows, self._measured_at = rows, now
