"""Test the Open Inference Protocol over real gRPC: statuses, streams, versions, statistics, and draining."""

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
import in_process
import numpy as np
import pytest
from fakes import FakeModel, drawings
from google.rpc import error_details_pb2, status_pb2
from in_process import rejection, until
from sketchbatch.openinference.v2 import open_inference_pb2 as pb
from sketchbatch_service.batching.batcher import BatchLimits

pytestmark = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]

MAX_ROWS = 100


class Stub:
    """Call the RPCs of the Open Inference Protocol: `stub.NAME(request)` calls the RPC NAME."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def __getattr__(self, name: str):
        response = "ModelStreamInferResponse" if name == "ModelStreamInfer" else f"{name}Response"
        kind = self.channel.stream_stream if name == "ModelStreamInfer" else self.channel.unary_unary
        return kind(
            f"/inference.GRPCInferenceService/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(pb, response).FromString,
        )


@asynccontextmanager
async def serving(*fakes: FakeModel, max_queued_rows: int = 4):
    """Serve versions 1, 2, ... of the model `fake`; yield a stub and the service."""
    limits = BatchLimits(max_batch_rows=4, max_queued_rows=max_queued_rows)
    async with in_process.serving(limits, max_request_rows=MAX_ROWS, fake=fakes) as service:
        yield Stub(service.channel), service


def request(*first_pixels: int, **fields) -> pb.ModelInferRequest:
    """Return a request that contains its bitmaps as raw bytes, with one row per value of `first_pixels`."""
    bitmaps = drawings(*first_pixels)
    made = pb.ModelInferRequest(raw_input_contents=[bitmaps.tobytes()], **fields)
    made.inputs.add(name="bitmaps", datatype="UINT8", shape=bitmaps.shape)
    return made


def numbers(*first_pixels: int) -> pb.ModelInferRequest:
    """Return a request that contains its bitmaps as typed numbers, with one row per value of `first_pixels`."""
    made = pb.ModelInferRequest()
    tensor = made.inputs.add(name="bitmaps", datatype="UINT8", shape=(len(first_pixels), 784))
    tensor.contents.uint_contents.extend(drawings(*first_pixels).ravel().tolist())
    return made


def scores(response: pb.ModelInferResponse) -> list[float]:
    return np.frombuffer(response.raw_output_contents[0], "<f4").tolist()


async def occupied(stub: Stub, model: FakeModel) -> asyncio.Future:
    """Send one row to the held model and wait until its model call starts; later requests then stay in the queue."""
    call = asyncio.ensure_future(stub.ModelInfer(request(0)))
    await until(model.started.is_set)
    return call


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return the google.rpc.Status in the trailers of an error."""
    return status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


async def test_a_bad_tensor_is_invalid_argument_and_names_the_field():
    """A bad tensor receives INVALID_ARGUMENT; the details are a BadRequest with the field, as in ClassifierService."""
    async with serving(FakeModel()) as (stub, _):
        bad = request(1)
        bad.inputs[0].datatype = "FP64"
        error = await rejection(stub.ModelInfer(bad))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest()
    assert details(error).details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].field == "inputs[0].datatype"


async def test_an_unknown_model_or_version_is_not_found():
    """For an unknown model or version, every RPC except ModelReady returns NOT_FOUND, with a list of the served models.

    ModelReady returns false.
    """
    async with serving(FakeModel()) as (stub, _):
        errors = [
            await rejection(stub.ModelInfer(request(1, model_name="zebra"))),
            await rejection(stub.ModelInfer(request(1, model_version="2"))),
            await rejection(stub.ModelMetadata(pb.ModelMetadataRequest(name="zebra"))),
            await rejection(stub.ModelConfig(pb.ModelConfigRequest(name="fake", version="2"))),
            await rejection(stub.ModelStatistics(pb.ModelStatisticsRequest(name="zebra"))),
        ]
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="zebra"))).ready
    for error in errors:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "there are: fake (version 1)" in error.details()


async def test_a_full_queue_is_resource_exhausted_with_pushback():
    """A full queue returns RESOURCE_EXHAUSTED, and the pushback trailer contains a positive retry delay."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, service):
        first = await occupied(stub, model)
        queued = service.batcher.submit(drawings(1, 2, 3, 4))
        error = await rejection(stub.ModelInfer(request(5)))
        model.release.set()
        await first
        queued.result(5)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


@pytest.mark.parametrize("limit", ["deadline", "timeout parameter"])
async def test_a_request_out_of_time_is_deadline_exceeded_and_never_run(limit):
    """A request that waits in the queue for too long receives DEADLINE_EXCEEDED, and its rows never reach the model.

    The limit is the deadline of the call, or the request parameter `timeout`, which is in microseconds as in Triton.
    """
    model = FakeModel(held=True)
    async with serving(model) as (stub, service):
        first = await occupied(stub, model)
        if limit == "deadline":
            late = stub.ModelInfer(request(1), timeout=1)
        else:
            late = stub.ModelInfer(request(1, parameters={"timeout": pb.InferParameter(int64_param=1_000_000)}))
        error = asyncio.ensure_future(rejection(late))
        await until(lambda: service.batcher.queued_rows == 1)
        await asyncio.sleep(1.1)  # until the limit of 1 s, which began before the request was queued, has passed
        model.release.set()
        assert (await error).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await first
        await stub.ModelInfer(request(2, 3))
    assert model.batch_sizes == [1, 2]


async def test_a_failed_model_call_is_internal_without_its_cause():
    """After a failed model call, the client receives the model and the request id, but no cause, path or stack trace.

    This is true for calls and for streams. The service logs the cause.
    """
    model = FakeModel()
    model.error = RuntimeError("secret path /models/x")
    async with serving(model) as (stub, service):
        error = await rejection(stub.ModelInfer(request(1, id="abc")))
        streamed = [answer async for answer in stub.ModelStreamInfer([request(1, id="abc")])]
        log = service.log
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "a call of model 'fake' version 1 failed, request id abc"
    assert streamed[0].error_message == f"INTERNAL: {error.details()}"
    assert "secret" not in repr(error.trailing_metadata())
    assert [(event["event"], event["request_id"]) for event in log] == 2 * [("request failed", "abc")]
    assert "secret" in str(log[0]["exc_info"].__cause__)


async def test_a_request_to_a_closed_batcher_is_unavailable():
    """A request to a closed batcher receives UNAVAILABLE, so that the client may send it to another replica."""
    async with serving(FakeModel()) as (stub, service):
        service.batcher.close()
        error = await rejection(stub.ModelInfer(request(1)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_cancelling_a_call_or_a_stream_cancels_its_queued_rows():
    """After a client cancels a call or a stream, the model never receives its queued rows."""
    model = FakeModel(held=True)
    async with serving(model, max_queued_rows=100) as (stub, service):
        first = await occupied(stub, model)
        calls = [asyncio.ensure_future(stub.ModelInfer(each)) for each in (request(1, 2, 3), numbers(*range(80)))]
        stream = stub.ModelStreamInfer()
        for n in range(3):
            await stream.write(request(n, n))
        await until(lambda: service.batcher.accepted_requests == 6)
        for each in [*calls, stream]:
            each.cancel()
        await until(lambda: service.batcher.open_requests == 1)
        model.release.set()
        await first
        await stub.ModelInfer(request(9))
    assert model.batch_sizes == [1, 1]


async def test_a_stream_responds_in_order_and_a_bad_message_affects_no_other():
    """Each message of a stream receives one response with its id, and a bad message receives ModelInfer's status."""
    async with serving(FakeModel(), max_queued_rows=100) as (stub, _):
        bad = request(1, id="b")
        bad.inputs[0].name = "image"
        messages = [request(1, 2, id="a"), bad, request(3, id="c", model_name="zebra"), request(*range(8), id="d")]
        answers = [answer async for answer in stub.ModelStreamInfer(messages)]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert [answer.error_message.partition(":")[0] for answer in answers] == ["", "INVALID_ARGUMENT", "NOT_FOUND", ""]
    assert scores(answers[0].infer_response) == [1, 2]
    assert scores(answers[3].infer_response) == list(range(8))


async def test_a_stream_waits_while_the_queue_is_full():
    """A stream with more rows than the queue can hold waits for space, and no row is rejected or counted as failed."""
    async with serving(FakeModel()) as (stub, service):
        messages = (request(n % 250, 1, 2) for n in range(200))
        answers = [answer async for answer in stub.ModelStreamInfer(messages)]
        assert service.batcher.statistics.counts().fail.count == 0
    assert [scores(answer.infer_response)[0] for answer in answers] == [n % 250 for n in range(200)]


async def test_a_draining_service_is_live_but_not_ready_and_ends_its_streams():
    """While a service drains, calls still succeed, and a stream receives its responses and then UNAVAILABLE."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, service):
        stream = stub.ModelStreamInfer()
        await stream.write(request(7))
        await until(model.started.is_set)
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        service.inference.drain()
        model.release.set()
        assert scores((await stream.read()).infer_response) == [7]
        ended = await rejection(stream.read())
        late = await rejection(stub.ModelStreamInfer().read())
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="fake"))).ready
        assert not (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [(model.state, model.reason) for model in index.models] == [("UNAVAILABLE", "draining")]
        assert scores(await stub.ModelInfer(request(8))) == [8]
    assert ended.code() is late.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_newest_version_answers_unless_a_request_names_another():
    """The newest version answers a request that names no version, and each version has its own statistics."""
    old, new = FakeModel(), FakeModel()
    async with serving(old, new) as (stub, _):
        assert (await stub.ModelInfer(request(1))).model_version == "2"
        assert (await stub.ModelInfer(request(1, model_name="fake", model_version="-1"))).model_version == "2"
        assert (await stub.ModelInfer(request(1, 2, model_name="fake", model_version="1"))).model_version == "1"
        assert list((await stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"))).versions) == ["2", "1"]
        counted = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake"))
        assert [(model.version, model.inference_count) for model in counted.model_stats] == [("2", 2), ("1", 2)]
        counted = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake", version="1"))
        assert [model.version for model in counted.model_stats] == ["1"]
        assert len((await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats) == 2
    assert (old.batch_sizes, new.batch_sizes) == ([2], [1, 1])


async def test_each_response_has_the_digest_of_the_model_file():
    """Responses of ModelInfer and ModelStreamInfer have the digest that ModelMetadata and ModelConfig report.

    A client that has cached the labels of a model can thus detect that another file has the same version number.
    """
    async with serving(FakeModel()) as (stub, _):
        inferred = await stub.ModelInfer(request(1))
        [streamed] = [answer async for answer in stub.ModelStreamInfer([request(1)])]
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"))
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="fake"))).config
    digests = [
        inferred.parameters["digest"].string_param,
        streamed.infer_response.parameters["digest"].string_param,
        metadata.properties["digest"],
        config.parameters["digest"].string_value,
    ]
    assert digests == [in_process.ARTIFACT.digest] * 4


async def test_typed_numbers_of_many_rows_receive_typed_scores():
    """A request with 100 rows as typed numbers receives its scores as typed numbers.

    Threads of a separate pool decode and encode such large messages.
    """
    values = [n % 250 for n in range(MAX_ROWS)]
    async with serving(FakeModel(), max_queued_rows=MAX_ROWS) as (stub, _):
        answer = await stub.ModelInfer(numbers(*values))
    assert list(answer.outputs[0].contents.fp32_contents) == values
    assert list(answer.outputs[0].shape) == [MAX_ROWS, 1]


async def test_statistics_count_the_requests_of_both_protocols():
    """The statistics count the rows, requests and model calls of both protocols exactly.

    The durations of the stages of a request add up to at most the duration of the request.
    """
    model = FakeModel()
    started_at = time.time()
    async with serving(model) as (stub, service):
        await stub.ModelInfer(request(1, 2))
        await stub.ModelInfer(request(1, 2, 3, 4))
        await service.classify(5)
        model.error = RuntimeError("broken")
        await rejection(stub.ModelInfer(request(6)))
        counted = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake"))).model_stats[0]
    stats = counted.inference_stats
    assert (counted.inference_count, counted.execution_count) == (7, 3)
    assert (stats.success.count, stats.fail.count, stats.queue.count) == (3, 1, 3)
    assert stats.compute_input.count == stats.compute_infer.count == stats.compute_output.count == 3
    assert [(batch.batch_size, batch.compute_infer.count) for batch in counted.batch_stats] == [(1, 1), (2, 1), (4, 1)]
    parts = [part.ns for part in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)]
    assert min(parts) > 0
    assert stats.success.ns >= sum(parts)
    assert started_at - 1 <= counted.last_inference / 1000 <= time.time() + 1
