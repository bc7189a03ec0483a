"""Measure how fast rows leave a queue that is not empty, to predict the waiting time of a new request."""

_KEEP = 0.98  # each new call multiplies the weight of all earlier calls by this: about fifty calls count


class DrainRateEstimator:
    """Estimate the seconds per row of a busy model, including all work between the model calls.

    Only a call that starts and ends while rows are waiting is measured. A call on an empty queue would mislead: a small
    batch takes more time per row than a large one. Not thread-safe: the batcher calls each method under its own lock.
    """

    def __init__(self) -> None:
        self._rows = 0.0  # rows of the measured calls, weighted
        self._took_s = 0.0  # seconds of the measured calls, weighted
        self._busy_since: float | None = None  # since when rows have been waiting; None = the queue was emptied
        self._last_end = 0.0  # when the last measured call ended

    @property
    def seconds_per_row(self) -> float:
        """Return the seconds per row of all slots together; 0 = not yet measured."""
        return self._took_s / self._rows if self._rows else 0.0

    def record_start(self, rows_left: int, now: float) -> None:
        """Record that a model call took its rows from the queue and that `rows_left` rows remain."""
        if not rows_left:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = self._last_end = now

    def record_end(self, rows: int, taken_at: float, now: float) -> None:
        """Record the end of a model call that took `rows` rows from the queue at `taken_at`."""
        if self._busy_since is None or taken_at < self._busy_since:
            return
        self._rows = self._rows * _KEEP + rows
        self._took_s = self._took_s * _KEEP + now - self._last_end
        self._last_end = now
