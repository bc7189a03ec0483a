"""Counts what a model is asked and how long it takes: ModelStatistics and the metrics both read it.

Once a model call, not once a request: a lock and a callback for each request cost several times as much.
docs/decisions/0018 has the measurements.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from .row_queue import Job

Closed = Literal["full", "shared", "empty"]
"""Why no more rows went into a model call: it holds no more; other idle slots get theirs; none were waiting."""

BOUNDS_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram's buckets in seconds: from a small network's one row to what nobody waits for."""


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one more time."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class Histogram:
    """How often something took how long."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    """By `BOUNDS_S`, and last what took longer than all of them."""

    seconds: float = 0.0
    """In all."""

    def add(self, seconds: float) -> None:
        """Counts one more time."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds

    def total(self) -> Duration:
        """Without the buckets."""
        return Duration(sum(self.counts), self.seconds)


class ModelCall(NamedTuple):
    """One model call that went well."""

    rows: int
    closed: Closed

    assembling_s: float
    """Seconds in which the rows of several requests were put together."""

    inference_s: float


@dataclass(slots=True, kw_only=True)
class Counts:
    """One model's counts since the service started."""

    rows: int = 0
    """Rows answered."""

    last_answer_at: float = 0.0
    """Seconds since 1970; 0 = none yet."""

    success: Duration = field(default_factory=Duration)
    """Requests answered, from `submit` to the answer; where `add_codec` was told, also what it was told."""

    fail: Duration = field(default_factory=Duration)
    """Requests accepted and not run to the end: out of time, withdrawn, or broken."""

    queue: Histogram = field(default_factory=Histogram)
    """Answered requests, from `submit` to their first model call."""

    inference: Duration = field(default_factory=Duration)
    """Answered requests, in the model calls they were part of, neighbours' rows included."""

    decoding_s: float = 0.0
    """Seconds that making bitmaps of what callers sent took, as far as `add_codec` was told."""

    encoding: Histogram = field(default_factory=Histogram)
    """Answers made of scores."""

    calls: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    """Model calls by their number of rows."""

    call_times: Histogram = field(default_factory=Histogram)
    """Likewise, by how long they took."""

    assembling: Histogram = field(default_factory=Histogram)
    """Model calls, by how long it took to put their rows together."""

    closed: Counter[Closed] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(Closed), 0)))
    """Model calls, broken ones too, by why no more rows went into them."""

    broken_calls: int = 0
    """Model calls that failed all their callers."""


class ModelStatistics:
    """Keeps one model's counts. Any thread may add to them, or read them."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._counting = threading.Lock()

    def counts(self) -> Counts:
        """A copy of the counts as they are now."""
        with self._counting:
            return deepcopy(self._counts)

    def add_call(self, call: ModelCall, answered: list[Job]) -> None:
        """Counts a model call and the requests that are whole with it, before their callers hear of it."""
        now = time.monotonic()
        with self._counting:
            counts = self._counts
            counts.calls[call.rows].add(call.inference_s)
            counts.call_times.add(call.inference_s)
            counts.assembling.add(call.assembling_s)
            counts.closed[call.closed] += 1
            counts.last_answer_at = time.time()
            for job in answered:
                counts.rows += len(job.bitmaps)
                counts.success.add(now - job.queued_at)
                counts.queue.add(job.queue_s)
                counts.inference.add(job.inference_s)

    def add_broken_call(self, closed: Closed, failed: list[Job]) -> None:
        """Counts a model call that broke, and the requests that it fails."""
        with self._counting:
            self._counts.closed[closed] += 1
            self._counts.broken_calls += 1
        for job in failed:
            self.add_failure(job)

    def add_failure(self, job: Job) -> None:
        """Counts a request that will not be run to its end; telling it again changes nothing."""
        with self._counting:
            if not job.is_counted:
                job.is_counted = True
                self._counts.fail.add(time.monotonic() - job.queued_at)

    def add_codec(self, *, encoding_s: float, decoding_s: float = 0.0) -> None:
        """Adds what an answered request took after its answer and before `submit`."""
        with self._counting:
            self._counts.encoding.add(encoding_s)
            self._counts.decoding_s += decoding_s
            self._counts.success.seconds += decoding_s + encoding_s
