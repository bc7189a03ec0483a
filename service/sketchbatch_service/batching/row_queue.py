"""Hold the rows that wait for a model call, and decide which rows the next call takes.

Two FIFO queues: one for small requests, which fit into one batch, one for large requests, which do not. While both hold
rows, each call is divided in half between them. So one drawing does not wait for a bulk job, and a bulk job makes
progress however many single drawings arrive. Not thread-safe: the batcher calls each method under its own lock.
"""

import math
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Bitmaps, Scores
from ..errors import ServiceError


@dataclass(frozen=True, slots=True)
class Answer:
    """The scores of one request, and its times in the queue and in model calls."""

    scores: Scores  # float32, (rows, classes), in the order of the submitted rows
    queue_s: float  # seconds from `submit` to the start of the first model call
    inference_s: float  # seconds of the model calls that ran its rows; they may include rows of other requests


@dataclass(slots=True, eq=False)
class Request:
    """Rows that were submitted together, and the scores received for them so far."""

    bitmaps: Bitmaps
    expires_at: float  # seconds of the batcher's clock
    queued_at: float  # seconds of the batcher's clock
    future: Future[Answer] = field(default_factory=Future)
    taken_rows: int = 0
    queue_s: float = 0.0  # as in Answer
    inference_s: float = 0.0  # as in Answer, so far
    is_counted: bool = False  # whether the statistics have counted the request as failed
    _scored_rows: int = 0
    _scores: Scores | None = None

    @property
    def waiting_rows(self) -> int:
        """Return the number of rows that no model call has taken yet."""
        return len(self.bitmaps) - self.taken_rows

    def is_worth_running(self, now: float) -> bool:
        """Return False if the request was cancelled, has failed or is expired."""
        return now < self.expires_at and not self.future.done()

    def take(self, rows: int, now: float) -> "Slice":
        """Return the next `rows` rows for a model call."""
        if not self.taken_rows:
            self.queue_s = now - self.queued_at
        start = self.taken_rows
        self.taken_rows += rows
        return Slice(self, start, self.bitmaps[start : start + rows])

    def store(self, start: int, scores: Scores, took_s: float) -> bool:
        """Store the scores of the rows from `start` on; return whether the request is now complete."""
        self.inference_s += took_s
        self._scored_rows += len(scores)
        if len(scores) == len(self.bitmaps):
            self._scores = scores
        else:
            if self._scores is None:
                self._scores = np.empty((len(self.bitmaps), scores.shape[1]), np.float32)
            self._scores[start : start + len(scores)] = scores
        return self._scored_rows == len(self.bitmaps)

    def complete(self) -> None:
        """Set the future's result, unless it was cancelled."""
        assert self._scores is not None
        with suppress(InvalidStateError):
            self.future.set_result(Answer(self._scores, self.queue_s, self.inference_s))

    def fail(self, error: ServiceError) -> None:
        """Set the future's exception, unless it is settled or cancelled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows of one request in one model call."""

    request: Request
    start: int
    bitmaps: Bitmaps


class RowQueue:
    """Queue small requests (up to `small_rows` rows) and large requests separately.

    Requests that were cancelled, have failed or are expired are removed, and returned to the caller.
    """

    def __init__(self, small_rows: int) -> None:
        self._small_rows = small_rows
        self._small = _Fifo()
        self._large = _Fifo()
        self._odd_row_is_small = True  # the kind that gets the odd row of the next batch for both kinds

    @property
    def rows(self) -> int:
        """Return the number of waiting rows."""
        return self._small.rows + self._large.rows

    @property
    def small_rows(self) -> int:
        """Return the number of waiting rows of small requests."""
        return self._small.rows

    def rows_ahead_of(self, rows: int) -> int:
        """Return how many waiting rows would run before the last row of a new request of `rows` rows."""
        own, other = (self._small, self._large) if rows <= self._small_rows else (self._large, self._small)
        # Small and large requests each get half of every batch. So until these rows have run, at most as many rows of
        # the other queue run.
        return own.rows + min(own.rows + rows, other.rows)

    def put(self, request: Request) -> None:
        """Append a request to its FIFO queue."""
        (self._small if len(request.bitmaps) <= self._small_rows else self._large).put(request)

    def take(self, max_rows: int, now: float, dropped: list[Request], *, enough: float = math.inf) -> list[Slice]:
        """Take up to `max_rows` rows for one model call; append removed requests to `dropped`.

        If only small requests wait, take no further request once `enough` rows are taken. While both kinds wait, each
        gets half of the rows, and the odd row of a batch in turn: with one row per batch, one kind would otherwise wait
        until the other has no rows.
        """
        if not self._large.rows:
            return self._small.take(max_rows, now, dropped, enough=enough)
        for_small = 0
        if self._small.rows:
            for_small = (max_rows + self._odd_row_is_small) // 2
            self._odd_row_is_small ^= max_rows % 2 == 1
        slices = self._small.take(for_small, now, dropped)
        slices += self._large.take(max_rows - _count_rows(slices), now, dropped)
        return slices + self._small.take(max_rows - _count_rows(slices), now, dropped)

    def take_small(self, max_rows: int, now: float, dropped: list[Request]) -> list[Slice]:
        """Take the first small requests, each with all of its rows, as far as they have up to `max_rows` together."""
        return self._small.take(max_rows, now, dropped, splits=False)

    def remove_unwanted(self, now: float) -> list[Request]:
        """Remove and return all cancelled, failed and expired requests, at any position."""
        return self._small.remove_unwanted(now) + self._large.remove_unwanted(now)


class _Fifo:
    """The FIFO queue of the small or of the large requests; it also counts their waiting rows."""

    def __init__(self) -> None:
        self.rows = 0  # that no model call has taken yet
        self._requests: deque[Request] = deque()

    def put(self, request: Request) -> None:
        self._requests.append(request)
        self.rows += len(request.bitmaps)

    def take(
        self,
        max_rows: int,
        now: float,
        dropped: list[Request],
        *,
        splits: bool = True,
        enough: float = math.inf,
    ) -> list[Slice]:
        slices: list[Slice] = []
        rows_left = max_rows
        while self._requests and rows_left and max_rows - rows_left < enough:
            request = self._requests[0]
            is_wanted = request.is_worth_running(now)
            if is_wanted and not splits and request.waiting_rows > rows_left:
                break
            rows = min(rows_left, request.waiting_rows) if is_wanted else request.waiting_rows
            self.rows -= rows
            if is_wanted:
                slices.append(request.take(rows, now))
                rows_left -= rows
            else:
                dropped.append(request)
            if not is_wanted or not request.waiting_rows:
                self._requests.popleft()
        return slices

    def remove_unwanted(self, now: float) -> list[Request]:
        kept: deque[Request] = deque()
        dropped: list[Request] = []
        for request in self._requests:
            (kept if request.is_worth_running(now) else dropped).append(request)
        self._requests = kept
        self.rows -= sum(request.waiting_rows for request in dropped)
        return dropped


def _count_rows(slices: list[Slice]) -> int:
    return sum(len(each.bitmaps) for each in slices)
