"""The rows that wait for a model call, request by request; which of them run next is decided here.

Two lines, each in order of arrival: small requests, which fit one call, and large ones, which do not. While both have
rows, half of every call is for the small ones, so that a lone drawing does not wait for a bulk job, nor a bulk job for
a crowd of lone drawings. Not thread-safe: the batcher holds its lock.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Bitmaps, Scores
from ..errors import DeadlinePassed, ServiceError


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
class Job:
    """One request: its rows, how many have been handed to model calls, and the scores that came back."""

    bitmaps: Bitmaps
    expires_at: float  # time.monotonic seconds
    queued_at: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)
    taken: int = 0
    queue_s: float = 0.0  # as in Answer
    inference_s: float = 0.0  # so far
    is_counted: bool = False  # as one that will not be run to its end
    _scored: int = 0
    _scores: Scores | None = None

    @property
    def waiting_rows(self) -> int:
        """Rows not yet handed to a model call."""
        return len(self.bitmaps) - self.taken

    def is_worth_running(self, now: float) -> bool:
        """False when the caller has left, has been failed already, or is out of time (and hears so)."""
        if now >= self.expires_at:
            self.fail(DeadlinePassed("the deadline passed while the request was queued"))
        return not self.future.done()

    def take(self, rows: int, now: float) -> "Slice":
        """Hands over the next rows."""
        if not self.taken:
            self.queue_s = now - self.queued_at
        self.taken += rows
        return Slice(self, self.taken - rows, self.bitmaps[self.taken - rows : self.taken])

    def add(self, start: int, scores: Scores, took_s: float) -> bool:
        """Keeps the scores of rows from `start` on; True when they were the last ones missing."""
        self.inference_s += took_s
        self._scored += len(scores)
        if len(scores) == len(self.bitmaps):
            self._scores = scores
        else:
            if self._scores is None:
                self._scores = np.empty((len(self.bitmaps), scores.shape[1]), np.float32)
            self._scores[start : start + len(scores)] = scores
        return self._scored == len(self.bitmaps)

    def answer(self) -> None:
        """Tells the caller, who may have left."""
        assert self._scores is not None
        with suppress(InvalidStateError):
            self.future.set_result(Answer(self._scores, self.queue_s, self.inference_s))

    def fail(self, error: ServiceError) -> None:
        """Tells the caller, who may have left, or have been told already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of one request in one model call."""

    job: Job
    start: int
    bitmaps: Bitmaps


class RowQueue:
    """Requests whose rows are waiting, small ones of up to `small_rows` rows and large ones.

    `on_drop` is called with each that is not worth running any more.
    """

    def __init__(self, small_rows: int, on_drop: Callable[[Job], None]) -> None:
        self._small_rows = small_rows
        self._small = _Fifo(on_drop)
        self._large = _Fifo(on_drop)

    @property
    def rows(self) -> int:
        """Rows waiting."""
        return self._small.rows + self._large.rows

    def rows_before(self, rows: int) -> int:
        """Rows waiting that would run before the last of a new request of so many."""
        own, other = (self._small, self._large) if rows <= self._small_rows else (self._large, self._small)
        return own.rows + min(own.rows + rows, other.rows)  # half of every call is for each

    def put(self, job: Job) -> None:
        """Adds a request to the end of its line."""
        (self._small if len(job.bitmaps) <= self._small_rows else self._large).put(job)

    def take(self, most_rows: int) -> list[Slice]:
        """Takes up to `most_rows` rows for one model call, passing over requests not worth running."""
        now = time.monotonic()
        for_small = (most_rows + 1) // 2 if self._large.rows else most_rows
        slices = self._small.take(for_small, now)
        slices += self._large.take(most_rows - _rows_of(slices), now)
        return slices + self._small.take(most_rows - _rows_of(slices), now)

    def remove_cancelled(self) -> None:
        """Gives back the room of callers who have left or run out of time, wherever they stand."""
        now = time.monotonic()
        self._small.remove_cancelled(now)
        self._large.remove_cancelled(now)


class _Fifo:
    """Requests in order of arrival."""

    def __init__(self, on_drop: Callable[[Job], None]) -> None:
        self.rows = 0  # waiting
        self._jobs: deque[Job] = deque()
        self._on_drop = on_drop

    def put(self, job: Job) -> None:
        self._jobs.append(job)
        self.rows += len(job.bitmaps)

    def take(self, most_rows: int, now: float) -> list[Slice]:
        slices: list[Slice] = []
        while self._jobs and most_rows:
            job = self._jobs[0]
            is_wanted = self._is_wanted(job, now)
            rows = min(most_rows, job.waiting_rows) if is_wanted else job.waiting_rows
            self.rows -= rows
            if is_wanted:
                slices.append(job.take(rows, now))
                most_rows -= rows
            if not is_wanted or not job.waiting_rows:
                self._jobs.popleft()
        return slices

    def remove_cancelled(self, now: float) -> None:
        self._jobs = deque(job for job in self._jobs if self._is_wanted(job, now))
        self.rows = sum(job.waiting_rows for job in self._jobs)

    def _is_wanted(self, job: Job, now: float) -> bool:
        is_wanted = job.is_worth_running(now)
        if not is_wanted:
            self._on_drop(job)
        return is_wanted


def _rows_of(slices: list[Slice]) -> int:
    return sum(len(each.bitmaps) for each in slices)
