"""Measures how fast rows leave a queue: what a caller can be promised, and told to wait, depends on it."""

_KEPT = 0.98
"""How much of what was measured still counts at the next model call: some fifty calls make the pace."""


class DrainRateEstimator:
    """Seconds a row takes while others wait behind it: model calls, and all that is done between them.

    Calls that leave nobody waiting tell nothing: one row on an idle service takes longer than one of a hundred.
    Not thread-safe: the batcher holds its lock.
    """

    def __init__(self) -> None:
        self._rows = 0.0  # of the model calls measured, older ones counting less
        self._took_s = 0.0  # likewise
        self._began_at: float | None = None  # time.monotonic seconds at which rows were left waiting; None = none are
        self._marked_at = 0.0  # likewise, of the last call's end

    @property
    def row_s(self) -> float:
        """Seconds, of all slots together; 0 = no rows have waited yet."""
        return self._took_s / self._rows if self._rows else 0.0

    def note_taken(self, left_rows: int, now: float) -> None:
        """A model call has taken its rows, and left so many waiting."""
        if not left_rows:
            self._began_at = None
        elif self._began_at is None:
            self._began_at = self._marked_at = now

    def note_ended(self, rows: int, taken_at: float, now: float) -> None:
        """A model call of so many rows, which took them at `taken_at`, has ended."""
        if self._began_at is None or taken_at < self._began_at:
            return
        self._rows = self._rows * _KEPT + rows
        self._took_s = self._took_s * _KEPT + now - self._marked_at
        self._marked_at = now
