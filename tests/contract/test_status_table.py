"""The status table of the wire contract, over real gRPC."""

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import in_process
import numpy as np
import pytest
from fakes import FakeModel, drawings
from google.rpc import error_details_pb2, status_pb2
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_service.api.classifier.servicer import ClassifierServicer
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.models.artifact import Artifact
from sketchbatch_service.models.registry import ModelRegistry, ServedModel
from sketchbatch_service.transport.core_server import CoreServer

ARTIFACT = Artifact(labels=("ink",), name="", version="", created="", licence="", metrics={}, digest="d")
LIMITS = BatchLimits(max_batch_rows=4, max_queued_rows=4)


@asynccontextmanager
async def serving(model: FakeModel, limits: BatchLimits = LIMITS):
    """A real server of a fake model on a free port: yields a stub, and the servicer."""
    served = ServedModel(
        name="fake", version="1", artifact=ARTIFACT, provider="CPU", batcher=Batcher(model.predict, limits)
    )
    models = ModelRegistry([served])
    servicer = ClassifierServicer(models, max_request_rows=8)
    server = CoreServer()
    server.add_generic_rpc_handlers([servicer.handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with models.thread_pool(server):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield classifier_pb2_grpc.ClassifierServiceStub(channel), servicer
        model.release.set()
        await server.stop(5)


def request(*first_pixels: int, **fields) -> pb.ClassifyRequest:
    """One row for each value."""
    return pb.ClassifyRequest(bitmaps=drawings(*first_pixels).tobytes(), **fields)


async def refusal(stub, bad: pb.ClassifyRequest, **options) -> grpc.aio.AioRpcError:
    """The error a request ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(bad, **options)
    return caught.value


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status in an error's trailers."""
    return status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


@pytest.mark.parametrize(
    ("bad", "field", "message"),
    [
        (pb.ClassifyRequest(bitmaps=bytes(1000)), "bitmaps", "must be a multiple of 784 bytes"),
        (pb.ClassifyRequest(), "bitmaps", r"must be 1\.\.8 rows, got 0 rows"),
        (request(*range(9)), "bitmaps", r"must be 1\.\.8 rows, got 9 rows"),
        (request(1, top_k=2), "top_k", r"must be 0\.\.1 .*, got 2"),
    ],
)
async def test_a_request_that_can_never_succeed_is_invalid_argument(bad, field, message):
    """BadRequest names the field, what was expected and what came; so does the message."""
    async with serving(FakeModel()) as (stub, _):
        error = await refusal(stub, bad)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, error.details())
    bad_request = error_details_pb2.BadRequest()
    assert details(error).details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].field == field
    assert bad_request.field_violations[0].description == error.details()


@pytest.mark.parametrize("fields", [{"model_name": "zebra"}, {"model_version": "2"}])
async def test_an_unknown_model_or_version_is_not_found(fields):
    """The message lists those there are, for Classify and GetModel alike."""
    async with serving(FakeModel()) as (stub, _):
        errors = [await refusal(stub, request(1, **fields))]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModel(pb.GetModelRequest(**fields))
        errors.append(caught.value)
    for error in errors:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "there are: fake (version 1)" in error.details()


async def test_a_full_queue_is_resource_exhausted_with_pushback():
    """RetryInfo and the pushback trailer give the same time, more than none."""
    model = FakeModel(held=True)
    async with in_process.serving(LIMITS, fake=model) as service:
        stub = service.stub
        running = asyncio.ensure_future(stub.Classify(request(0)))
        await asyncio.to_thread(model.started.wait, 5)
        queued = asyncio.ensure_future(stub.Classify(request(1, 2, 3, 4)))
        while service.models.get("", "").batcher.queued_rows < 4:
            await asyncio.sleep(0.01)
        error = await refusal(stub, request(5))
        assert (await stub.GetModel(pb.GetModelRequest())).model.name == "fake"  # not behind the queue
        model.release.set()
        await asyncio.gather(running, queued)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pushback_ms = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    retry = error_details_pb2.RetryInfo()
    assert details(error).details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == pushback_ms > 0


async def test_a_deadline_that_passes_in_the_queue_is_deadline_exceeded_and_never_run():
    """The model sees the rows of those who still wait, and no others."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, _):
        running = asyncio.ensure_future(stub.Classify(request(0)))
        await asyncio.to_thread(model.started.wait, 5)
        error = await refusal(stub, request(1), timeout=0.1)
        model.release.set()
        await running
        await stub.Classify(request(2, 3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert model.batch_sizes == [1, 2]


async def test_a_broken_model_call_is_internal_and_tells_the_request_id_only():
    """No cause, path or stack leaves the process."""
    model = FakeModel()
    model.error = RuntimeError("secret path /models/x")
    async with serving(model) as (stub, _):
        error = await refusal(stub, request(1, request_id="abc"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error, request id abc"
    assert "secret" not in repr(error.trailing_metadata())


async def test_a_stream_answers_in_order_and_a_bad_message_harms_no_other():
    """Each message gets one answer; a bad one its own error, with the status that Classify would give."""
    async with serving(FakeModel(), replace(LIMITS, max_queued_rows=100)) as (stub, _):
        messages = [
            pb.ClassifyStreamRequest(bitmaps=drawings(1, 2).tobytes(), request_id="a"),
            pb.ClassifyStreamRequest(bitmaps=bytes(3), request_id="b"),
            pb.ClassifyStreamRequest(bitmaps=drawings(3).tobytes(), request_id="c", model_name="zebra"),
            pb.ClassifyStreamRequest(bitmaps=drawings(*range(8)).tobytes(), request_id="d", top_k=1),
        ]
        answers = [answer async for answer in stub.ClassifyStream(messages)]
    assert [answer.request_id for answer in answers] == ["a", "b", "c", "d"]
    assert [answer.rows for answer in answers] == [2, 0, 0, 8]
    assert np.frombuffer(answers[0].scores, "<f4").tolist() == [1, 2]
    assert list(answers[3].score) == list(range(8))
    codes = [answer.error.code for answer in answers]
    assert codes == [0, grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0], 0]
    assert answers[1].error.details[0].Is(error_details_pb2.BadRequest.DESCRIPTOR)


async def test_a_stream_waits_for_room_instead_of_failing():
    """Many more rows than the queue holds pass through it, none refused."""
    model = FakeModel()
    async with serving(model) as (stub, _):
        messages = (pb.ClassifyStreamRequest(bitmaps=drawings(n % 250, 1, 2).tobytes()) for n in range(300))
        answers = [answer async for answer in stub.ClassifyStream(messages)]
    assert [answer.error.code for answer in answers] == [0] * 300
    assert [np.frombuffer(answer.scores, "<f4")[0] for answer in answers] == [n % 250 for n in range(300)]


async def test_draining_ends_a_stream_after_its_last_answer():
    """What was accepted is answered; then UNAVAILABLE says to open another stream elsewhere."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, servicer):
        call = stub.ClassifyStream()
        await call.write(pb.ClassifyStreamRequest(bitmaps=drawings(7).tobytes()))
        await asyncio.to_thread(model.started.wait, 5)
        servicer.drain()
        model.release.set()
        assert np.frombuffer((await call.read()).scores, "<f4").tolist() == [7]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_was_whole_before_the_drain_ends_well():
    """Nobody sends again what was answered."""
    model = FakeModel(held=True)
    async with serving(model) as (stub, servicer):
        call = stub.ClassifyStream()
        await call.write(pb.ClassifyStreamRequest(bitmaps=drawings(7).tobytes()))
        await call.done_writing()
        await asyncio.to_thread(model.started.wait, 5)
        await asyncio.sleep(0.1)  # the end of the stream crosses a socket
        servicer.drain()
        model.release.set()
        assert [answer.rows async for answer in call] == [1]
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_that_comes_after_the_drain_is_unavailable():
    """It is not read at all."""
    async with serving(FakeModel()) as (stub, servicer):
        servicer.drain()
        call = stub.ClassifyStream()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_long_names_do_not_outgrow_the_metadata_of_the_answer():
    """The error comes back by its own status, however long the name it quotes."""
    async with serving(FakeModel()) as (stub, _):
        error = await refusal(stub, request(1, model_name="z" * 50_000))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stream_that_is_cancelled_withdraws_its_queued_rows():
    """Rows nobody waits for are not run."""
    model = FakeModel(held=True)
    async with serving(model, replace(LIMITS, max_queued_rows=100)) as (stub, _):
        running = asyncio.ensure_future(stub.Classify(request(0)))
        await asyncio.to_thread(model.started.wait, 5)
        call = stub.ClassifyStream()
        for n in range(5):
            await call.write(pb.ClassifyStreamRequest(bitmaps=drawings(n, n).tobytes()))
        call.cancel()
        await asyncio.sleep(0.2)  # the cancellation crosses a socket
        model.release.set()
        await running
        await stub.Classify(request(9))
    assert model.batch_sizes == [1, 1]
