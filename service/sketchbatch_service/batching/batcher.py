"""Groups concurrent requests into model calls: merges small ones, splits large ones, by rows.

Flow: callers -> `submit` -> `RowQueue` -> `take`, by one of the crew's threads -> `Batch.run` -> each caller's future.
Has no threads of its own, and knows neither gRPC nor ONNX Runtime nor an event loop.

Latency contract: a request never waits for others to join it. An idle lane starts at once; whatever arrives while all
are busy shares the next calls. A small request, of up to `max_batch_rows` rows, waits for the calls under way and the
small ones ahead of it, of which each call takes at least `max_batch_rows / 2` rows. A large one waits for the large
ones ahead of it, and gets no less than half of every call while small ones keep coming. What would then be too late
for its deadline is refused on arrival.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ..arrays import Bitmaps, Scores
from ..errors import InferenceFailed, Overloaded, ShuttingDown
from .drain_rate import DrainRateEstimator
from .row_queue import Answer, Job, RowQueue, Slice
from .statistics import Closed, ModelCall, ModelStatistics

_FIRST_RETRY_S = 0.1
"""What a full queue advises before any model call has been timed."""

_CAUTION = 1.5
"""How much longer than measured a wait may turn out. A request that runs into its deadline was run in vain, and those
behind it waited for it; one refused too soon comes back. docs/decisions/0024 has the measurements."""

_FAILING_CALLS = 3
"""Broken calls in a row after which a model counts as failing: one may be chance, and any good call starts anew."""

_SWEEP_EVERY_S = 0.05
"""Least time between two searches of a full queue for callers who left: under overload every arrival would search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How far the batcher may go; sizes count rows (drawings), not requests."""

    slots: int = 1
    """Calls of this model at a time."""

    max_batch_rows: int = 256
    """Most rows in one model call."""

    share_rows: int = 1
    """Rows below which a batch is not split between idle slots."""

    quick_rows: int = 0
    """Rows whose call is over so soon that handing it to another thread would cost more than it saves."""

    max_queued_rows: int = 65536
    """Rows accepted but not yet running; beyond it `submit` raises `Overloaded`."""


class Batcher:
    """Makes batches of many callers' rows for `predict`. Safe to share between threads, as `predict` must be."""

    def __init__(self, predict: Callable[[Bitmaps], Scores], limits: BatchLimits) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Called when rows have been submitted; the crew's."""
        self.on_health: Callable[[], object] = lambda: None
        """Called when `is_failing` may have changed, on one of the crew's threads."""
        self.statistics = ModelStatistics()
        self._predict = predict
        self.limits = limits
        self._queue = RowQueue(limits.max_batch_rows, self.statistics.add_failure)
        self._running = 0  # calls under way
        self._broken_calls = 0  # since the last good one
        self._drain_rate = DrainRateEstimator()
        self._swept_at = -math.inf  # time.monotonic seconds
        self._closed = False
        self._lock = threading.Lock()  # guards all of the above, and the scores of jobs in more than one call

    @property
    def has_rows(self) -> bool:
        """Whether rows are waiting for which another call may run."""
        return self._queue.rows > 0 and self._running < self.limits.slots

    @property
    def queued_rows(self) -> int:
        """Rows waiting for a model call."""
        return self._queue.rows

    @property
    def is_failing(self) -> bool:
        """Whether the model's last calls, several in a row, broke."""
        return self._broken_calls >= _FAILING_CALLS

    def close(self) -> None:
        """Refuses new work; what is queued can still be taken."""
        self._closed = True

    def release(self) -> bool:
        """Closes it and gives up the model, if nothing is queued or running; False = something is."""
        with self._lock:
            if self._queue.rows or self._running:
                return False
            self._closed = True
            self._predict = _released
            return True

    def submit(self, bitmaps: Bitmaps, *, expires_at: float = math.inf) -> Future[Answer]:
        """Queues `bitmaps`, to share model calls with other callers where it can.

        Args:
            bitmaps: uint8, (rows, 28, 28), rows >= 1; not to be changed until the answer is there.
            expires_at: `time.monotonic` seconds after which no row of it need run.

        Returns:
            A future of the answer, settled on one of the crew's threads; cancelling it is how a caller leaves. It may
            raise `DeadlinePassed`, or `InferenceFailed` when a model call this request was part of broke.

        Raises:
            Overloaded: The queue has no room, or what is ahead would take until `expires_at`; safe to retry.
            ShuttingDown: The batcher is closing.
        """
        job = Job(bitmaps, expires_at)
        with self._lock:
            if self._closed:
                raise ShuttingDown("draining: not taking new requests")
            obstacle = self._obstacle(job)
            if obstacle and self._remove_cancelled():
                obstacle = self._obstacle(job)
            if obstacle:
                raise Overloaded(obstacle, retry_after_s=self._queue.rows * self._drain_rate.row_s or _FIRST_RETRY_S)
            self._queue.put(job)
        self.wake()
        return job.future

    def take(self, idle_slots: int) -> "Batch | None":
        """The next rows to run, as many as are worth a call of their own; None = there are none, or no lane is free.

        Args:
            idle_slots: Threads that could run a call now, the caller's included, >= 1.
        """
        if not self.has_rows:
            return None
        with self._lock:
            idle_slots = min(idle_slots, self.limits.slots - self._running)
            if idle_slots < 1:
                return None
            share = max(self.limits.share_rows, math.ceil(self._queue.rows / idle_slots))
            slices = self._queue.take(min(self.limits.max_batch_rows, share))
            if not slices:
                return None
            self._running += 1
            rows, left, now = sum(len(each.bitmaps) for each in slices), self._queue.rows, time.monotonic()
            self._drain_rate.note_taken(left, now)
            is_full = rows == self.limits.max_batch_rows
            return Batch(self, slices, rows, now, "full" if is_full else "shared" if left else "empty")

    def _obstacle(self, job: Job) -> str | None:
        """Why a request must not be queued; None = it may."""
        rows = len(job.bitmaps)
        if self._queue.rows + rows > self.limits.max_queued_rows:
            return f"queue full: {self._queue.rows} of {self.limits.max_queued_rows} rows are waiting"
        before = self._queue.rows_before(rows)
        if not before:
            return None  # whether the time is enough on an idle service, its caller knows
        left_s, needed_s = job.expires_at - job.queued_at, (before + rows) * self._drain_rate.row_s * _CAUTION
        if needed_s <= left_s:
            return None
        return f"too late: {before} rows go first, which may take {needed_s:.2f} s; the deadline is in {left_s:.2f} s"

    def _remove_cancelled(self) -> bool:
        """Searches the queue for callers who left, unless that was done just now."""
        now = time.monotonic()
        if now < self._swept_at + _SWEEP_EVERY_S:
            return False
        self._swept_at = now
        self._queue.remove_cancelled()
        return True

    def _run(self, batch: "Batch") -> None:
        slices, started_at = batch.slices, time.monotonic()
        try:
            bitmaps = slices[0].bitmaps if len(slices) == 1 else np.concatenate([each.bitmaps for each in slices])
            assembled_at = time.monotonic()
            scores = self._predict(bitmaps)
            if len(scores) != batch.rows:
                raise ValueError(f"model returned {len(scores)} rows for {batch.rows}")
            ended_at = time.monotonic()
            was_failing = self.is_failing
            whole = self._add(batch, scores, ended_at - started_at)
        except Exception as exc:  # every caller of this batch must hear of it, or it would wait for ever
            self._fail(batch, exc)
            return
        call = ModelCall(batch.rows, batch.closed, assembled_at - started_at, ended_at - assembled_at)
        self.statistics.add_call(call, whole)
        for job in whole:
            job.answer()
        if was_failing:
            self.on_health()

    def _fail(self, batch: "Batch", cause: Exception) -> None:
        """Tells every caller of a batch that its call broke."""
        with self._lock:
            self._running -= 1
            self._broken_calls += 1
            has_changed = self._broken_calls == _FAILING_CALLS
        self.statistics.add_broken_call(batch.closed, [each.job for each in batch.slices])
        for each in batch.slices:
            error = InferenceFailed("the model call failed")  # one each: no shared traceback
            error.__cause__ = cause
            each.job.fail(error)
        if has_changed:
            self.on_health()

    def _add(self, batch: "Batch", scores: Scores, took_s: float) -> list[Job]:
        """Keeps the scores of one call; returns the requests that are whole with them."""
        whole, first = [], 0
        with self._lock:
            for each in batch.slices:
                rows = len(each.bitmaps)
                if each.job.add(each.start, scores[first : first + rows], took_s):
                    whole.append(each.job)
                first += rows
            self._drain_rate.note_ended(batch.rows, batch.taken_at, time.monotonic())
            self._running -= 1
            self._broken_calls = 0
        return whole


def _released(bitmaps: Bitmaps) -> Scores:
    raise AssertionError("a batcher that was released has no rows to run")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for one model call."""

    batcher: Batcher
    slices: list[Slice]
    rows: int
    taken_at: float  # time.monotonic seconds
    closed: Closed

    @property
    def is_quick(self) -> bool:
        """Whether it will be over in no time: see `BatchLimits.quick_rows`."""
        return self.rows <= self.batcher.limits.quick_rows

    def run(self) -> None:
        """Calls the model and answers the callers, on this thread; failures reach them, too."""
        self.batcher._run(self)
