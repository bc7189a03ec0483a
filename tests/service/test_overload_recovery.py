"""Test that a wrong estimate of the drain rate does not last, and that expired requests fail without the lock."""

import threading

import pytest
from fakes import FakeModel, drawings, first_pixels
from gates import Clock
from sketchbatch_service.batching.batcher import Batch, Batcher, BatchLimits
from sketchbatch_service.errors import DeadlinePassed, Overloaded

SECONDS_PER_ROW = 0.01
PAUSE_S = 30.0


class PausingModel(FakeModel):
    """A model that takes `SECONDS_PER_ROW` of the clock per row, and longer in calls in which the process is paused."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.seconds_per_row = SECONDS_PER_ROW
        self.pauses_s: list[float] = []  # how long the process is paused in the next calls
        self._clock = clock

    def predict(self, bitmaps):
        self._clock.advance(self.seconds_per_row * len(bitmaps) + (self.pauses_s.pop(0) if self.pauses_s else 0))
        return super().predict(bitmaps)


@pytest.fixture
def clock() -> Clock:
    """Return a clock that the test advances."""
    return Clock()


@pytest.fixture
def model(clock) -> PausingModel:
    """Return a model whose calls advance the clock."""
    return PausingModel(clock)


@pytest.fixture(params=[1, 2, 8])
def batcher(clock, model, request) -> Batcher:
    """Return a batcher with one, two or eight slots and batches of two rows."""
    return Batcher(model.predict, BatchLimits(max_batch_rows=2, slots=request.param), clock=clock)


def run_all(batcher: Batcher) -> None:
    """Run all queued batches on this thread: as many at once as there are slots, whose calls end at the same time."""
    while batches := take_all(batcher):
        for batch in batches:
            batch.run()


def take_all(batcher: Batcher) -> list[Batch]:
    """Take as many batches as there are free slots."""
    batches = []
    while batch := batcher.take(1):
        batches.append(batch)
    return batches


def fill(batcher: Batcher, requests: int) -> None:
    """Queue requests of two rows without a deadline."""
    for _ in range(requests):
        batcher.submit(drawings(1, 2))


def is_accepted(batcher: Batcher, clock: Clock, deadline_s: float) -> bool:
    """Return whether a request of one row with this deadline is accepted."""
    try:
        batcher.submit(drawings(3), expires_at=clock() + deadline_s)
    except Overloaded:
        return False
    return True


def test_requests_are_rejected_by_the_true_drain_rate(batcher, clock):
    """Without a pause, the predicted time is the true time times 1.5, which the other tests of this file assume."""
    fill(batcher, 100)
    run_all(batcher)
    fill(batcher, 20)
    assert not is_accepted(batcher, clock, 0.6)
    assert is_accepted(batcher, clock, 0.63)


@pytest.mark.parametrize("measured_before", [0, 100])
def test_a_pause_of_the_process_raises_the_estimate_little_or_for_one_call_only(batcher, clock, model, measured_before):
    """After a pause of 30 s in a model call, one more call limits the predicted time to 4 times the usual prediction.

    The call itself has no pause. It may take the last rows of the queue, and there may be no estimate before the pause.
    """
    fill(batcher, measured_before)
    run_all(batcher)
    model.pauses_s = [PAUSE_S]
    fill(batcher, 100)
    for batch in take_all(batcher):
        batch.run()
    run_all(batcher)
    fill(batcher, 1)
    run_all(batcher)
    fill(batcher, 20)
    assert is_accepted(batcher, clock, 41 * SECONDS_PER_ROW * 1.5 * 4)


def test_an_estimate_that_rejects_every_request_expires(batcher, clock):
    """If no call is measured any more because requests are rejected, the estimate counts as unknown after a second."""
    fill(batcher, 100)
    run_all(batcher)
    fill(batcher, 20)
    clock.advance(0.9)
    assert not is_accepted(batcher, clock, 0.1)
    clock.advance(0.2)
    assert is_accepted(batcher, clock, 0.1)


def test_the_estimate_of_a_slow_model_does_not_expire_between_two_calls(batcher, clock, model):
    """If a model call takes longer than a second, the estimate is valid for longer than a second, too."""
    model.seconds_per_row = 2.0
    fill(batcher, 100)
    run_all(batcher)
    fill(batcher, 20)
    clock.advance(3.0)
    assert not is_accepted(batcher, clock, 10.0)


def test_a_pause_after_idle_time_rejects_no_request(batcher, clock, model):
    """If the estimate has expired and the process is then paused in a model call, no request is rejected afterwards."""
    fill(batcher, 100)
    run_all(batcher)
    clock.advance(10.0)
    model.pauses_s = [PAUSE_S]
    fill(batcher, 20 + batcher.limits.slots)
    for batch in take_all(batcher):
        batch.run()
    assert is_accepted(batcher, clock, 5.0)
    run_all(batcher)
    fill(batcher, 20)
    assert is_accepted(batcher, clock, 5.0)


@pytest.mark.parametrize("vanish", ["cancelled", "expired"])
def test_idle_time_after_waiting_requests_vanish_is_not_measured(batcher, clock, vanish):
    """If all waiting rows are cancelled or expire, the time until the next request is no part of the drain rate."""
    fill(batcher, 100)
    run_all(batcher)
    waiting = [batcher.submit(drawings(*range(9)), expires_at=clock() + 3600) for _ in range(3)]
    batches = take_all(batcher)
    clock.advance(3600 if vanish == "expired" else 0)
    for future in waiting:
        future.cancel()
    for batch in batches:
        batch.run()
    run_all(batcher)
    clock.advance(240)
    fill(batcher, 40)
    run_all(batcher)
    assert all(future.done() for future in waiting)
    fill(batcher, 20)
    assert is_accepted(batcher, clock, 41 * SECONDS_PER_ROW * 1.5 * 1.1)


def test_a_model_that_really_becomes_slow_is_measured_soon(batcher, clock, model):
    """If model calls take ten times as long from now on, a hundred calls suffice to predict the new time."""
    fill(batcher, 100)
    run_all(batcher)
    model.seconds_per_row *= 10
    fill(batcher, 20 + 100 * batcher.limits.slots)
    for _ in range(100):
        for batch in take_all(batcher):
            batch.run()
    assert not is_accepted(batcher, clock, 41 * SECONDS_PER_ROW * 10)


def test_expired_requests_fail_without_the_lock_of_the_batcher(clock):
    """A callback of an expired request can wait for another thread that uses the batcher: the lock is free."""
    model = FakeModel()
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=2), clock=clock)
    later: list = []

    def submit_on_another_thread(_):
        thread = threading.Thread(target=lambda: later.append(batcher.submit(drawings(7))))
        thread.start()
        thread.join()

    late = batcher.submit(drawings(1), expires_at=clock() + 1)
    late.add_done_callback(submit_on_another_thread)
    clock.advance(1)
    batcher.take(1).run()
    with pytest.raises(DeadlinePassed):
        late.result(0)
    run_all(batcher)
    assert first_pixels(later[0]) == [7]


def test_expired_requests_that_make_room_fail_without_the_lock_of_the_batcher(clock):
    """The lock is also free if `submit` removes the expired requests from a full queue."""
    model = FakeModel()
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=2, max_queued_rows=2), clock=clock)
    threads: list[threading.Thread] = []

    def take_on_another_thread(_):
        thread = threading.Thread(target=batcher.take, args=(1,))
        thread.start()
        thread.join(5)
        threads.append(thread)

    late = batcher.submit(drawings(1, 2), expires_at=clock() + 1)
    late.add_done_callback(take_on_another_thread)
    clock.advance(1)
    batcher.submit(drawings(3))
    assert late.done()
    assert not threads[0].is_alive()
