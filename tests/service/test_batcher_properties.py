"""Check invariants of the batcher after any sequence of submissions, cancellations, deadlines and model calls."""

import math
from collections import Counter
from concurrent.futures import Future

import numpy as np
from gates import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sketchbatch_service.batching.batcher import Batch, Batcher, BatchLimits
from sketchbatch_service.errors import DeadlinePassed, InferenceFailed, Overloaded, ShuttingDown

MAX_QUEUED = 40
PAST = -math.inf
"""A deadline that has always passed."""


class Submission:
    """A request of the test, with its expected scores and the record of its end.

    Each row has a number that no other row of any request has. The row's first pixels contain the number, and its score
    must be equal to the number.
    """

    def __init__(self, numbers: range, expires_at: float) -> None:
        self.numbers = numbers
        self.expires_at = expires_at
        self.bitmaps = np.zeros((len(numbers), 28, 28), np.uint8)
        self.bitmaps[:, 0, :4] = np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4)
        self.has_failed_call = False
        self.times_settled = 0
        self.future: Future

    def accepted(self, future: Future) -> None:
        self.future = future
        future.add_done_callback(self._settle)

    def _settle(self, future: Future) -> None:
        self.times_settled += 1

    @property
    def must_not_run(self) -> bool:
        return self.future.done() or self.expires_at == PAST


class BatcherMachine(RuleBasedStateMachine):
    """Run a batcher without a thread pool, so that Hypothesis decides the order of all events.

    The events are submissions, cancellations, the start of a batch, and the success or failure of its model call.
    """

    @initialize(slots=st.integers(1, 3), batch=st.integers(1, 9), share=st.integers(1, 4), quick_rows=st.integers(0, 3))
    def start(self, slots, batch, share, quick_rows):
        limits = BatchLimits(
            slots=slots,
            max_batch_rows=batch,
            min_split_rows=share,
            quick_rows=min(quick_rows, batch),
            max_queued_rows=MAX_QUEUED,
        )
        self.clock = Clock()
        self.batcher = Batcher(self.predict, limits, clock=self.clock)
        self.submissions: list[Submission] = []
        # Each batch that was taken, and the numbers of the rows that it must not contain. These rows belong to requests
        # that had ended or expired before the batch was taken.
        self.running: list[tuple[Batch, set[int]]] = []
        self.computed: Counter[int] = Counter()
        self.forbidden: set[int] = set()
        self.fails = self.is_closed = False
        self.next_number = 1

    def predict(self, bitmaps: np.ndarray) -> np.ndarray:
        """Return the number of each row as its score, or raise an error if the model call must fail."""
        numbers = np.ascontiguousarray(bitmaps[:, 0, :4]).view("<u4")[:, 0]
        assert len(numbers) <= self.batcher.limits.max_batch_rows
        assert not self.forbidden & set(numbers.tolist()), "rows of settled or expired requests ran"
        self.computed.update(numbers.tolist())
        if self.fails:
            for submission in self.submissions:
                submission.has_failed_call |= bool(set(submission.numbers) & set(numbers.tolist()))
            raise RuntimeError("intended failure")
        return numbers[:, None].astype(np.float32)

    @rule(rows=st.integers(1, 25), expires_at=st.sampled_from([math.inf, math.inf, math.inf, PAST]))
    def submit(self, rows, expires_at):
        submission = Submission(range(self.next_number, self.next_number + rows), expires_at)
        self.next_number += rows
        try:
            submission.accepted(self.batcher.submit(submission.bitmaps, expires_at=expires_at))
        except Overloaded:
            assert self.batcher.queued_rows + rows > MAX_QUEUED or expires_at == PAST
        except DeadlinePassed:
            assert expires_at == PAST
        except ShuttingDown:
            assert self.is_closed
        else:
            assert not self.is_closed
            self.submissions.append(submission)

    @rule(seconds=st.sampled_from([0.001, 0.1, 10.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @precondition(lambda self: self.submissions)
    @rule(data=st.data())
    def cancel(self, data):
        data.draw(st.sampled_from(self.submissions)).future.cancel()

    @rule(idle_slots=st.integers(1, 4))
    def take(self, idle_slots):
        forbidden = {number for each in self.submissions if each.must_not_run for number in each.numbers}
        batch = self.batcher.take(idle_slots)
        if batch and batch.rows:
            self.running.append((batch, forbidden))
        elif batch:
            batch.run()  # fails expired requests, and uses no slot
        assert sum(not batch.is_extra for batch, _ in self.running) <= self.batcher.limits.slots

    @rule()
    def take_extra(self):
        forbidden = {number for each in self.submissions if each.must_not_run for number in each.numbers}
        batch = self.batcher.take_extra()
        if batch and batch.rows:
            assert batch.rows <= self.batcher.limits.quick_rows
            assert all(each.start + len(each.bitmaps) == len(each.request.bitmaps) for each in batch.slices)
            self.running.append((batch, forbidden))
        elif batch:
            batch.run()  # fails expired requests

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def end_a_call(self, data, fails):
        batch, self.forbidden = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.fails = fails
        self.clock.advance(0.001 * batch.rows)
        batch.run()

    @rule()
    def close(self):
        self.batcher.close()
        self.is_closed = True

    @invariant()
    def the_queue_is_bounded(self):
        if hasattr(self, "batcher"):
            assert 0 <= self.batcher.queued_rows <= MAX_QUEUED

    @invariant()
    def no_row_runs_twice_and_no_future_is_settled_twice(self):
        if hasattr(self, "batcher"):
            assert max(self.computed.values(), default=0) <= 1
            assert all(each.times_settled <= 1 for each in self.submissions)

    def teardown(self):
        """Run all remaining rows, then check that each request ended with its own scores or the expected error."""
        if not hasattr(self, "batcher"):
            return
        self.fails = False
        while self.running or self.batcher.has_rows:
            self.take(1)
            if not self.running:
                break  # the requests that remain in the queue were cancelled, failed or expired
            batch, self.forbidden = self.running.pop()
            batch.run()
        assert self.batcher.queued_rows == 0
        for submission in self.submissions:
            self._check_end(submission)

    def _check_end(self, submission: Submission) -> None:
        assert submission.times_settled == 1
        if submission.future.cancelled():
            return
        error = submission.future.exception()
        if error is None:
            assert not submission.has_failed_call
            assert submission.expires_at != PAST
            assert submission.future.result().scores[:, 0].tolist() == list(submission.numbers)
        else:
            assert isinstance(error, InferenceFailed if submission.has_failed_call else DeadlinePassed)
            assert submission.has_failed_call or submission.expires_at == PAST


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(max_examples=100, stateful_step_count=40)
