"""The Open Inference Protocol over real gRPC: statuses, streams, versions, counts, and the drain."""

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from fakes import FakeModel, drawings
from google.rpc import error_details_pb2, status_pb2
from sketchbatch.openinference.v2 import open_inference_pb2 as pb
from sketchbatch.v1 import classifier_pb2, classifier_pb2_grpc
from sketchbatch_service.api.classifier.servicer import ClassifierServicer
from sketchbatch_service.api.openinference import wire
from sketchbatch_service.api.openinference.servicer import InferenceServicer
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.models.artifact import Artifact
from sketchbatch_service.models.registry import ModelRegistry, ServedModel
from sketchbatch_service.transport.core_server import CoreServer
from structlog.testing import capture_logs

ARTIFACT = Artifact(labels=("ink",), name="", version="", created="", licence="", metrics={}, digest="d")
MAX_ROWS = 100


class Stub:
    """Calls the protocol's RPCs by their names on the wire."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def __getattr__(self, name: str):
        answer = "ModelStreamInferResponse" if name == "ModelStreamInfer" else f"{name}Response"
        kind = self.channel.stream_stream if name == "ModelStreamInfer" else self.channel.unary_unary
        return kind(
            f"/inference.GRPCInferenceService/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(pb, answer).FromString,
        )


@asynccontextmanager
async def serving(*fakes: FakeModel, max_queued_rows: int = 4):
    """A real server of versions 1, 2, ... of one model on a free port: yields a stub, the servicer and the models."""
    limits = BatchLimits(max_batch_rows=4, max_queued_rows=max_queued_rows)
    served = [
        ServedModel(
            name="fake",
            version=str(n),
            artifact=ARTIFACT,
            provider="CPU",
            batcher=Batcher(fake.predict, limits),
        )
        for n, fake in enumerate(fakes, 1)
    ]
    models = ModelRegistry(served)
    servicer = InferenceServicer(models, max_request_rows=MAX_ROWS)
    server = CoreServer()
    server.add_generic_rpc_handlers((wire.handlers(servicer),))
    server.add_generic_rpc_handlers([ClassifierServicer(models, max_request_rows=MAX_ROWS).handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with models.thread_pool(server):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Stub(channel), servicer, models
        for fake in fakes:
            fake.release.set()
        await server.stop(5)


def request(*first_pixels: int, **fields) -> pb.ModelInferRequest:
    """One row for each value."""
    bitmaps = drawings(*first_pixels)
    made = pb.ModelInferRequest(raw_input_contents=[bitmaps.tobytes()], **fields)
    made.inputs.add(name="bitmaps", datatype="UINT8", shape=bitmaps.shape)
    return made


def numbers(*first_pixels: int) -> pb.ModelInferRequest:
    """Likewise, each pixel a number."""
    made = pb.ModelInferRequest()
    tensor = made.inputs.add(name="bitmaps", datatype="UINT8", shape=(len(first_pixels), 784))
    tensor.contents.uint_contents.extend(drawings(*first_pixels).ravel().tolist())
    return made


def scores(response: pb.ModelInferResponse) -> list[float]:
    return np.frombuffer(response.raw_output_contents[0], "<f4").tolist()


async def refusal(call) -> grpc.aio.AioRpcError:
    """The error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def running(stub: Stub, model: FakeModel) -> asyncio.Task:
    """Occupies the model, so that what comes next has to queue."""
    task = asyncio.ensure_future(stub.ModelInfer(request(0)))
    await asyncio.to_thread(model.started.wait, 5)
    return task


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status in an error's trailers."""
    return status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


async def test_a_bad_tensor_is_invalid_argument_and_names_the_field():
    """BadRequest, as ClassifierService gives it."""
    async with serving(FakeModel()) as (stub, *_):
        bad = request(1)
        bad.inputs[0].datatype = "FP64"
        error = await refusal(stub.ModelInfer(bad))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest()
    assert details(error).details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].field == "inputs[0].datatype"


async def test_an_unknown_model_or_version_is_not_found():
    """For every RPC that needs one; the message lists those there are. ModelReady says false."""
    async with serving(FakeModel()) as (stub, *_):
        errors = [
            await refusal(stub.ModelInfer(request(1, model_name="zebra"))),
            await refusal(stub.ModelInfer(request(1, model_version="2"))),
            await refusal(stub.ModelMetadata(pb.ModelMetadataRequest(name="zebra"))),
            await refusal(stub.ModelConfig(pb.ModelConfigRequest(name="fake", version="2"))),
            await refusal(stub.ModelStatistics(pb.ModelStatisticsRequest(name="zebra"))),
        ]
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="zebra"))).ready
    for error in errors:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "there are: fake (version 1)" in error.details()


async def test_a_full_queue_is_resource_exhausted_with_pushback():
    """The trailer that gRPC clients obey, more than none."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, _, models):
        first = await running(stub, model)
        queued = models.get("", "").batcher.submit(drawings(1, 2, 3, 4))
        error = await refusal(stub.ModelInfer(request(5)))
        model.release.set()
        await first
        queued.result(5)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


@pytest.mark.parametrize("limit", ["deadline", "timeout parameter"])
async def test_a_request_out_of_time_is_deadline_exceeded_and_never_run(limit):
    """Whether the call's deadline or Triton's own timeout (microseconds) passes in the queue."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, *_):
        first = await running(stub, model)
        if limit == "deadline":
            late = stub.ModelInfer(request(1), timeout=0.1)
        else:
            late = stub.ModelInfer(request(1, parameters={"timeout": pb.InferParameter(int64_param=100_000)}))
        waiting = asyncio.ensure_future(refusal(late))
        await asyncio.sleep(0.2)
        model.release.set()
        error = await waiting
        await first
        await stub.ModelInfer(request(2, 3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert model.batch_sizes == [1, 2]


async def test_a_broken_model_call_is_internal_and_tells_the_request_id_only():
    """No cause, path or stack leaves the process, from a call or a stream; the log has them."""
    model = FakeModel()
    model.error = RuntimeError("secret path /models/x")
    with capture_logs() as log:
        async with serving(model) as (stub, *_):
            error = await refusal(stub.ModelInfer(request(1, id="abc")))
            streamed = [answer async for answer in stub.ModelStreamInfer([request(1, id="abc")])]
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error, request id abc"
    assert streamed[0].error_message == "INTERNAL: internal error, request id abc"
    assert "secret" not in repr(error.trailing_metadata())
    assert [(event["event"], event["request_id"]) for event in log] == 2 * [("request failed", "abc")]
    assert "secret" in str(log[0]["exc_info"].__cause__)


async def test_a_request_after_the_end_is_unavailable():
    """Another replica will answer."""
    async with serving(FakeModel()) as (stub, _, models):
        models.get("fake", "1").batcher.close()
        error = await refusal(stub.ModelInfer(request(1)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_call_that_is_cancelled_withdraws_its_queued_rows():
    """Rows nobody waits for are not run."""
    model = FakeModel(held=True)
    async with serving(model, max_queued_rows=100) as (stub, *_):
        first = await running(stub, model)
        left = [asyncio.ensure_future(stub.ModelInfer(each)) for each in (request(1, 2, 3), numbers(*range(80)))]
        stream = stub.ModelStreamInfer()
        for n in range(3):
            await stream.write(request(n, n))
        await asyncio.sleep(0.2)  # they cross a socket
        for each in [*left, stream]:
            each.cancel()
        await asyncio.sleep(0.2)  # so do the cancellations
        model.release.set()
        await first
        await stub.ModelInfer(request(9))
    assert model.batch_sizes == [1, 1]


async def test_a_stream_answers_in_order_and_a_bad_message_harms_no_other():
    """One answer each, with its id; a bad one has the status that ModelInfer would give, in words."""
    async with serving(FakeModel(), max_queued_rows=100) as (stub, *_):
        bad = request(1, id="b")
        bad.inputs[0].name = "image"
        messages = [request(1, 2, id="a"), bad, request(3, id="c", model_name="zebra"), request(*range(8), id="d")]
        answers = [answer async for answer in stub.ModelStreamInfer(messages)]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert [answer.error_message.partition(":")[0] for answer in answers] == ["", "INVALID_ARGUMENT", "NOT_FOUND", ""]
    assert scores(answers[0].infer_response) == [1, 2]
    assert scores(answers[3].infer_response) == list(range(8))


async def test_a_stream_waits_for_room_instead_of_failing():
    """Many more rows than the queue holds pass through it, none refused, none counted as failed."""
    async with serving(FakeModel()) as (stub, _, models):
        messages = (request(n % 250, 1, 2) for n in range(200))
        answers = [answer async for answer in stub.ModelStreamInfer(messages)]
        assert models.get("", "").batcher.statistics.counts().fail.count == 0
    assert [scores(answer.infer_response)[0] for answer in answers] == [n % 250 for n in range(200)]


async def test_a_draining_service_is_live_but_not_ready_and_ends_its_streams():
    """What a stream sent is answered; then UNAVAILABLE says to open another elsewhere. Calls are still answered."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, servicer, _):
        stream = stub.ModelStreamInfer()
        await stream.write(request(7))
        await asyncio.to_thread(model.started.wait, 5)
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        servicer.drain()
        model.release.set()
        assert scores((await stream.read()).infer_response) == [7]
        ended = await refusal(stream.read())
        late = await refusal(stub.ModelStreamInfer().read())
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="fake"))).ready
        assert not (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [(model.state, model.reason) for model in index.models] == [("UNAVAILABLE", "draining")]
        assert scores(await stub.ModelInfer(request(8))) == [8]
    assert ended.code() is late.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_newest_version_answers_unless_another_is_named():
    """Each version is a model of its own, with counts of its own."""
    old, new = FakeModel(), FakeModel()
    async with serving(old, new) as (stub, *_):
        assert (await stub.ModelInfer(request(1))).model_version == "2"
        assert (await stub.ModelInfer(request(1, 2, model_name="fake", model_version="1"))).model_version == "1"
        assert list((await stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"))).versions) == ["2", "1"]
        counted = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake"))
        assert [(model.version, model.inference_count) for model in counted.model_stats] == [("2", 1), ("1", 2)]
        counted = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake", version="1"))
        assert [model.version for model in counted.model_stats] == ["1"]
        assert len((await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats) == 2
    assert (old.batch_sizes, new.batch_sizes) == ([2], [1])


async def test_numbers_of_many_rows_are_answered_as_numbers():
    """Also where they are decoded by a thread of their own."""
    values = [n % 250 for n in range(MAX_ROWS)]
    async with serving(FakeModel(), max_queued_rows=MAX_ROWS) as (stub, *_):
        answer = await stub.ModelInfer(numbers(*values))
    assert list(answer.outputs[0].contents.fp32_contents) == values
    assert list(answer.outputs[0].shape) == [MAX_ROWS, 1]


async def test_statistics_count_what_was_asked_by_either_protocol():
    """Rows, requests and model calls exactly; durations that add up."""
    model = FakeModel()
    started_at = time.time()
    async with serving(model) as (stub, *_):
        await stub.ModelInfer(request(1, 2))
        await stub.ModelInfer(request(1, 2, 3, 4))
        ours = classifier_pb2_grpc.ClassifierServiceStub(stub.channel)
        await ours.Classify(classifier_pb2.ClassifyRequest(bitmaps=drawings(5).tobytes()))
        model.error = RuntimeError("broken")
        with capture_logs():
            await refusal(stub.ModelInfer(request(6)))
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
