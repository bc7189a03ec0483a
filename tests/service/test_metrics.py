"""Test that the metrics count every request, row and batch exactly once."""

import asyncio
import time

import grpc
import pytest
from fakes import FakeModel, busy, drawings, first_pixels, running
from in_process import serving, until
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.statistics import BOUNDS_S, Histogram
from sketchbatch_service.errors import InferenceFailed

pytestmark = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]

CLASSIFY = "sketchbatch.v1.ClassifierService/Classify"


def test_a_histogram_counts_a_value_at_its_bound_and_one_above_all_bounds():
    """A value at the upper bound of a histogram bucket counts in this bucket, as in Prometheus.

    A value above all bounds counts in the last bucket. The first bound is 50 microseconds, and the last is 10 seconds.
    """
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, 100.0):
        histogram.add(seconds)
    assert (BOUNDS_S[0], BOUNDS_S[-1], histogram.counts[:2], histogram.counts[-1]) == (50e-6, 10.0, [2, 1], 1)
    assert histogram.total().count == 4


@pytest.mark.parametrize(
    ("rows", "idle_slots", "expected"),
    [(4, 1, "full"), (9, 2, "full"), (6, 2, "shared"), (3, 1, "empty")],
)
def test_a_batch_counts_the_reason_for_its_size(rows, idle_slots, expected):
    """For each batch, the statistics count the reason why the batcher added no more rows to it.

    The batch was full, the other queued rows were left for other idle execution slots ("shared"), or the queue was
    empty.
    """
    batcher = Batcher(FakeModel().predict, BatchLimits(slots=2, max_batch_rows=4))
    batcher.submit(drawings(*range(rows)))
    batcher.take(idle_slots).run()
    assert batcher.statistics.counts().closed == {"full": 0, "shared": 0, "empty": 0, "extra": 0} | {expected: 1}


def test_each_request_is_counted_once():
    """Each request is counted once, whether it succeeds, expires, is cancelled in the queue or fails."""
    model = FakeModel(held=True)
    with running(Batcher(model.predict, BatchLimits(max_batch_rows=2))) as batcher:
        first = busy(model, batcher)
        late = batcher.submit(drawings(1), expires_at=time.monotonic())
        cancelled = batcher.submit(drawings(2))
        cancelled.cancel()
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
    assert counts.calls == {1: 2, 2: 3}
    assert sum(counts.calls_s.values()) == pytest.approx(counts.call_times.seconds)
    assert sum(counts.closed.values()) == counts.call_times.total().count + 1 == 6


def calls_ended(values: dict[str, float]) -> dict[str, float]:
    """Return the numbers of ended calls by status and method."""
    return {key: value for key, value in values.items() if key.startswith("sketchbatch_requests_total")}


async def test_the_metrics_of_different_calls_are_consistent():
    """After a known sequence of calls, every metric has its exact value.

    The metrics count requests by method and status, rows, batches, and the times of the stages of a request.
    """
    model = FakeModel()
    async with serving(BatchLimits(max_batch_rows=4, max_queued_rows=10), bear=model) as service:
        await service.classify(1)
        await service.classify(*range(10), model_name="bear")
        messages = [pb.ClassifyStreamRequest(bitmaps=drawings(1, 2).tobytes()), pb.ClassifyStreamRequest()]
        assert len([answer async for answer in service.stub.ClassifyStream(messages)]) == 2
        await service.rejection(1, model_name="zebra")
        await service.rejection()
        with pytest.raises(grpc.aio.AioRpcError):
            await service.channel.unary_unary("/no.Such/Method")(b"")
        model.error = RuntimeError("broken")
        await service.rejection(1, request_id="abc")
        model.error = None
        await until(lambda: sum(calls_ended(service.values()).values()) == 7)  # counted once the response was sent
        values = service.values()
        assert [event["request_id"] for event in service.log if event["event"] == "request failed"] == ["abc"]
    assert calls_ended(values) == {
        f"sketchbatch_requests_total OK {CLASSIFY}": 2,
        f"sketchbatch_requests_total NOT_FOUND {CLASSIFY}": 1,
        f"sketchbatch_requests_total INVALID_ARGUMENT {CLASSIFY}": 1,
        f"sketchbatch_requests_total INTERNAL {CLASSIFY}": 1,
        f"sketchbatch_requests_total OK {CLASSIFY}Stream": 1,
        "sketchbatch_requests_total UNIMPLEMENTED none": 1,
    }
    for key, count in calls_ended(values).items():
        assert values[key.replace("requests_total", "request_seconds_count")] == count
    assert values[f"sketchbatch_request_seconds_bucket OK +Inf {CLASSIFY}"] == 2
    assert values[f"sketchbatch_request_seconds_sum OK {CLASSIFY}"] > 0
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


async def test_queued_rows_rejected_and_cancelled_calls_are_counted_at_once():
    """The counts of queued rows, rejected calls and cancelled calls are up to date even while a model call runs."""
    model = FakeModel(held=True)
    async with serving(BatchLimits(max_batch_rows=4, max_queued_rows=4), bear=model) as service:
        before = service.values()["sketchbatch_rejected_total Overloaded"]
        first = asyncio.ensure_future(service.classify(1))
        await until(model.started.is_set)
        cancelled = asyncio.ensure_future(service.classify(1, 2, 3))
        await until(lambda: service.values()["sketchbatch_queued_rows bear"] == 3)
        assert (await service.rejection(1, 2)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.values()["sketchbatch_rejected_total Overloaded"] == before + 1
        cancelled.cancel()
        await until(lambda: service.values().get(f"sketchbatch_requests_total CANCELLED {CLASSIFY}") == 1)
        model.release.set()
        await first
        await until(lambda: service.values().get(f"sketchbatch_requests_total OK {CLASSIFY}") == 1)


async def test_padding_is_counted_from_the_buckets():
    """The rows that pad a batch to the next bucket are counted: 1 row for a batch of 3, and 3 rows for a batch of 5."""
    async with serving(buckets=(1, 2, 4, 8), bear=FakeModel()) as service:
        for rows in (3, 4, 5):
            await service.classify(*range(rows))
        assert service.values()["sketchbatch_padding_rows_total bear"] == 4
