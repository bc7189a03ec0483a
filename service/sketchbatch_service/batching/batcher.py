"""Admit requests, merge small ones and split large ones into batches, and distribute the scores to the requests.

Flow: any thread calls `submit` -> `RowQueue` -> a thread of the pool calls `take`, then `Batch.run` -> the request's
future receives its scores. The batcher has no threads and knows neither gRPC, ONNX Runtime nor an event loop.

Latency contract:

- A request never waits for other requests to arrive. If an execution slot is free, its rows start at once.
- While all slots are busy, requests wait in the queue. The next free slot takes several together, as one batch.
- A small request fits into one batch: it has at most `max_batch_rows` rows. All other requests are large.
- While both kinds wait, each kind gets half of every call. Requests of one kind run in order of arrival.
- So a small request waits for the running calls and the small requests ahead of it, never for a whole large request.
- While all slots run long calls, a request of at most `quick_rows` rows does not wait for them if others like it have
  arrived in the last seconds and few are waiting: it runs on the polling thread, beyond the slots, and the operating
  system divides the CPUs between the calls.
- `submit` rejects a request if the queue is full, or if it would probably miss its deadline.
- A request whose deadline passes in the queue fails with `DeadlinePassed`. Its waiting rows never run.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import Bitmaps, Scores
from ..errors import DeadlinePassed, InferenceFailed, Overloaded, ScoresNotFinite, ShuttingDown
from .drain_rate import DrainRateEstimator
from .finite_rows import finite_rows
from .row_queue import Answer, Request, RowQueue, Slice
from .statistics import CloseReason, ModelStatistics

_DEFAULT_RETRY_S = 0.1  # retry delay that a full queue advises before the drain rate is known
_SAFETY_FACTOR = 1.5
"""Factor on predicted waiting times. A request that misses its deadline used model time for nothing and delayed the
requests behind it; a request that is rejected too early can be retried. Measurements: docs/decisions/0024."""

_FAILING_CALLS = 3  # consecutive failed calls after which a model counts as failing: one failure may be chance
_EXPECTING_S = 10.0
"""Time after a quick request in which others are expected. Polling takes CPU time from the model calls, so no thread
polls during the long calls of bulk jobs alone (docs/decisions/0008)."""

_LONG_CALL = 2  # a call of at least so many quick batches is long: two milliseconds or more on a CPU
_CLEANUP_INTERVAL_S = 0.05
"""Least time between two removals of cancelled and expired requests. Otherwise every `submit` could start one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Limits of one batcher. Sizes count rows, not requests."""

    slots: int = 1  # execution slots: model calls that may run concurrently
    max_batch_rows: int = 256  # most rows in one model call
    min_split_rows: int = 1  # fewest rows in a batch when slots divide the queued rows between them
    quick_rows: int = 0  # the polling thread runs batches up to this size: passing them on would take longer
    max_queued_rows: int = 65536  # most rows that wait for a model call; beyond it `submit` raises Overloaded


class Batcher:
    """Form batches from the rows of many requests and run them with `predict`.

    All methods are thread-safe. Up to `limits.slots` threads call `predict` concurrently.
    """

    def __init__(
        self,
        predict: Callable[[Bitmaps], Scores],
        limits: BatchLimits,
        *,
        model: str = "the model",  # as error messages name it
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wake: Callable[[], None] = lambda: None  # set by the thread pool; called after rows were queued
        self.on_health: Callable[[], object] = lambda: None  # called on a pool thread after a change of `is_failing`
        self.limits = limits
        self.statistics = ModelStatistics(clock)
        self._predict = predict
        self._model = model
        self._clock = clock
        self._queue = RowQueue(limits.max_batch_rows)
        self._running_calls = 0  # in slots
        self._extra_calls = 0  # beyond the slots
        self._failed_calls = 0  # since the last successful one
        self._drain_rate = DrainRateEstimator(limits.slots)
        self._quick_at = -math.inf  # time at which a quick request arrived, and no more than a quick batch was waiting
        self._cleaned_at = -math.inf  # time of the last removal of cancelled requests
        self._is_closed = False
        self._lock = threading.Lock()  # guards the attributes above, and scores of requests in several model calls

    @property
    def has_rows(self) -> bool:
        """Return whether rows are waiting and a slot of this model is free."""
        return self._queue.rows > 0 and self._running_calls < self.limits.slots

    @property
    def queued_rows(self) -> int:
        """Return the number of rows that wait for a model call."""
        return self._queue.rows

    @property
    def is_failing(self) -> bool:
        """Return whether at least the last `_FAILING_CALLS` model calls failed."""
        return self._failed_calls >= _FAILING_CALLS

    @property
    def expects_quick_requests(self) -> bool:
        """Return whether quick requests have arrived in the last seconds, but not so many that they fill batches."""
        return self._clock() < self._quick_at + _EXPECTING_S

    def close(self) -> None:
        """Reject new requests from now on; queued rows can still be taken."""
        self._is_closed = True

    def release(self) -> bool:
        """Close the batcher and drop the model, unless rows are queued or running; return whether it was dropped."""
        with self._lock:
            if self._queue.rows or self._running_calls or self._extra_calls:
                return False
            self._is_closed = True
            self._predict = _released
            return True

    def submit(self, bitmaps: Bitmaps, *, expires_at: float = math.inf) -> Future[Answer]:
        """Queue `bitmaps` for the next batches.

        Args:
            bitmaps: uint8, (rows, 28, 28), rows >= 1; must not change until the future is done.
            expires_at: Deadline in seconds of `time.monotonic`; no row starts after it.

        Returns:
            A future, settled on a thread of the pool. Cancelling it removes the waiting rows. Its exception is
            `DeadlinePassed`, `InferenceFailed` if one of the request's model calls failed, or `ScoresNotFinite` if a
            row has a score that is NaN or infinite; other requests of the same batch receive their scores.

        Raises:
            Overloaded: The queue is full, or the request would probably miss its deadline; safe to retry.
            ShuttingDown: The batcher is closed.
        """
        request = Request(bitmaps, expires_at, self._clock())
        dropped: list[Request] = []
        with self._lock:
            if self._is_closed:
                raise ShuttingDown("draining: new requests are not accepted")
            reason = self._rejection_reason(request)
            if reason and (dropped := self._remove_unwanted(request.queued_at)):
                reason = self._rejection_reason(request)
            if not reason:
                self._queue.put(request)
                if max(len(bitmaps), self._queue.small_rows) <= self.limits.quick_rows:
                    self._quick_at = request.queued_at
            drain_s = self._queue.rows * self._drain_rate.seconds_per_row(request.queued_at)
        self._drop(dropped)
        if reason:
            raise Overloaded(reason, retry_after_s=drain_s or _DEFAULT_RETRY_S)
        self.wake()
        return request.future

    def take(self, idle_slots: int) -> "Batch | None":
        """Return the next batch, or None if no row waits or no slot of this model is free.

        Idle slots divide the queued rows between them, but not into batches below `limits.min_split_rows`. `idle_slots`
        counts the threads that could run a batch now, the calling thread included; >= 1. If only small requests wait, a
        batch also leaves whole requests to the busy slots: each finds rows when its call ends (docs/decisions/0040).

        This method settles no future, so that the caller may hold a lock: the run of the batch fails the expired
        requests. If only cancelled and expired requests were queued, the batch has no rows.
        """
        if not self.has_rows:
            return None
        with self._lock:
            return self._take(idle_slots)

    def take_extra(self) -> "Batch | None":
        """Return a batch of all small requests that runs beyond the slots; None if none or too many rows wait.

        The batch has at most `limits.quick_rows` rows: more rows wait for a slot, which runs them together. As `take`,
        this method settles no future.
        """
        if not 0 < self._queue.small_rows <= self.limits.quick_rows:
            return None
        dropped: list[Request] = []
        with self._lock:
            now = self._clock()
            slices = self._queue.take_small(self.limits.quick_rows, now, dropped)
            self._drain_rate.record_queue(self._queue.rows, now)
            if not slices and not dropped:
                return None
            self._extra_calls += bool(slices)
            return Batch(self, slices, dropped, _count_rows(slices), now, "extra")

    def _take(self, idle_slots: int) -> "Batch | None":
        idle_slots = min(idle_slots, self.limits.slots - self._running_calls)
        if idle_slots < 1:
            return None
        now = self._clock()
        rows, least = self._queue.rows, self.limits.min_split_rows
        most = min(self.limits.max_batch_rows, max(least, math.ceil(rows / idle_slots)))
        enough = max(least, math.ceil(rows / self.limits.slots))
        dropped: list[Request] = []
        slices = self._queue.take(most, now, dropped, enough=enough)
        rows, rows_left = _count_rows(slices), self._queue.rows
        self._drain_rate.record_queue(rows_left, now)
        if not slices and not dropped:  # another thread has taken the rows since `has_rows`
            return None
        self._running_calls += bool(slices)
        is_full = rows == self.limits.max_batch_rows
        reason: CloseReason = "full" if is_full else "shared" if rows_left else "empty"
        return Batch(self, slices, dropped, rows, now, reason)

    def _rejection_reason(self, request: Request) -> str | None:
        rows = len(request.bitmaps)
        if self._queue.rows + rows > self.limits.max_queued_rows:
            return f"queue full: {self._queue.rows} of {self.limits.max_queued_rows} rows are waiting"
        rows_ahead = self._queue.rows_ahead_of(rows)
        if not rows_ahead:
            return None  # an empty queue never rejects on the deadline
        left_s = request.expires_at - request.queued_at
        needed_s = (rows_ahead + rows) * self._drain_rate.seconds_per_row(request.queued_at) * _SAFETY_FACTOR
        if needed_s <= left_s:
            return None
        return f"too late: {rows_ahead} rows are ahead, about {needed_s:.2f} s; the deadline is in {left_s:.2f} s"

    def _remove_unwanted(self, now: float) -> list[Request]:
        """Remove and return cancelled and expired requests; return none shortly after the last removal."""
        if now < self._cleaned_at + _CLEANUP_INTERVAL_S:
            return []
        self._cleaned_at = now
        dropped = self._queue.remove_unwanted(now)
        self._drain_rate.record_queue(self._queue.rows, now)
        return dropped

    def _drop(self, requests: list[Request]) -> None:
        """Fail and count requests that were removed from the queue. The caller must not hold a lock.

        A request that fails runs its callbacks, which encode, send and log its status: other threads would wait.
        """
        for request in requests:
            request.fail(DeadlinePassed("the deadline passed while the request was queued"))
            self.statistics.add_failure(request)

    def _run(self, batch: "Batch") -> None:
        try:
            self._drop(batch.dropped)
        finally:
            if batch.slices:
                self._call_model(batch)

    def _call_model(self, batch: "Batch") -> None:
        slices, started_at = batch.slices, self._clock()
        try:
            bitmaps = slices[0].bitmaps if len(slices) == 1 else np.concatenate([each.bitmaps for each in slices])
            assembled_at = self._clock()
            scores = self._predict(bitmaps)
            if len(scores) != batch.rows:
                raise ValueError(f"the model must return {batch.rows} rows, got {len(scores)}")
            ended_at = self._clock()
            was_failing = self.is_failing
            is_finite = finite_rows(scores)
            completed, failed = self._store(batch, scores, is_finite, ended_at - started_at)
        except BaseException as exc:  # every request must receive an error, or its client would wait for ever
            self._fail(batch, exc)
            if not isinstance(exc, Exception):  # such as a panic of a native library
                raise
            return
        self.statistics.add_call(
            batch.rows,
            completed,
            reason=batch.close_reason,
            assembling_s=assembled_at - started_at,
            inference_s=ended_at - assembled_at,
            nonfinite_rows=0 if is_finite is None else len(is_finite) - int(is_finite.sum()),
        )
        for request in completed:
            request.complete()
        for request, row in failed:
            self.statistics.add_failure(request)
            request.fail(ScoresNotFinite(f"{self._model} returned scores that are not finite for row {row}"))
        if was_failing:
            self.on_health()

    def _fail(self, batch: "Batch", cause: BaseException) -> None:
        """Fail every request of a batch whose model call failed."""
        with self._lock:
            self._end_call(batch)
            self._failed_calls += 1
            is_failing_now = self._failed_calls == _FAILING_CALLS
        self.statistics.add_broken_call(batch.close_reason, [each.request for each in batch.slices])
        for each in batch.slices:
            error = InferenceFailed(
                f"a call of {self._model} failed"
            )  # one per request: threads must not share a traceback
            error.__cause__ = cause
            each.request.fail(error)
        if is_failing_now:
            self.on_health()

    def _store(
        self, batch: "Batch", scores: Scores, is_finite: NDArray[np.bool_] | None, took_s: float
    ) -> tuple[list[Request], list[tuple[Request, int]]]:
        """Store the scores of one model call.

        Return the requests that it completed, and each request with scores that are not finite, with its first such
        row. These requests never complete, because their scores are not stored.
        """
        completed, failed, first = [], [], 0
        with self._lock:
            for each in batch.slices:
                rows = slice(first, first + len(each.bitmaps))
                if is_finite is not None and not is_finite[rows].all():
                    failed.append((each.request, each.start + int(is_finite[rows].argmin())))
                elif each.request.store(each.start, scores[rows], took_s):
                    completed.append(each.request)
                first = rows.stop
            if not batch.is_extra:
                self._drain_rate.record_end(batch.rows, batch.taken_at, self._clock())
            self._end_call(batch)
            self._failed_calls = 0
        return completed, failed

    def _end_call(self, batch: "Batch") -> None:
        if batch.is_extra:
            self._extra_calls -= 1
        else:
            self._running_calls -= 1


def _count_rows(slices: list[Slice]) -> int:
    return sum(len(each.bitmaps) for each in slices)


def _released(bitmaps: Bitmaps) -> Scores:
    raise AssertionError("a released batcher has no rows to run")


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one model call, and the requests that were removed from the queue when it was formed."""

    batcher: Batcher
    slices: list[Slice]  # empty if only cancelled and expired requests were queued
    dropped: list[Request]
    rows: int
    taken_at: float  # seconds of the batcher's clock
    close_reason: CloseReason

    @property
    def is_extra(self) -> bool:
        """Return whether the batch runs beyond the slots."""
        return self.close_reason == "extra"

    @property
    def is_long(self) -> bool:
        """Return whether the model call takes so long that quick calls should not wait for it."""
        return self.rows >= _LONG_CALL * self.batcher.limits.quick_rows > 0

    @property
    def is_quick(self) -> bool:
        """Return whether the polling thread should run the batch itself: see `BatchLimits.quick_rows`."""
        return self.rows + len(self.dropped) <= self.batcher.limits.quick_rows

    @property
    def requests(self) -> list[Request]:
        """Return the requests whose futures the run of the batch may settle."""
        return [*self.dropped, *(each.request for each in self.slices)]

    def run(self) -> None:
        """Fail the expired requests, run the model on this thread, and settle the futures of the other requests.

        The futures are also settled if the model call fails. The caller must not hold a lock.
        """
        self.batcher._run(self)
