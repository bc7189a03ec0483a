"""Test that the predicted waiting time follows the speed of the model, and that no event makes it wrong for long.

All tests run the batches on the thread of the test, with an injected clock that only the fake model advances.
"""

import heapq
import math

import numpy as np
import pytest
from gates import Clock
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.drain_rate import DrainRateEstimator
from sketchbatch_service.errors import DeadlinePassed, Overloaded

CALL_ROWS = 4
ROW_S = 0.01  # seconds per row of the fake model
DEADLINE_S = 20 * ROW_S  # enough for 13 rows with the safety factor of 1.5
FREEZE_S = 30.0


class TimedModel:
    """A model whose calls take `row_s` seconds per row, and once `frozen_s` more: the process was stopped meanwhile."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.row_s = ROW_S
        self.frozen_s = 0.0
        self.error: Exception | None = None

    def predict(self, bitmaps):
        self.clock.advance(self.row_s * len(bitmaps) + self.frozen_s)
        self.frozen_s = 0.0
        if self.error:
            raise self.error
        return np.zeros((len(bitmaps), 1), np.float32)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model(clock) -> TimedModel:
    return TimedModel(clock)


@pytest.fixture
def batcher(model, clock) -> Batcher:
    return Batcher(model.predict, BatchLimits(max_batch_rows=CALL_ROWS), clock=clock)


def rows(number: int):
    return np.zeros((number, 28, 28), np.uint8)


def run_all(batcher: Batcher) -> None:
    while batch := batcher.take(1):
        batch.run()


def run_calls(batcher: Batcher, calls: int) -> None:
    """Queue requests of one call each, and run them."""
    for _ in range(calls):
        batcher.submit(rows(CALL_ROWS))
    run_all(batcher)


def seconds_per_row(batcher: Batcher) -> float:
    """Return the drain rate that the batcher predicts with; 0 = unknown. No row may wait."""
    batcher.submit(rows(1))
    try:
        batcher.submit(rows(1), expires_at=-math.inf)
    except Overloaded as exc:
        rate = exc.retry_after_s
    run_all(batcher)
    return 0.0 if rate == 0.1 else rate  # 0.1 s is the retry delay while the drain rate is unknown


def test_a_freeze_does_not_change_the_drain_rate(batcher, model):
    """A model call during which the process was stopped for 30 s does not change the predicted waiting times."""
    run_calls(batcher, 10)
    model.frozen_s = FREEZE_S
    run_calls(batcher, 10)
    assert seconds_per_row(batcher) == pytest.approx(ROW_S)


def test_a_freeze_during_the_first_measured_call_does_not_set_the_drain_rate(batcher, model):
    """The first measured call sets no drain rate alone: the process may have been stopped meanwhile."""
    model.frozen_s = FREEZE_S
    run_calls(batcher, 2)
    assert seconds_per_row(batcher) == 0.0
    run_calls(batcher, 2)
    assert seconds_per_row(batcher) == pytest.approx(ROW_S)


def test_a_slow_model_is_measured_after_two_calls(batcher, model):
    """Two calls that leave rows in the queue set the drain rate, whatever the speed of the model."""
    model.row_s = 1.0
    run_calls(batcher, 3)
    assert seconds_per_row(batcher) == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [10, 0.5])
def test_a_change_of_speed_is_measured_within_fifty_calls(batcher, model, factor):
    """Fifty calls after the model has become slower or faster, the drain rate is the new one."""
    run_calls(batcher, 60)
    model.row_s *= factor
    run_calls(batcher, 6)
    assert seconds_per_row(batcher) != pytest.approx(ROW_S, rel=0.05)
    run_calls(batcher, 51)
    assert seconds_per_row(batcher) == pytest.approx(ROW_S * factor)


def test_calls_that_empty_the_queue_correct_a_drain_rate_that_is_too_high(batcher, model):
    """A model that was slow and is fast again rejects no request after fifty calls, even if no call leaves rows.

    While the drain rate is too high, the batcher rejects the requests that would make a longer queue. So it must learn
    from calls that leave no rows.
    """
    model.row_s = 100 * ROW_S
    run_calls(batcher, 60)
    model.row_s = ROW_S
    rejections = []
    batcher.submit(rows(1))
    for call in range(100):
        running = batcher.take(1)
        for _ in range(2):  # two callers arrive during each call
            try:
                batcher.submit(rows(1), expires_at=model.clock() + DEADLINE_S)
            except Overloaded:
                rejections.append(call)
        running.run()
    assert 0 < len(rejections) <= 51
    assert max(rejections) <= 51


def test_small_calls_do_not_raise_the_drain_rate(batcher, model, clock):
    """Calls of one row, which take longer per row, do not raise the drain rate measured with full calls."""
    run_calls(batcher, 10)
    batcher.submit(rows(1))
    for _ in range(100):
        running = batcher.take(1)
        batcher.submit(rows(1))
        clock.advance(5 * ROW_S)  # the fixed time of a call
        running.run()
    run_all(batcher)
    assert seconds_per_row(batcher) == pytest.approx(ROW_S)


def test_the_drain_rate_expires_while_the_model_is_idle(batcher, model, clock):
    """After five seconds without a measured call, an idle model accepts every request, and is measured again."""
    model.row_s = 100 * ROW_S
    run_calls(batcher, 10)
    clock.advance(5.0)
    model.row_s = ROW_S
    for _ in range(3):
        batcher.submit(rows(CALL_ROWS), expires_at=clock() + DEADLINE_S)
    run_all(batcher)
    assert seconds_per_row(batcher) == pytest.approx(ROW_S)


def test_the_drain_rate_does_not_expire_while_a_call_runs(batcher, model, clock):
    """During a call of 40 s the drain rate stays valid: requests that would be late are rejected."""
    model.row_s = 1.0
    run_calls(batcher, 3)
    batcher.submit(rows(CALL_ROWS))
    running = batcher.take(1)
    clock.advance(40.0)
    batcher.submit(rows(1))
    with pytest.raises(Overloaded, match="too late"):
        batcher.submit(rows(1), expires_at=clock() + 2)
    running.run()


def cancel(batcher: Batcher, model: TimedModel, waiting: list) -> None:
    for each in waiting:
        each.cancel()


def expire(batcher: Batcher, model: TimedModel, waiting: list) -> None:
    model.clock.advance(3.0)


def cancel_and_remove(batcher: Batcher, model: TimedModel, waiting: list) -> None:
    cancel(batcher, model, waiting)
    last = batcher.submit(rows(batcher.limits.max_queued_rows))  # accepted because the cancelled rows are removed
    last.cancel()


def fail(batcher: Batcher, model: TimedModel, waiting: list) -> None:
    model.error = RuntimeError("broken")


@pytest.mark.parametrize("empty", [cancel, expire, cancel_and_remove, fail])
def test_idle_time_after_rows_have_left_the_queue_does_not_count(batcher, model, clock, empty):
    """However the last rows leave the queue, the idle time until the next call is no part of the drain rate.

    The idle time is shorter here than the expiry of the drain rate.
    """
    run_calls(batcher, 3)
    for _ in range(3):
        waiting = [batcher.submit(rows(2 * CALL_ROWS), expires_at=clock() + 3) for _ in range(3)]
        running = batcher.take(1)
        empty(batcher, model, waiting)
        running.run()
        run_all(batcher)
        model.error = None
        assert all(each.done() for each in waiting)
        clock.advance(4.0)
    run_calls(batcher, 3)
    assert seconds_per_row(batcher) == pytest.approx(ROW_S)


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_calls_that_start_together_are_measured_together(slots):
    """If the calls of all slots start and end at the same time, the drain rate counts the rows of all slots."""
    estimator, now = DrainRateEstimator(), 0.0
    for _ in range(10):
        for slot in reversed(range(slots)):
            estimator.record_start(CALL_ROWS, 1000, now, has_idle_slot=slot > 0)
        now += 1.0
    assert estimator.seconds_per_row(now) == pytest.approx(1 / (CALL_ROWS * slots), rel=0.1)


def test_short_calls_are_measured_together():
    """Calls of 1 ms set the drain rate after two observations of 5 ms."""
    estimator, now = DrainRateEstimator(), 0.0
    for _ in range(11):
        assert estimator.seconds_per_row(now) == 0.0
        estimator.record_start(2, 100, now, has_idle_slot=False)
        now += 0.00101
    estimator.record_idle()
    assert estimator.seconds_per_row(now) == pytest.approx(0.0005, rel=0.02)


def test_the_time_in_which_a_slot_is_idle_does_not_count():
    """A request that two idle slots share is not measured: its calls start without waiting for each other."""
    estimator, now = DrainRateEstimator(), 0.0
    for _ in range(10):
        estimator.record_start(32, 32, now, has_idle_slot=True)
        estimator.record_start(32, 0, now + 1e-6, has_idle_slot=False)
        now += 1.0
        estimator.record_idle()
    assert estimator.seconds_per_row(now) == 0.0


@pytest.mark.parametrize("pause_s", [0.02, 0.0])
@pytest.mark.parametrize("freezes", [1, 3])
def test_callers_are_not_rejected_after_a_freeze(model, clock, pause_s, freezes):
    """Eight callers of 64 rows are not rejected after freezes of 30 s, with and without pauses after rejections.

    Their deadline is 0.5 s. The model is busy all the time: it is the scenario in which an earlier version rejected
    half of all requests for minutes, because it measured too few calls to correct the drain rate.
    """
    model.row_s = 1e-4
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=256), clock=clock)
    arrivals = [(clock(), caller) for caller in range(8)]
    rejected_at: list[float] = []
    answered_at: list[float] = []

    def arrive() -> None:
        while arrivals and arrivals[0][0] <= clock():
            _, caller = heapq.heappop(arrivals)
            try:
                future = batcher.submit(rows(64), expires_at=clock() + 0.5)
            except Overloaded:
                rejected_at.append(clock())
                heapq.heappush(arrivals, (clock() + max(pause_s, 0.001), caller))
            else:
                future.add_done_callback(lambda _, caller=caller: heapq.heappush(arrivals, (clock(), caller)))
                future.add_done_callback(lambda done: done.exception() or answered_at.append(clock()))

    def run_until(end: float) -> None:
        while clock() < end:
            arrive()
            if batch := batcher.take(1):
                batch.run()
            else:
                clock.advance(0.001)

    run_until(clock() + 5)
    for _ in range(freezes):
        model.frozen_s = FREEZE_S
        run_until(clock() + FREEZE_S + 0.05)
    resumed_at = clock()
    run_until(resumed_at + 10)
    assert [at for at in rejected_at if at > resumed_at + 2] == []
    answered_per_s = sum(at > resumed_at + 2 for at in answered_at) / 8
    assert answered_per_s == pytest.approx(1 / 64e-4, rel=0.05)


def test_an_expired_request_is_not_predicted_to_be_on_time(batcher, clock):
    """A request whose deadline has passed fails, whether the drain rate is known or not."""
    request = batcher.submit(rows(1), expires_at=clock())
    run_all(batcher)
    with pytest.raises(DeadlinePassed):
        request.result(0)
