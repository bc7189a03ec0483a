"""What holds of the batcher after any sequence of submits, cancellations, deadlines, and calls that end or break."""

import math
from collections import Counter
from concurrent.futures import Future

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sketchbatch_service.batching.batcher import Batch, Batcher, BatchLimits
from sketchbatch_service.errors import DeadlinePassed, InferenceFailed, Overloaded, ShuttingDown

MAX_QUEUED = 40
PAST = -math.inf
"""A deadline: `time.monotonic` has never been there."""


class Caller:
    """A request whose rows are numbered, unlike any other's."""

    def __init__(self, numbers: range, expires_at: float) -> None:
        self.numbers = numbers
        self.expires_at = expires_at
        self.bitmaps = np.zeros((len(numbers), 28, 28), np.uint8)
        self.bitmaps[:, 0, :4] = np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4)
        self.was_broken = False
        self.settled = 0
        self.future: Future

    def accepted(self, future: Future) -> None:
        self.future = future
        future.add_done_callback(self._settle)

    def _settle(self, future: Future) -> None:
        self.settled += 1

    @property
    def is_unwanted(self) -> bool:
        return self.future.done() or self.expires_at == PAST


class BatcherMachine(RuleBasedStateMachine):
    """The test is the crew: it decides when batches are taken, and when and how their calls end."""

    @initialize(slots=st.integers(1, 3), batch=st.integers(1, 9), share=st.integers(1, 4))
    def start(self, slots, batch, share):
        limits = BatchLimits(slots=slots, max_batch_rows=batch, share_rows=share, max_queued_rows=MAX_QUEUED)
        self.batcher = Batcher(self.predict, limits)
        self.callers: list[Caller] = []
        self.running: list[tuple[Batch, set[int]]] = []  # with the numbers that nobody wanted when it was taken
        self.computed: Counter[int] = Counter()
        self.unwanted: set[int] = set()
        self.breaks = self.is_closed = False
        self.next_number = 1

    def predict(self, bitmaps: np.ndarray) -> np.ndarray:
        """Scores a row by its number."""
        numbers = np.ascontiguousarray(bitmaps[:, 0, :4]).view("<u4")[:, 0]
        assert len(numbers) <= self.batcher.limits.max_batch_rows
        assert not self.unwanted & set(numbers.tolist()), "rows were run that nobody wanted"
        self.computed.update(numbers.tolist())
        if self.breaks:
            for caller in self.callers:
                caller.was_broken |= bool(set(caller.numbers) & set(numbers.tolist()))
            raise RuntimeError("broken on purpose")
        return numbers[:, None].astype(np.float32)

    @rule(rows=st.integers(1, 25), expires_at=st.sampled_from([math.inf, math.inf, math.inf, PAST]))
    def submit(self, rows, expires_at):
        caller = Caller(range(self.next_number, self.next_number + rows), expires_at)
        self.next_number += rows
        try:
            caller.accepted(self.batcher.submit(caller.bitmaps, expires_at=expires_at))
        except Overloaded:
            assert self.batcher.queued_rows + rows > MAX_QUEUED or expires_at == PAST
        except DeadlinePassed:
            assert expires_at == PAST
        except ShuttingDown:
            assert self.is_closed
        else:
            assert not self.is_closed
            self.callers.append(caller)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data):
        data.draw(st.sampled_from(self.callers)).future.cancel()

    @rule(idle_slots=st.integers(1, 4))
    def take(self, idle_slots):
        unwanted = {number for caller in self.callers if caller.is_unwanted for number in caller.numbers}
        batch = self.batcher.take(idle_slots)
        if batch:
            self.running.append((batch, unwanted))
        assert len(self.running) <= self.batcher.limits.slots

    @precondition(lambda self: self.running)
    @rule(data=st.data(), breaks=st.booleans())
    def end_a_call(self, data, breaks):
        batch, self.unwanted = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.breaks = breaks
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
    def nothing_happens_twice(self):
        if hasattr(self, "batcher"):
            assert max(self.computed.values(), default=0) <= 1
            assert all(caller.settled <= 1 for caller in self.callers)

    def teardown(self):
        """Whatever happened, everybody hears, of their own rows."""
        if not hasattr(self, "batcher"):
            return
        self.breaks = False
        while self.running or self.batcher.has_rows:
            self.take(1)
            if not self.running:
                break  # whoever was left wanted nothing any more
            batch, self.unwanted = self.running.pop()
            batch.run()
        assert self.batcher.queued_rows == 0
        for caller in self.callers:
            self._check_end(caller)

    def _check_end(self, caller: Caller) -> None:
        assert caller.settled == 1
        if caller.future.cancelled():
            return
        error = caller.future.exception()
        if error is None:
            assert not caller.was_broken
            assert caller.expires_at != PAST
            assert caller.future.result().scores[:, 0].tolist() == list(caller.numbers)
        else:
            assert isinstance(error, InferenceFailed if caller.was_broken else DeadlinePassed)
            assert caller.was_broken or caller.expires_at == PAST


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(max_examples=100, stateful_step_count=40)
