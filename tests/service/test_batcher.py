"""The batcher alone: no sockets, no model, no sleeping to "let things happen"."""

import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from fakes import FakeModel, busy, drawings, first_pixels, running
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.errors import DeadlinePassed, InferenceFailed, Overloaded, ShuttingDown


def test_requests_that_wait_together_run_together():
    """Callers queued behind a busy model share the next call and keep their rows."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=8))) as batcher:
        busy(model, batcher)
        callers = [batcher.submit(drawings(n, n + 1)) for n in (10, 20, 30)]
        model.release.set()
        answers = [first_pixels(caller) for caller in callers]
    assert model.batch_sizes == [1, 6]
    assert answers == [[10, 11], [20, 21], [30, 31]]


def test_an_idle_model_starts_at_once():
    """A lone request is run without waiting for others to join it."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=100))) as batcher:
        future = busy(model, batcher)  # it starts although the batch is far from full
        model.release.set()
        assert first_pixels(future) == [0]


def test_a_large_request_is_split_and_comes_back_in_order():
    """A request of more rows than a batch runs in several calls and is one answer."""
    model = FakeModel()
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        answer = batcher.submit(drawings(*range(10))).result(5)
    assert answer.scores[:, 0].tolist() == list(range(10))
    assert model.batch_sizes == [4, 4, 2]


def test_the_end_of_a_large_request_shares_a_call_with_the_next():
    """Splitting and merging meet: no call goes out part-filled while rows are waiting."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        busy(model, batcher)
        large, small = batcher.submit(drawings(*range(6))), batcher.submit(drawings(50, 51))
        model.release.set()
        assert first_pixels(large) == [0, 1, 2, 3, 4, 5]
        assert first_pixels(small) == [50, 51]
    assert model.batch_sizes == [1, 4, 4]


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_a_caller_that_leaves_while_queued_is_not_run(leaver):
    """Its rows are skipped and its neighbours' answers are whole."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=3))) as batcher:
        busy(model, batcher)
        callers = [batcher.submit(drawings(n)) for n in range(3)]
        callers[leaver].cancel()
        model.release.set()
        for n, caller in enumerate(callers):
            if n != leaver:
                assert first_pixels(caller) == [n]
    with pytest.raises(CancelledError):
        callers[leaver].result(0)
    assert model.batch_sizes == [1, 2]


def test_a_caller_that_leaves_during_its_call_does_not_disturb_its_batch():
    """An answer nobody waits for is dropped, and the next batches run."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        leaver = busy(model, batcher)
        leaver.cancel()
        model.release.set()
        stayer = batcher.submit(drawings(2))
        assert first_pixels(stayer) == [2]
        assert first_pixels(batcher.submit(drawings(3))) == [3]


def test_a_broken_model_call_reaches_every_caller():
    """Nobody is left waiting, each hears the cause, and the next batch still runs."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits())) as batcher:
        callers = [busy(model, batcher), batcher.submit(drawings(1)), batcher.submit(drawings(2))]
        model.error = RuntimeError("CUDA out of memory")
        model.release.set()
        for caller in callers:
            with pytest.raises(InferenceFailed) as caught:
                caller.result(5)
            assert "out of memory" in str(caught.value.__cause__)
        model.error = None
        assert first_pixels(batcher.submit(drawings(7, 8))) == [7, 8]


def test_a_model_that_returns_too_few_rows_is_a_broken_call():
    """Scores are never handed to the wrong row."""
    with (
        running(Batcher(lambda bitmaps: np.zeros((len(bitmaps) - 1, 3), np.float32), BatchLimits())) as batcher,
        pytest.raises(InferenceFailed),
    ):
        batcher.submit(drawings(1, 2)).result(5)


def test_scores_that_cannot_be_put_together_are_a_broken_call():
    """Whatever the model returns, the caller hears of it and the batcher goes on."""
    widths = iter((2, 3, 1))
    with running(
        Batcher(lambda b: np.zeros((len(b), next(widths)), np.float32), BatchLimits(max_batch_rows=2))
    ) as batcher:
        with pytest.raises(InferenceFailed):
            batcher.submit(drawings(1, 2, 3, 4)).result(5)
        assert batcher.submit(drawings(5)).result(5).scores.shape == (1, 1)


def test_callers_that_left_make_room_in_a_full_queue():
    """Only rows that somebody waits for count against a newcomer."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_queued_rows=4))) as batcher:
        busy(model, batcher)
        gone = [batcher.submit(drawings(1, 2)), batcher.submit(drawings(3, 4), expires_at=time.monotonic() + 0.01)]
        gone[0].cancel()
        time.sleep(0.02)
        stayer = batcher.submit(drawings(5, 6, 7, 8))
        with pytest.raises(Overloaded):
            batcher.submit(drawings(9))
        model.release.set()
        assert first_pixels(stayer) == [5, 6, 7, 8]
    assert model.batch_sizes == [1, 4]


def test_the_rest_of_a_broken_request_is_not_run():
    """When one call of a split request breaks, the rows of it still queued are dropped."""
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


def test_a_deadline_that_passes_in_the_queue_is_never_run():
    """The caller hears DeadlinePassed, and the model never sees its rows."""
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
    """Takes a hundredth of a second a row."""

    def predict(self, bitmaps):
        scores = super().predict(bitmaps)
        time.sleep(0.01 * len(bitmaps))
        return scores


def in_time(seconds: float):
    return {"expires_at": time.monotonic() + seconds}


def test_what_would_be_answered_too_late_is_refused_on_arrival():
    """By the pace at which the queue was seen to drain; what comes soon enough is taken."""
    model = SlowModel()
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2))) as batcher:
        for each in [batcher.submit(drawings(1, 2), **in_time(60)) for _ in range(10)]:
            each.result(5)
        model.started.clear()
        model.release.clear()
        first = busy(model, batcher)
        waiting = [batcher.submit(drawings(3, 4)) for _ in range(20)]  # 0.4 s
        with pytest.raises(Overloaded, match="too late: 40 rows go first") as caught:
            batcher.submit(drawings(5), **in_time(0.3))
        assert 0.3 < caught.value.retry_after_s < 5
        late = batcher.submit(drawings(5), **in_time(60))
        waiting[0].cancel()
        model.release.set()
        assert first_pixels(first) == [0]
        assert first_pixels(late) == [5]


def test_only_the_rows_that_go_first_count_against_a_deadline():
    """A small request passes a bulk job, which another bulk job waits for; an idle service refuses nothing."""
    model = SlowModel()
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2))) as batcher:
        batcher.submit(drawings(*range(10))).result(5)
        model.started.clear()
        model.release.clear()
        first = busy(model, batcher)
        bulk = batcher.submit(drawings(*range(60)))
        with pytest.raises(Overloaded, match="too late: 60 rows go first"):
            batcher.submit(drawings(1, 2, 3), **in_time(0.5))
        small = batcher.submit(drawings(7), **in_time(0.5))
        model.release.set()
        assert first_pixels(small) == [7]
        assert [first_pixels(first), first_pixels(bulk)] == [[0], list(range(60))]
        with pytest.raises(DeadlinePassed):
            batcher.submit(drawings(*range(10)), **in_time(0.05)).result(5)


def test_a_full_queue_refuses_at_once_and_says_when_to_return():
    """Overload is reported on arrival, not after a wait, with the time the queue needs to drain."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2, max_queued_rows=2))) as batcher:
        busy(model, batcher)
        batcher.submit(drawings(1, 2))
        with pytest.raises(Overloaded, match="2 of 2 rows") as caught:
            batcher.submit(drawings(3))
        assert caught.value.retry_after_s > 0
        model.release.set()


def test_room_is_given_back_by_rows_that_ran_and_by_callers_that_left():
    """The queue's count of rows returns to zero whatever became of them."""
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


def test_leaving_finishes_queued_work_and_refuses_more():
    """Draining answers what was accepted; later callers are told to go elsewhere."""
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


def test_timings_tell_the_queue_from_the_model_call():
    """A request that waited says so; its own call is counted apart."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=1))) as batcher:
        first = busy(model, batcher)
        second = batcher.submit(drawings(1))
        time.sleep(0.05)
        model.release.set()
        assert first.result(5).inference_s >= 0.05
        assert second.result(5).queue_s >= 0.05
        assert second.result(5).inference_s < 0.05


def test_a_small_request_does_not_wait_for_a_bulk_job():
    """While both wait, half of each call is for small requests, and the bulk job has the rest."""
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
    assert model.batch_sizes == [1, 4, 4, 4, 4, 3]  # 2+2, 1+3, then the bulk jobs alone
    assert ends == ["small", "bulk"]


def test_a_crowd_of_small_requests_does_not_starve_a_bulk_job():
    """The bulk job ends before the small ones that stood there when it came."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=4))) as batcher:
        busy(model, batcher)
        small = [batcher.submit(drawings(n)) for n in range(20)]
        bulk = batcher.submit(drawings(*range(100, 106)))
        waiting_at_the_end: list[int] = []
        bulk.add_done_callback(lambda _: waiting_at_the_end.append(sum(not each.done() for each in small)))
        model.release.set()
        assert [first_pixels(each) for each in small] == [[n] for n in range(20)]
    assert waiting_at_the_end[0] >= 12  # 3 calls with two rows of each kind
