"""Metrics are what happened, exactly, and names with their units."""

import asyncio
import time

import grpc
import pytest
from fakes import FakeModel, busy, drawings, first_pixels, running
from in_process import serving
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.statistics import BOUNDS_S, Histogram
from sketchbatch_service.errors import InferenceFailed

CLASSIFY = "sketchbatch.v1.ClassifierService/Classify"


def test_a_histogram_counts_a_value_at_its_bound_and_one_above_all_bounds():
    """Prometheus' buckets hold what is at most their bound; the first is 50 us."""
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, 100.0):
        histogram.add(seconds)
    assert (BOUNDS_S[0], BOUNDS_S[-1], histogram.counts[:2], histogram.counts[-1]) == (50e-6, 10.0, [2, 1], 1)
    assert histogram.total().count == 4


@pytest.mark.parametrize(
    ("rows", "idle_slots", "expected"),
    [(4, 1, "full"), (9, 2, "full"), (6, 2, "shared"), (3, 1, "empty")],
)
def test_a_batch_says_why_no_more_rows_went_in(rows, idle_slots, expected):
    """It was full; its other rows were for idle slots; or nothing more was waiting."""
    batcher = Batcher(FakeModel().predict, BatchLimits(slots=2, max_batch_rows=4))
    batcher.submit(drawings(*range(rows)))
    batcher.take(idle_slots).run()
    assert batcher.statistics.counts().closed == {"full": 0, "shared": 0, "empty": 0} | {expected: 1}


def test_each_request_is_counted_once_however_it_ends():
    """Answered, out of time, withdrawn in the queue, broken, and broken in several of its calls."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2))) as batcher:
        first = busy(model, batcher)
        late = batcher.submit(drawings(1), expires_at=time.monotonic())
        left = batcher.submit(drawings(2))
        left.cancel()
        split = batcher.submit(drawings(1, 2, 3, 4, 5, 6))
        model.release.set()
        assert first_pixels(first) == [0]
        assert first_pixels(split) == [1, 2, 3, 4, 5, 6]
        model.error = RuntimeError("broken")
        with pytest.raises(InferenceFailed):
            batcher.submit(drawings(*range(6))).result(5)
        model.error = None
        assert first_pixels(batcher.submit(drawings(9))) == [9]
    assert late.done()
    counts = batcher.statistics.counts()
    assert (counts.success.count, counts.fail.count, counts.queue.total().count) == (3, 3, 3)
    assert (counts.rows, counts.broken_calls) == (8, 1)
    assert {rows: calls.count for rows, calls in counts.calls.items()} == {1: 2, 2: 3}
    assert sum(counts.closed.values()) == counts.call_times.total().count + 1 == 6


async def test_the_metrics_add_up_over_every_way_a_call_can_end():
    """Requests by method and status, rejections by reason, rows, batches, and times of each stage."""
    model = FakeModel()
    async with serving(BatchLimits(max_batch_rows=4, max_queued_rows=10), bear=model) as service:
        await service.classify(1)
        await service.classify(*range(10), model_name="bear")
        messages = [pb.ClassifyStreamRequest(bitmaps=drawings(1, 2).tobytes()), pb.ClassifyStreamRequest()]
        assert len([answer async for answer in service.stub.ClassifyStream(messages)]) == 2
        await service.refusal(1, model_name="zebra")
        await service.refusal()
        with pytest.raises(grpc.aio.AioRpcError):
            await service.channel.unary_unary("/no.Such/Method")(b"")
        model.error = RuntimeError("broken")
        await service.refusal(1, request_id="abc")
        model.error = None
        values = service.values()
        assert [event["request_id"] for event in service.log if event["event"] == "request failed"] == ["abc"]
    calls = {key: value for key, value in values.items() if key.startswith("sketchbatch_requests_total")}
    assert calls == {
        f"sketchbatch_requests_total OK {CLASSIFY}": 2,
        f"sketchbatch_requests_total NOT_FOUND {CLASSIFY}": 1,
        f"sketchbatch_requests_total INVALID_ARGUMENT {CLASSIFY}": 1,
        f"sketchbatch_requests_total INTERNAL {CLASSIFY}": 1,
        f"sketchbatch_requests_total OK {CLASSIFY}Stream": 1,
        "sketchbatch_requests_total UNIMPLEMENTED none": 1,
    }
    assert values["sketchbatch_rows_total bear"] == 13
    assert values["sketchbatch_unanswered_requests_total bear"] == values["sketchbatch_broken_batches_total bear"] == 1
    for stage in ("queue", "encode"):
        assert values[f"sketchbatch_{stage}_seconds_count bear"] == 3
    good = sum(values[f"sketchbatch_batches_total {why} bear"] for why in ("full", "shared", "empty")) - 1
    for name in ("assemble_seconds", "infer_seconds", "batch_rows"):
        assert values[f"sketchbatch_{name}_count bear"] == values[f"sketchbatch_{name}_bucket +Inf bear"] == good
    assert values["sketchbatch_batch_rows_sum bear"] == 13
    assert values["sketchbatch_model_info d bear CPU"] == values["sketchbatch_serving"] == 1
    assert values["sketchbatch_queue_limit_rows bear"] == 10


async def test_what_waits_and_what_is_refused_shows_at_once():
    """The queue's rows while a call runs; a call that was left, and one that found the queue full."""
    model = FakeModel(held=True)
    async with serving(BatchLimits(max_batch_rows=4, max_queued_rows=4), bear=model) as service:
        before = service.values()["sketchbatch_rejected_total Overloaded"]
        first = asyncio.ensure_future(service.classify(1))
        await asyncio.to_thread(model.started.wait, 5)
        leaver = asyncio.ensure_future(service.classify(1, 2, 3))
        while service.values()["sketchbatch_queued_rows bear"] != 3:
            await asyncio.sleep(0.01)
        assert (await service.refusal(1, 2)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.values()["sketchbatch_rejected_total Overloaded"] == before + 1
        leaver.cancel()
        while service.values().get(f"sketchbatch_requests_total CANCELLED {CLASSIFY}") != 1:
            await asyncio.sleep(0.01)
        model.release.set()
        await first
        assert service.values()[f"sketchbatch_requests_total OK {CLASSIFY}"] == 1


async def test_padding_is_counted_from_the_sizes_that_cuda_computes():
    """3 rows in a bucket of 4 waste one; 5 in one of 8 three."""
    async with serving(buckets=(1, 2, 4, 8), bear=FakeModel()) as service:
        for rows in (3, 4, 5):
            await service.classify(*range(rows))
        assert service.values()["sketchbatch_padding_rows_total bear"] == 4
