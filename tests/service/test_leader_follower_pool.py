"""The crew of threads: what runs beside what, and who looks for more."""

import threading
import time

import numpy as np
import pytest
from fakes import FakeModel, busy, drawings, first_pixels, running
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.errors import ShuttingDown


class LanesModel:
    """Holds each call until as many run at once as it was told."""

    def __init__(self, slots: int) -> None:
        self.together = threading.Barrier(slots, timeout=5)

    def predict(self, bitmaps):
        self.together.wait()
        return bitmaps[:, 0, :1].astype(np.float32)


def test_an_idle_lane_takes_its_share_of_a_lone_request():
    """One request runs on all slots at once, and its rows come back in order."""
    with running(Batcher(LanesModel(3).predict, BatchLimits(slots=3))) as batcher:
        answer = batcher.submit(drawings(*range(30)))
        assert first_pixels(answer) == list(range(30))


def test_a_request_too_small_to_share_is_not_split():
    """Where a call is over in no time, sharing it between slots costs more than it saves."""
    model = FakeModel()
    with running(Batcher(model.predict, BatchLimits(slots=3, share_rows=30))) as batcher:
        assert first_pixels(batcher.submit(drawings(*range(30)))) == list(range(30))
    assert model.batch_sizes == [30]


def test_no_more_calls_run_at_a_time_than_there_are_lanes():
    """A second model shares the slots of the crew, not adds its own."""
    held, other = FakeModel(held=True), FakeModel()
    batchers = [Batcher(model.predict, BatchLimits()) for model in (held, other)]
    with LeaderFollowerPool(batchers, slots=1):
        first = busy(held, batchers[0])
        second = batchers[1].submit(drawings(5))
        time.sleep(0.05)
        assert other.batch_sizes == []
        held.release.set()
        assert first_pixels(first) == [0]
        assert first_pixels(second) == [5]


def test_a_batcher_joins_and_leaves_while_the_crew_runs():
    """It shares the slots that there are; it is released only once nothing of its is queued or running."""
    model, other = FakeModel(), FakeModel(held=True)
    first, second = Batcher(model.predict, BatchLimits()), Batcher(other.predict, BatchLimits())
    with LeaderFollowerPool([first], slots=1) as crew:
        crew.add(second, polls_while_saturated=False)
        under_way = busy(other, second)
        queued = second.submit(drawings(5))
        assert not second.release()
        other.release.set()
        assert (first_pixels(under_way), first_pixels(queued)) == ([0], [5])
        while not second.release():
            time.sleep(0.001)
        crew.remove(second)
        with pytest.raises(ShuttingDown):
            second.submit(drawings(6))
        assert first_pixels(first.submit(drawings(7))) == [7]


class BulkThenOne:
    """A source of a bulk job and then, while its first call runs, of a single drawing."""

    def __init__(self, batcher: Batcher, model: FakeModel) -> None:
        self.batcher, self.model = batcher, model
        self.submitted: list[str] = []
        self.ends: list[str] = []
        self.all_ended = threading.Event()
        self.closed = threading.Event()

    def poll(self, *, blocks: bool) -> bool:
        if not self.model.started.is_set():
            self.submit("bulk", *range(100))
        elif self.submitted == ["bulk"]:
            self.submit("one", 200)
        elif blocks:
            self.closed.wait()
        return not self.closed.is_set()

    def submit(self, name: str, *first_pixels: int) -> None:
        self.submitted.append(name)
        self.batcher.submit(drawings(*first_pixels)).add_done_callback(lambda _: self.end(name))

    def end(self, name: str) -> None:
        self.ends.append(name)
        if len(self.ends) == 2:
            self.all_ended.set()

    def close(self) -> None:
        self.closed.set()


def test_rows_that_are_queued_do_not_keep_a_crew_from_looking_for_more():
    """What comes while all slots run is taken in before the next call, and goes before the bulk job's other rows."""
    model = FakeModel(held=True)
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4))
    source = BulkThenOne(batcher, model)
    with LeaderFollowerPool([batcher], slots=1, source=source, polls_while_saturated=False):
        assert model.started.wait(5)
        time.sleep(0.01)  # longer than rows may keep a thread from looking
        model.release.set()
        assert source.all_ended.wait(5)
    assert source.ends == ["one", "bulk"]


@pytest.mark.parametrize("polls_while_saturated", [True, False])
def test_a_crew_looks_while_all_lanes_run_only_where_it_may(polls_while_saturated):
    """With a CPU to spare, what comes is taken in, or refused, beside the call; else it waits for the call's end."""
    model = FakeModel(held=True)
    batcher = Batcher(model.predict, BatchLimits(max_batch_rows=4))
    source = BulkThenOne(batcher, model)
    with LeaderFollowerPool([batcher], slots=1, source=source, polls_while_saturated=polls_while_saturated):
        assert model.started.wait(5)
        ends_at = time.monotonic() + (5 if polls_while_saturated else 0.05)
        while time.monotonic() < ends_at and "one" not in source.submitted:
            time.sleep(0.001)
        assert ("one" in source.submitted) is polls_while_saturated
        model.release.set()
        assert source.all_ended.wait(5)
