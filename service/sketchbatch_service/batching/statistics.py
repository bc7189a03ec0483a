"""Count the requests and model calls of one model, and how long they take, for /metrics and the RPC ModelStatistics.

Counts are updated once per model call: a lock and a callback per request would cost several times as much.
Measurements: docs/decisions/0018. Under the lock that counting takes, no counts are added up or copied.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import add
from typing import Any, Literal, get_args

from .row_queue import Request

CloseReason = Literal["full", "shared", "empty", "extra"]
"""Why a batch got no more rows: it was full, it left a share of the rows to other slots, or the queue was empty."""

# Upper bounds of the histogram buckets in seconds:
BOUNDS_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class Duration:
    """A number of events and their total time."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one event."""
        self.count += 1
        self.seconds += seconds

    def __add__(self, other: "Duration") -> "Duration":
        return Duration(self.count + other.count, self.seconds + other.seconds)


@dataclass(slots=True)
class Histogram:
    """The times of events, in buckets bounded by `BOUNDS_S`; the last bucket has no upper bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    seconds: float = 0.0  # of all events together

    def add(self, seconds: float) -> None:
        """Count one event."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds

    def total(self) -> Duration:
        """Return the sum of all buckets."""
        return Duration(sum(self.counts), self.seconds)

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram([*map(add, self.counts, other.counts)], self.seconds + other.seconds)


@dataclass(slots=True, kw_only=True)
class Counts:
    """Counts of one model since the service started."""

    rows: int = 0  # of answered requests
    last_answer_at: float = 0.0  # Unix time in seconds; 0 = none yet
    success: Duration = field(default_factory=Duration)  # answered requests; seconds include decoding and encoding
    fail: Duration = field(default_factory=Duration)  # accepted requests that expired, were cancelled or failed
    queue: Histogram = field(default_factory=Histogram)  # answered requests: seconds from `submit` to the model
    inference: Duration = field(default_factory=Duration)  # answered requests: seconds in their model calls
    decoding_s: float = 0.0  # seconds to decode messages to bitmaps
    encoding: Histogram = field(default_factory=Histogram)  # answered requests: seconds to encode the response
    calls: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # successful model calls by rows
    calls_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))  # their seconds, by rows
    call_times: Histogram = field(default_factory=Histogram)  # successful model calls
    assembling: Histogram = field(default_factory=Histogram)  # successful model calls: seconds to copy their rows
    # Model calls, failed ones included, by the reason for which their batch got no more rows:
    closed: Counter[CloseReason] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(CloseReason), 0)))
    broken_calls: int = 0  # failed model calls
    nonfinite_rows: int = 0  # rows with a score that is NaN or infinite; their requests failed

    def __add__(self, later: "Counts") -> "Counts":
        return Counts(**{name: _SUMS.get(name, add)(getattr(self, name), getattr(later, name)) for name in _FIELDS})


def _sum_by_key(counts: dict[Any, Any], later: dict[Any, Any]) -> dict[Any, Any]:
    summed = counts.copy()  # of the same type
    for key, value in later.items():
        summed[key] += value
    return summed


_FIELDS = [each.name for each in fields(Counts)]
_SUMS: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("calls", "calls_s", "closed"), _sum_by_key),
    "last_answer_at": lambda earlier, later: later or earlier,
}
"""How to sum the fields of `Counts` that `+` does not sum."""


class ModelStatistics:
    """Keep the counts of one model. All methods are thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = Counts()  # until the last call of `counts`; never changed, but replaced
        self._reading = threading.Lock()  # guards `_total`; only `counts` takes it
        self._counts = Counts()  # since then
        self._lock = threading.Lock()  # guards `_counts`; each model call and each answer takes it

    def counts(self) -> Counts:
        """Return the current counts, which later events do not change; do not modify them."""
        empty = Counts()
        with self._reading:
            with self._lock:
                new, self._counts = self._counts, empty
            self._total += new
            return self._total

    def add_call(
        self,
        rows: int,
        completed: list[Request],
        *,
        reason: CloseReason,
        assembling_s: float,
        inference_s: float,
        nonfinite_rows: int = 0,
    ) -> None:
        """Count a successful model call and the requests it completed, before their futures are settled."""
        now, unix_time = self._clock(), time.time()
        with self._lock:
            counts = self._counts
            counts.calls[rows] += 1
            counts.calls_s[rows] += inference_s
            counts.call_times.add(inference_s)
            counts.assembling.add(assembling_s)
            counts.closed[reason] += 1
            counts.nonfinite_rows += nonfinite_rows
            counts.last_answer_at = unix_time
            for request in completed:
                counts.rows += len(request.bitmaps)
                counts.success.add(now - request.queued_at)
                counts.queue.add(request.queue_s)
                counts.inference.add(request.inference_s)

    def add_broken_call(self, close_reason: CloseReason, failed: list[Request]) -> None:
        """Count a failed model call and its requests."""
        with self._lock:
            self._counts.closed[close_reason] += 1
            self._counts.broken_calls += 1
        for request in failed:
            self.add_failure(request)

    def add_failure(self, request: Request) -> None:
        """Count a request that will not be answered; a second call for the same request changes nothing."""
        seconds = self._clock() - request.queued_at
        with self._lock:
            if not request.is_counted:
                request.is_counted = True
                self._counts.fail.add(seconds)

    def add_codec(self, *, encoding_s: float, decoding_s: float = 0.0) -> None:
        """Add the decoding and encoding time of an answered request."""
        with self._lock:
            self._counts.encoding.add(encoding_s)
            self._counts.decoding_s += decoding_s
            self._counts.success.seconds += decoding_s + encoding_s
