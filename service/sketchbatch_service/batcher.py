"""Groups concurrent requests into model calls: merges small ones, splits large ones, by rows.

Flow: callers -> `submit` -> FIFO queue -> one model call at a time, on its own thread -> each caller's future.
Knows neither gRPC nor ONNX Runtime nor an event loop.

Latency contract: a request never waits for others to join it. An idle model starts at once; whatever arrives while
it is busy shares the next calls, in order of arrival. A request waits for the rows ahead of it, no longer.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from .arrays import Bitmaps, Scores
from .errors import DeadlinePassed, InferenceFailed, Overloaded, ServiceError, ShuttingDown

_FIRST_RETRY_S = 0.1
"""What a full queue advises before any model call has been timed."""

_SWEEP_EVERY_S = 0.05
"""Least time between two searches of a full queue for callers who left: under overload every arrival would search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How far the batcher may go; sizes count rows (drawings), not requests."""

    max_batch_rows: int = 256
    """Most rows in one model call."""

    max_queued_rows: int = 65536
    """Rows accepted but not yet running; beyond it `submit` raises `Overloaded`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller gets back."""

    scores: Scores
    """float32, (rows, classes), in the order of the rows submitted."""

    queue_s: float
    """Seconds from `submit` to the start of the first model call."""

    inference_s: float
    """Seconds in the model calls this request was part of, neighbours' rows included."""


@dataclass(slots=True, eq=False)
class _Job:
    bitmaps: Bitmaps
    expires_at: float  # time.monotonic seconds
    queued_at: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)
    taken: int = 0  # rows handed to model calls so far
    parts: list[Scores] = field(default_factory=list)
    queue_s: float = 0.0
    inference_s: float = 0.0

    @property
    def waiting_rows(self) -> int:
        return len(self.bitmaps) - self.taken

    def is_worth_running(self, now: float) -> bool:
        """False when the caller has left, has been failed already, or is out of time (and hears so)."""
        if now >= self.expires_at:
            self.fail(DeadlinePassed("the deadline passed while the request was queued"))
        return not self.future.done()

    def take(self, rows: int, now: float) -> Bitmaps:
        if not self.taken:
            self.queue_s = now - self.queued_at
        self.taken += rows
        return self.bitmaps[self.taken - rows : self.taken]

    def add(self, scores: Scores, took_s: float) -> None:
        """Keeps one call's scores, and answers when they are the last."""
        self.parts.append(scores)
        self.inference_s += took_s
        if sum(map(len, self.parts)) == len(self.bitmaps):
            whole = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
            with suppress(InvalidStateError):  # the caller left
                self.future.set_result(Answer(whole, self.queue_s, self.inference_s))

    def fail(self, error: ServiceError) -> None:
        with suppress(InvalidStateError):  # the caller left, or has been told already
            self.future.set_exception(error)


class Batcher:
    """Runs `predict` on batches built from many callers' rows.

    Use as a context manager: leaving it refuses new work, finishes what is queued, then stops the thread.
    """

    def __init__(self, predict: Callable[[Bitmaps], Scores], limits: BatchLimits) -> None:
        self._predict = predict
        self._limits = limits
        self._jobs: deque[_Job] = deque()
        self._queued_rows = 0
        self._rows_per_s = 0.0  # moving average over model calls; 0 = none timed yet
        self._swept_at = -math.inf  # time.monotonic seconds
        self._closing = False
        self._changed = threading.Condition()  # a job arrived, or we are closing; guards all of the above
        # One thread: a second call on the same cores or GPU would only queue behind the first.
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, bitmaps: Bitmaps, *, expires_at: float = math.inf) -> Future[Answer]:
        """Queues `bitmaps`, to share model calls with other callers where it can.

        Args:
            bitmaps: uint8, (rows, 28, 28), rows >= 1; not to be changed until the answer is there.
            expires_at: `time.monotonic` seconds after which no row of it need run.

        Returns:
            A future of the answer; cancelling it is how a caller leaves. It may raise `DeadlinePassed`, or
            `InferenceFailed` when a model call this request was part of broke.

        Raises:
            Overloaded: The queue has no room; safe to retry.
            ShuttingDown: The batcher is closing.
        """
        job = _Job(bitmaps, expires_at)
        with self._changed:
            if self._closing:
                raise ShuttingDown("draining: not taking new requests")
            if not self._has_room(len(bitmaps)):
                self._forget_unwanted()
            if not self._has_room(len(bitmaps)):
                raise Overloaded(
                    f"queue full: {self._queued_rows} of {self._limits.max_queued_rows} rows are waiting",
                    retry_after_s=self._drain_s(),
                )
            self._jobs.append(job)
            self._queued_rows += len(bitmaps)
            self._changed.notify()
        return job.future

    def _has_room(self, rows: int) -> bool:
        return self._queued_rows + rows <= self._limits.max_queued_rows

    def _forget_unwanted(self) -> None:
        """Gives back the room of callers who have left or run out of time, wherever they stand in the queue."""
        now = time.monotonic()
        if now < self._swept_at + _SWEEP_EVERY_S:
            return
        self._swept_at = now
        self._jobs = deque(job for job in self._jobs if job.is_worth_running(now))
        self._queued_rows = sum(job.waiting_rows for job in self._jobs)

    def _drain_s(self) -> float:
        """Seconds until the rows now queued will have run, from the measured pace."""
        return self._queued_rows / self._rows_per_s if self._rows_per_s else _FIRST_RETRY_S

    def _work(self) -> None:
        while slices := self._next_batch():
            self._run(slices)

    def _next_batch(self) -> list[tuple[_Job, Bitmaps]]:
        """Waits for work; an empty list means closed, with nothing left to do."""
        slices: list[tuple[_Job, Bitmaps]] = []
        with self._changed:
            while not slices:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    break
                slices = self._take_batch()
        return slices

    def _take_batch(self) -> list[tuple[_Job, Bitmaps]]:
        """Cuts up to `max_batch_rows` off the queue's front, passing over jobs not worth running."""
        slices: list[tuple[_Job, Bitmaps]] = []
        free = self._limits.max_batch_rows
        now = time.monotonic()
        while self._jobs and free:
            job = self._jobs[0]
            is_wanted = job.is_worth_running(now)
            rows = min(free, job.waiting_rows) if is_wanted else job.waiting_rows
            self._queued_rows -= rows
            if is_wanted:
                slices.append((job, job.take(rows, now)))
                free -= rows
            if not is_wanted or not job.waiting_rows:
                self._jobs.popleft()
        return slices

    def _run(self, slices: list[tuple[_Job, Bitmaps]]) -> None:
        started_at = time.monotonic()
        try:
            batch = slices[0][1] if len(slices) == 1 else np.concatenate([part for _, part in slices])
            scores = self._predict(batch)
            if len(scores) != len(batch):
                raise ValueError(f"model returned {len(scores)} rows for {len(batch)}")
            took_s = time.monotonic() - started_at
            self._note_pace(len(batch), took_s)
            self._answer(slices, scores, took_s)
        except Exception as exc:  # every caller of this batch must hear of it, or it would wait for ever
            for job, _ in slices:
                error = InferenceFailed("the model call failed")  # one each: no shared traceback
                error.__cause__ = exc
                job.fail(error)

    def _answer(self, slices: list[tuple[_Job, Bitmaps]], scores: Scores, took_s: float) -> None:
        start = 0
        for job, part in slices:
            job.add(scores[start : start + len(part)], took_s)
            start += len(part)

    def _note_pace(self, rows: int, took_s: float) -> None:
        pace = rows / max(took_s, 1e-6)
        with self._changed:
            self._rows_per_s += (pace - self._rows_per_s) * (0.2 if self._rows_per_s else 1)
