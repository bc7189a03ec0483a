"""Test which model calls the thread pool runs concurrently, and when one of its threads polls for requests."""

import threading
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from fakes import FakeModel, busy, drawings, first_pixels, running
from gates import Clock, ObservedCondition
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.errors import DeadlinePassed, InferenceFailed, ShuttingDown


class ConcurrentModel:
    """A model whose calls end only when `slots` calls run concurrently."""

    def __init__(self, slots: int) -> None:
        self.together = threading.Barrier(slots, timeout=30)

    def predict(self, bitmaps):
        self.together.wait()
        return bitmaps[:, 0, :1].astype(np.float32)


def test_idle_slots_share_one_request():
    """If several execution slots are idle, they run the rows of one request concurrently.

    The scores are in the order of the rows.
    """
    with running(Batcher(ConcurrentModel(3).predict, BatchLimits(slots=3))) as batcher:
        assert first_pixels(batcher.submit(drawings(*range(30)))) == list(range(30))


def test_a_request_of_few_rows_is_not_split():
    """Idle slots do not share a request that has at most `min_split_rows` rows."""
    model = FakeModel()
    with running(Batcher(model.predict, BatchLimits(slots=3, min_split_rows=30))) as batcher:
        assert first_pixels(batcher.submit(drawings(*range(30)))) == list(range(30))
    assert model.batch_sizes == [30]


class OnePerPoll:
    """A source of requests for a thread pool: each poll calls the next function of `submissions`.

    After the last function, a blocking poll waits until the source is closed.
    """

    def __init__(self, *submissions) -> None:
        self.submissions = list(submissions)
        self.futures: list = []
        self.has_submitted_all = threading.Event()
        self.is_idle = threading.Event()  # set when a thread polls after the last submission
        self.closed = threading.Event()

    def poll(self, *, blocks: bool) -> bool:
        if self.submissions:
            self.futures.append(self.submissions.pop(0)())
            if not self.submissions:
                self.has_submitted_all.set()
        elif blocks:
            self.is_idle.set()
            self.closed.wait()
        return not self.closed.is_set()

    def close(self) -> None:
        self.closed.set()


def test_all_models_together_run_no_more_calls_than_slots():
    """All models together run at most as many model calls concurrently as the pool has execution slots.

    While one model uses the only slot, the pool runs no rows of the second model, and a thread polls again.
    """
    held, other = FakeModel(held=True), FakeModel()
    first, second = (Batcher(model.predict, BatchLimits()) for model in (held, other))
    source = OnePerPoll(lambda: first.submit(drawings(0)), lambda: second.submit(drawings(5)))
    with LeaderFollowerPool([first, second], slots=1, source=source):
        assert source.is_idle.wait(5)
        assert (held.batch_sizes, other.batch_sizes) == ([1], [])
        held.release.set()
        assert [first_pixels(future) for future in source.futures] == [[0], [5]]


def test_a_batcher_is_added_and_removed_while_the_pool_runs():
    """A batcher can be added to a running pool, whose slots it then shares, and can be removed again.

    The batcher can be released only if none of its rows is queued or running.
    """
    model, other = FakeModel(), FakeModel(held=True)
    first, second = Batcher(model.predict, BatchLimits()), Batcher(other.predict, BatchLimits())
    with LeaderFollowerPool([first], slots=1) as pool:
        pool.add(second, polls_while_saturated=False)
        running_request = busy(other, second)
        queued = second.submit(drawings(5))
        assert not second.release()
        other.release.set()
        assert (first_pixels(running_request), first_pixels(queued)) == ([0], [5])
        assert second.release()
        pool.remove(second)
        with pytest.raises(ShuttingDown):
            second.submit(drawings(6))
        assert first_pixels(first.submit(drawings(7))) == [7]


def bulk_then_single(batcher: Batcher, ends: list[str]) -> OnePerPoll:
    """Return a source of two requests: `bulk` with 100 drawings, and then `single` with one drawing.

    Each request adds its name to `ends` when it ends.
    """

    def submit(name: str, *first_pixels: int):
        future = batcher.submit(drawings(*first_pixels))
        future.add_done_callback(lambda _: ends.append(name))
        return future

    return OnePerPoll(lambda: submit("bulk", *range(100)), lambda: submit("single", 200))


@pytest.mark.parametrize(("call_s", "expected"), [(0.01, ["single", "bulk"]), (0, ["bulk", "single"])])
def test_waiting_rows_keep_the_threads_from_polling_for_a_millisecond_only(call_s, expected):
    """After a model call of over a millisecond, a thread polls before the next batch, even if rows are queued.

    A single drawing that arrives during such a call runs before the rest of a bulk request that was queued earlier.
    """
    model, clock, ends = FakeModel(held=True), Clock(), []
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4))
    source = bulk_then_single(batcher, ends)
    with LeaderFollowerPool([batcher], slots=1, source=source, polls_while_saturated=False, clock=clock):
        assert model.started.wait(5)
        clock.advance(call_s)
        model.release.set()
        assert source.has_submitted_all.wait(5)
        for future in source.futures:
            future.result(5)
    assert ends == expected


def test_a_thread_polls_while_all_slots_run_if_allowed():
    """With `polls_while_saturated`, a thread polls and accepts a request while the only slot runs a model call."""
    model, ends = FakeModel(held=True), []
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4))
    source = bulk_then_single(batcher, ends)
    with LeaderFollowerPool([batcher], slots=1, source=source, polls_while_saturated=True):
        assert source.has_submitted_all.wait(5)
        assert model.batch_sizes == [4]  # the first model call is still running
        model.release.set()


def test_no_thread_polls_while_all_slots_run_unless_allowed():
    """Without `polls_while_saturated`, a thread that wakes up during the model call sleeps again and does not poll."""
    model, ends = FakeModel(held=True), []
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4))
    source = bulk_then_single(batcher, ends)
    pool = LeaderFollowerPool([batcher], slots=1, source=source, polls_while_saturated=False)
    pool._changed = condition = ObservedCondition()
    with pool:
        assert model.started.wait(5)
        for _ in range(2):  # the first wait can be that of the start; a second wait shows that the thread was woken
            batcher.submit(drawings(1))
            assert condition.waits.acquire(timeout=30)
        assert not source.has_submitted_all.is_set()
        model.release.set()
        assert source.has_submitted_all.wait(5)


class LongCallsHeld:
    """A model whose calls of more than two rows wait for `release`; with `small_error`, other calls fail."""

    def __init__(self, small_error: Exception | None) -> None:
        self.small_error = small_error
        self.started = threading.Event()
        self.release = threading.Event()

    def predict(self, bitmaps):
        if len(bitmaps) > 2:
            self.started.set()
            assert self.release.wait(10)
        elif self.small_error:
            raise self.small_error
        return bitmaps[:, 0, :1].astype(np.float32)


@pytest.fixture
def saturated():
    """Return a function that starts a pool whose only slot runs a long call, and then gets the requests of `source`.

    If `is_expected`, a small request is answered before the call begins.
    """
    with ExitStack() as stack:

        def start(
            *rows: int,
            max_batch_rows: int = 4,
            bulk_rows: int = 100,
            quick_rows: int = 2,
            small_error=None,
            is_expected=True,
        ):
            model = LongCallsHeld(small_error)
            limits = BatchLimits(max_batch_rows=max_batch_rows, quick_rows=quick_rows)
            batcher = Batcher(model.predict, limits, clock=(clock := Clock()))
            submissions = [
                *([partial(batcher.submit, drawings(9))] if is_expected else []),
                partial(batcher.submit, drawings(*range(bulk_rows))),
                *(partial(batcher.submit, drawings(*range(each))) for each in rows),
            ]
            source = OnePerPoll(*submissions)
            pool = LeaderFollowerPool([batcher], slots=1, source=source, polls_while_saturated=False)
            pool._changed = condition = ObservedCondition()
            stack.enter_context(pool)
            stack.callback(model.release.set)
            assert model.started.wait(5)
            return batcher, source, model, condition, clock

        yield start


def test_a_small_request_does_not_wait_for_a_long_call(saturated):
    """While all slots run long calls, the leader runs small requests beyond the slots, one after the other."""
    batcher, source, model, *_ = saturated(1, 1)
    assert source.has_submitted_all.wait(5)
    _, bulk, *singles = source.futures
    assert [first_pixels(single) for single in singles] == [[0], [0]]
    assert not bulk.done()
    assert batcher.statistics.counts().closed["extra"] == 2
    assert not batcher.release()
    model.release.set()
    assert first_pixels(bulk) == list(range(100))


def test_a_small_request_of_another_thread_does_not_wait_for_a_long_call():
    """Without a source of requests, as with the transport aio, the idle thread of the pool runs the small request."""
    model = LongCallsHeld(None)
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4, quick_rows=1))
    with LeaderFollowerPool([batcher], slots=1):
        bulk = batcher.submit(drawings(*range(100)))
        assert model.started.wait(5)
        assert first_pixels(batcher.submit(drawings(7))) == [7]  # the request itself shows that others may follow
        assert not bulk.done()
        model.release.set()
        assert first_pixels(bulk) == list(range(100))


@pytest.mark.parametrize(
    "options",
    [
        {"bulk_rows": 3},  # the running call has fewer rows than two quick calls
        {"quick_rows": 0},  # no request is small
        {"is_expected": False},  # no small request came before: polling would cost the bulk job time
    ],
    ids=str,
)
def test_no_request_runs_beyond_the_slots_next_to_other_calls(saturated, options):
    """Next to short calls, without quick calls, and without earlier small requests, no thread polls during the call."""
    batcher, source, model, condition, _ = saturated(1, **options)
    for _ in range(2):  # the first wait can be that of the start; a second wait shows that the thread was woken
        batcher.wake()
        assert condition.waits.acquire(timeout=30)
    assert not source.has_submitted_all.is_set()
    model.release.set()
    assert source.has_submitted_all.wait(5)
    assert first_pixels(source.futures[-1]) == [0]
    assert batcher.statistics.counts().closed["extra"] == 0


def test_a_request_with_more_rows_than_a_quick_call_waits_for_a_slot(saturated):
    """A request of more rows than `quick_rows` is received, but runs in the next slot, and so do those behind it."""
    batcher, source, model, *_ = saturated(3, 1)
    assert source.is_idle.wait(5)
    assert not any(future.done() for future in source.futures[1:])
    model.release.set()
    assert [len(first_pixels(future)) for future in source.futures] == [1, 100, 3, 1]
    assert batcher.statistics.counts().closed["extra"] == 0


def test_a_failed_call_beyond_the_slots_frees_no_slot(saturated):
    """A call beyond the slots that fails does not change the number of free slots: the long call runs on alone."""
    batcher, source, model, *_ = saturated(1, 2, small_error=ValueError("small"))
    assert source.is_idle.wait(5)
    for failed in source.futures[2:]:
        with pytest.raises(InferenceFailed):
            failed.result(5)
    assert batcher._running_calls == 1
    model.release.set()
    source.futures[1].result(5)


def test_small_requests_are_expected_for_some_seconds(saturated):
    """After some seconds without a small request, and for many small requests at once, no other one is expected."""
    batcher, source, *_, clock = saturated(1)
    assert source.has_submitted_all.wait(5)
    assert batcher.expects_quick_requests
    clock.advance(11)
    assert not batcher.expects_quick_requests
    crowded = Batcher(FakeModel().predict, BatchLimits(max_batch_rows=4, quick_rows=2), clock=clock)
    crowded.submit(drawings(*range(4)))
    crowded.submit(drawings(1))
    assert not crowded.expects_quick_requests


@pytest.mark.parametrize("waiting", [(), (5,)])
def test_expired_requests_fail_without_the_lock_of_the_pool(waiting):
    """A callback of an expired request can wait for another thread that uses the pool: the lock is free.

    This is so with and without other rows, which the thread of the pool runs afterwards.
    """
    model, clock, is_blocked, later = FakeModel(held=True), Clock(), [], []
    has_called_back = threading.Event()
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4), clock=clock)

    def submit_on_another_thread(_):
        thread = threading.Thread(target=lambda: later.append(batcher.submit(drawings(7))))
        thread.start()
        thread.join(5)
        is_blocked.append(thread.is_alive())
        has_called_back.set()

    with running(batcher):
        first = busy(model, batcher)
        late = batcher.submit(drawings(1, 2), expires_at=clock() + 1)
        late.add_done_callback(submit_on_another_thread)
        queued = [batcher.submit(drawings(*waiting))] if waiting else []
        clock.advance(1)
        model.release.set()
        with pytest.raises(DeadlinePassed):
            late.result(10)
        assert has_called_back.wait(10)  # `result` returns before the callbacks run
        assert first_pixels(first) == [0]
        assert [first_pixels(future) for future in queued] == ([[5]] if waiting else [])
    assert is_blocked == [False]
    assert first_pixels(later[0]) == [7]


class ExitCondition(threading.Condition):
    """A condition that sets `exit_waits` when the exit of a pool waits; only the exit waits with a time limit."""

    def __init__(self) -> None:
        super().__init__()
        self.exit_waits = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.exit_waits.set()
        return super().wait(timeout)


def test_the_exit_waits_until_expired_requests_have_failed():
    """The exit of the pool waits for the callbacks of expired requests: a later response would abort the process."""
    clock, is_failing, closed = Clock(), threading.Event(), []
    batcher, source = Batcher(FakeModel().predict, BatchLimits(), clock=clock), OnePerPoll()
    pool = LeaderFollowerPool([batcher], slots=1, source=source)
    pool._changed = condition = ExitCondition()

    def fail_during_the_exit(_):
        is_failing.set()
        assert condition.exit_waits.wait(5)
        closed.append(source.closed.is_set())

    late = batcher.submit(drawings(1), expires_at=clock() + 1)
    late.add_done_callback(fail_during_the_exit)
    clock.advance(1)
    with pool:
        assert is_failing.wait(5)
    assert closed == [False]
