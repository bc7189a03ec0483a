"""Counts what a model is asked and how long it takes, for ModelStatistics to tell."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass, field

from .arrays import Bitmaps, Scores
from .batcher import Batcher, BatchLimits
from .row_queue import Answer


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one more time."""
        self.count += 1
        self.seconds += seconds


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
    """Requests accepted and not answered: out of time, withdrawn, or broken."""

    queue: Duration = field(default_factory=Duration)
    """Answered requests, from `submit` to their first model call."""

    inference: Duration = field(default_factory=Duration)
    """Answered requests, in the model calls they were part of, neighbours' rows included."""

    decoding_s: float = 0.0
    """Seconds that making bitmaps of what callers sent took, as far as `add_codec` was told."""

    encoding_s: float = 0.0
    """Seconds that making answers of scores took, as far as `add_codec` was told."""

    calls: dict[int, Duration] = field(default_factory=dict)
    """Model calls by their number of rows."""


class CountedBatcher(Batcher):
    """A batcher that keeps counts; any thread may read them or add to them."""

    def __init__(self, predict: Callable[[Bitmaps], Scores], limits: BatchLimits) -> None:
        def timed(bitmaps: Bitmaps) -> Scores:
            started_at = time.monotonic()
            scores = predict(bitmaps)
            self._add_call(len(bitmaps), time.monotonic() - started_at)
            return scores

        super().__init__(timed, limits)
        self._counts = Counts()
        self._counting = threading.Lock()

    def submit(self, bitmaps: Bitmaps, *, expires_at: float = math.inf) -> Future[Answer]:
        """As `Batcher.submit`; what it refuses is not counted."""
        rows = len(bitmaps)
        submitted_at = time.monotonic()
        future = super().submit(bitmaps, expires_at=expires_at)
        future.add_done_callback(lambda done: self._add_request(done, rows, time.monotonic() - submitted_at))
        return future

    def counts(self) -> Counts:
        """A copy of the counts as they are now."""
        with self._counting:
            return deepcopy(self._counts)

    def add_codec(self, *, decoding_s: float, encoding_s: float) -> None:
        """Adds what an answered request took before `submit` and after its answer."""
        with self._counting:
            self._counts.decoding_s += decoding_s
            self._counts.encoding_s += encoding_s
            self._counts.success.seconds += decoding_s + encoding_s

    def _add_request(self, done: Future[Answer], rows: int, took_s: float) -> None:
        with self._counting:
            if done.cancelled() or done.exception():
                self._counts.fail.add(took_s)
                return
            answer = done.result()
            self._counts.rows += rows
            self._counts.last_answer_at = time.time()
            self._counts.success.add(took_s)
            self._counts.queue.add(answer.queue_s)
            self._counts.inference.add(answer.inference_s)

    def _add_call(self, rows: int, took_s: float) -> None:
        with self._counting:
            self._counts.calls.setdefault(rows, Duration()).add(took_s)
