"""Test the batcher with a fake model.

Tests that depend on time inject a clock, and run the batches on the thread of the test.
"""

import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from fakes import FakeModel, busy, drawings, first_pixels, running
from gates import Clock
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.errors import DeadlinePassed, InferenceFailed, Overloaded, ShuttingDown


def test_queued_requests_share_a_model_call():
    """Requests that are queued while a model call runs share the next model call; each receives its own scores."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=8))) as batcher:
        busy(model, batcher)
        futures = [batcher.submit(drawings(n, n + 1)) for n in (10, 20, 30)]
        model.release.set()
        scored = [first_pixels(future) for future in futures]
    assert model.batch_sizes == [1, 6]
    assert scored == [[10, 11], [20, 21], [30, 31]]


@pytest.mark.parametrize(
    ("min_split_rows", "rows_each", "expected"),
    [
        (1, 2, [6, 4, 2]),  # 12, 6 and 2 rows wait
        (1, 5, [10, 5, 5]),  # whole requests only: 20, 10 and 5 rows wait
        (8, 2, [8, 4]),
        (20, 2, [12]),
        (1, 30, [20, 20, 20, 20, 20, 20]),  # large requests: one slot takes all that fit
    ],
)
def test_a_batch_leaves_whole_small_requests_to_busy_slots(min_split_rows, rows_each, expected):
    """A slot takes small requests until it has the queued rows divided by the number of slots, and `min_split_rows`.

    The other slots may be busy: each finds rows when its call ends, so that the calls do not end at the same moment.
    """
    batcher = Batcher(FakeModel().predict, BatchLimits(slots=2, max_batch_rows=20, min_split_rows=min_split_rows))
    batcher.submit(drawings(1))
    busy_slot = batcher.take(1)
    for _ in range(6 if rows_each < 5 else 4):
        batcher.submit(drawings(*range(rows_each)))
    sizes = []
    while batch := batcher.take(1):
        sizes.append(batch.rows)
        batch.run()
    busy_slot.run()
    assert sizes == expected


@pytest.mark.parametrize(
    ("max_batch_rows", "expected"),
    [
        (1, [[10], [1], [11], [2], [12], [3], [4]]),
        (3, [[10, 11, 1], [12, 2, 3], [4]]),
        (4, [[10, 11, 1, 2], [12, 3, 4, 5]]),
    ],
)
def test_small_and_large_requests_get_the_odd_row_in_turn(max_batch_rows, expected):
    """While both kinds wait, neither waits for the end of the other, even if a batch has one row."""
    batches = []
    model = FakeModel()

    def predict(bitmaps):
        batches.append(bitmaps[:, 0, 0].tolist())
        return model.predict(bitmaps)

    batcher = Batcher(predict, BatchLimits(max_batch_rows=max_batch_rows))
    large_rows = range(1, 5 if max_batch_rows < 4 else 6)
    large = batcher.submit(drawings(*large_rows))
    small = [batcher.submit(drawings(first_pixel)) for first_pixel in (10, 11, 12)]
    run_all(batcher)
    assert batches == expected
    assert first_pixels(large) == list(large_rows)
    assert [first_pixels(each) for each in small] == [[10], [11], [12]]


def test_an_idle_model_starts_at_once():
    """A single request starts at once, without waiting until other requests fill its batch."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=100))) as batcher:
        future = busy(model, batcher)  # the model call starts although its batch is not full
        model.release.set()
        assert first_pixels(future) == [0]


def test_a_large_request_is_split_and_its_scores_are_in_order():
    """A request with more rows than a batch runs in several model calls and receives one response with all scores."""
    model = FakeModel()
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        answer = batcher.submit(drawings(*range(10))).result(5)
    assert answer.scores[:, 0].tolist() == list(range(10))
    assert model.batch_sizes == [4, 4, 2]


def test_the_end_of_a_large_request_shares_a_call_with_the_next():
    """The last rows of a large request share a batch with the rows of the next request."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        busy(model, batcher)
        large, small = batcher.submit(drawings(*range(6))), batcher.submit(drawings(50, 51))
        model.release.set()
        assert first_pixels(large) == [0, 1, 2, 3, 4, 5]
        assert first_pixels(small) == [50, 51]
    assert model.batch_sizes == [1, 4, 4]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_request_cancelled_in_the_queue_does_not_run(position):
    """The batcher skips the rows of a cancelled request, and the other requests receive their scores."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=3))) as batcher:
        busy(model, batcher)
        futures = [batcher.submit(drawings(n)) for n in range(3)]
        cancelled = futures[position]
        cancelled.cancel()
        model.release.set()
        for n, future in enumerate(futures):
            if future is not cancelled:
                assert first_pixels(future) == [n]
    with pytest.raises(CancelledError):
        cancelled.result(0)
    assert model.batch_sizes == [1, 2]


def test_a_request_cancelled_during_its_call_does_not_disturb_its_batch():
    """The batcher drops the scores of a request that is cancelled during its model call, and runs the next batches."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        busy(model, batcher).cancel()
        model.release.set()
        assert first_pixels(batcher.submit(drawings(2))) == [2]
        assert first_pixels(batcher.submit(drawings(3))) == [3]


class Panic(BaseException):
    """An error that is no Exception, as bindings of native libraries raise it."""


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_a_failed_model_call_fails_every_request_of_its_batch(kind):
    """Every request of a failed batch receives an error with the cause, and the slot is free for the next batch."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        futures = [busy(model, batcher), batcher.submit(drawings(1)), batcher.submit(drawings(2))]
        model.error = kind("CUDA out of memory")
        model.release.set()
        for future in futures:
            with pytest.raises(InferenceFailed) as caught:
                future.result(5)
            assert "out of memory" in str(caught.value.__cause__)
        model.error = None
        assert first_pixels(batcher.submit(drawings(7, 8))) == [7, 8]


def test_a_call_that_returns_too_few_rows_fails():
    """A model call that returns too few rows fails, so a row never receives the scores of another row."""
    with (
        running(Batcher(lambda bitmaps: np.zeros((len(bitmaps) - 1, 3), np.float32), BatchLimits())) as batcher,
        pytest.raises(InferenceFailed),
    ):
        batcher.submit(drawings(1, 2)).result(5)


def test_scores_of_different_widths_fail_the_request():
    """A request fails if its model calls return different numbers of classes; the next request still runs."""
    widths = iter((2, 3, 1))
    with running(
        Batcher(lambda b: np.zeros((len(b), next(widths)), np.float32), BatchLimits(max_batch_rows=2))
    ) as batcher:
        with pytest.raises(InferenceFailed):
            batcher.submit(drawings(1, 2, 3, 4)).result(5)
        assert batcher.submit(drawings(5)).result(5).scores.shape == (1, 1)


def test_cancelled_and_expired_requests_free_a_full_queue():
    """If the queue is full, the batcher drops the rows of cancelled and expired requests to accept a new request."""
    model, clock = FakeModel(held=True), Clock()
    with running(Batcher(model.predict, BatchLimits(max_queued_rows=4), clock=clock)) as batcher:
        busy(model, batcher)
        batcher.submit(drawings(1, 2)).cancel()
        expired = batcher.submit(drawings(3, 4), expires_at=clock() + 1)
        clock.advance(1)
        accepted = batcher.submit(drawings(5, 6, 7, 8))
        with pytest.raises(DeadlinePassed):
            expired.result(0)
        with pytest.raises(Overloaded):
            batcher.submit(drawings(9))
        model.release.set()
        assert first_pixels(accepted) == [5, 6, 7, 8]
    assert model.batch_sizes == [1, 4]


def test_the_rest_of_a_failed_request_does_not_run():
    """When one model call of a large request fails, the batcher drops the queued rows of this request."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2))) as batcher:
        split = batcher.submit(drawings(1, 2, 3, 4, 5, 6))
        assert model.started.wait(5)
        model.error = RuntimeError("broken")
        model.release.set()
        with pytest.raises(InferenceFailed):
            split.result(5)
        model.error = None
        assert first_pixels(batcher.submit(drawings(9))) == [9]
    assert model.batch_sizes == [2, 1]


def test_a_request_that_expires_in_the_queue_does_not_run():
    """A request that expires in the queue receives DeadlinePassed, and the model never receives its rows."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        busy(model, batcher)
        late = batcher.submit(drawings(1), expires_at=time.monotonic())
        on_time = batcher.submit(drawings(2), expires_at=time.monotonic() + 60)
        model.release.set()
        with pytest.raises(DeadlinePassed):
            late.result(5)
        assert first_pixels(on_time) == [2]
    assert model.batch_sizes == [1, 1]


class SlowModel(FakeModel):
    """Advance the injected clock by 10 ms per row in each model call."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def predict(self, bitmaps):
        self.clock.advance(0.01 * len(bitmaps))
        return super().predict(bitmaps)


def run_all(batcher: Batcher) -> None:
    """Run all queued batches on the calling thread."""
    while batch := batcher.take(1):
        batch.run()


def test_a_request_that_would_miss_its_deadline_is_rejected_on_arrival():
    """A request is rejected on arrival if its predicted time in the queue is longer than the time until its deadline.

    The predicted time is the number of queued rows, times the measured seconds per row, times a safety factor of 1.5.
    """
    clock = Clock()
    batcher = Batcher(SlowModel(clock).predict, BatchLimits(max_batch_rows=2), clock=clock)
    for _ in range(10):
        batcher.submit(drawings(1, 2))
    run_all(batcher)  # the batcher measures 10 ms per row here
    for _ in range(20):
        batcher.submit(drawings(3, 4))
    message = r"too late: 40 rows are ahead, about 0\.6. s; the deadline is in 0\.60 s"
    with pytest.raises(Overloaded, match=message) as caught:
        batcher.submit(drawings(5), expires_at=clock() + 0.6)
    assert caught.value.retry_after_s == pytest.approx(0.4)
    accepted = batcher.submit(drawings(5), expires_at=clock() + 0.63)
    run_all(batcher)
    assert first_pixels(accepted) == [5]


def test_only_the_rows_that_run_first_count_against_a_deadline():
    """The predicted time in the queue counts only the rows that run before the new request.

    A second large request waits for all rows of the first. A small request does not wait for them, because each batch
    has rows of small and of large requests.
    """
    clock = Clock()
    batcher = Batcher(SlowModel(clock).predict, BatchLimits(max_batch_rows=2), clock=clock)
    batcher.submit(drawings(*range(10)))
    run_all(batcher)
    bulk = batcher.submit(drawings(*range(60)))
    with pytest.raises(Overloaded, match="too late: 60 rows are ahead"):
        batcher.submit(drawings(1, 2, 3), expires_at=clock() + 0.5)
    small = batcher.submit(drawings(7), expires_at=clock() + 0.5)
    run_all(batcher)
    assert first_pixels(small) == [7]
    assert first_pixels(bulk) == list(range(60))


def test_an_empty_queue_never_rejects_on_the_deadline():
    """If the queue is empty, a request is accepted even if its own model calls will end after its deadline.

    The request then fails with DeadlinePassed.
    """
    clock = Clock()
    batcher = Batcher(SlowModel(clock).predict, BatchLimits(max_batch_rows=2), clock=clock)
    batcher.submit(drawings(*range(10)))
    run_all(batcher)
    request = batcher.submit(drawings(*range(10)), expires_at=clock() + 0.05)
    run_all(batcher)
    with pytest.raises(DeadlinePassed):
        request.result(0)


def test_a_full_queue_rejects_at_once_with_a_retry_delay():
    """When the queue is full, `submit` raises Overloaded at once; `retry_after_s` is the predicted time to drain it."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2, max_queued_rows=2))) as batcher:
        busy(model, batcher)
        batcher.submit(drawings(1, 2))
        with pytest.raises(Overloaded, match="2 of 2 rows") as caught:
            batcher.submit(drawings(3))
        assert caught.value.retry_after_s > 0
        model.release.set()


def test_completed_and_cancelled_rows_free_the_queue():
    """Rows that have run or were cancelled no longer count as queued rows."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4, max_queued_rows=4))) as batcher:
        for _ in range(3):
            model.started.clear()
            model.release.clear()
            first = busy(model, batcher)
            batcher.submit(drawings(1, 2)).cancel()
            last = batcher.submit(drawings(3, 4))
            model.release.set()
            assert first_pixels(first) == [0]
            assert first_pixels(last) == [3, 4]


def test_the_exit_of_the_pool_finishes_queued_rows_and_rejects_new_ones():
    """When the thread pool exits, accepted requests receive their scores, and a later request raises ShuttingDown."""
    model = FakeModel(held=True)
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=1))
    with running(batcher):
        first = busy(model, batcher)
        queued = batcher.submit(drawings(5))
        model.release.set()
    assert first_pixels(first) == [0]
    assert first_pixels(queued) == [5]
    with pytest.raises(ShuttingDown):
        batcher.submit(drawings(6))


def test_an_answer_separates_queue_time_from_inference_time():
    """The result of a request has the time in the queue and the time in model calls separately.

    `queue_s` is the time until the request's first model call starts. `inference_s` is the time of the model calls that
    have rows of this request.
    """
    clock = Clock()
    batcher = Batcher(SlowModel(clock).predict, BatchLimits(max_batch_rows=1), clock=clock)
    first, second = batcher.submit(drawings(0)), batcher.submit(drawings(1))
    clock.advance(0.05)
    run_all(batcher)
    times = [(answer.queue_s, answer.inference_s) for answer in (first.result(0), second.result(0))]
    assert times == [pytest.approx((0.05, 0.01)), pytest.approx((0.06, 0.01))]


def test_a_small_request_does_not_wait_for_a_bulk_job():
    """While small and large requests are queued, half of the rows of each model call belong to small requests.

    A small request therefore does not wait until a bulk job has ended.
    """
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        busy(model, batcher)
        bulk = [batcher.submit(drawings(*range(n, n + 8))) for n in (10, 20)]
        small = [batcher.submit(drawings(n)) for n in (1, 2, 3)]
        ends: list[str] = []
        small[1].add_done_callback(lambda _: ends.append("small"))
        bulk[0].add_done_callback(lambda _: ends.append("bulk"))
        model.release.set()
        assert [first_pixels(each) for each in small] == [[1], [2], [3]]
        assert [first_pixels(each) for each in bulk] == [list(range(n, n + 8)) for n in (10, 20)]
    # the second call has 2 small and 2 bulk rows, the third has 1 small and 3 bulk rows, and later calls bulk rows only
    assert model.batch_sizes == [1, 4, 4, 4, 4, 3]
    assert ends == ["small", "bulk"]


def test_a_crowd_of_small_requests_does_not_starve_a_bulk_job():
    """A large request that is queued after 20 small requests does not wait until all these small requests have run."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        busy(model, batcher)
        small = [batcher.submit(drawings(n)) for n in range(20)]
        bulk = batcher.submit(drawings(*range(100, 106)))
        waiting_at_its_end: list[int] = []
        bulk.add_done_callback(lambda _: waiting_at_its_end.append(sum(not each.done() for each in small)))
        model.release.set()
        assert [first_pixels(each) for each in small] == [[n] for n in range(20)]
    # the bulk request ends after 3 model calls, and at most 8 of the 20 small requests have ended by then
    assert waiting_at_its_end[0] >= 12
