"""Test over real gRPC that each error has the status that classifier.proto and docs/grpc-api.md document."""

import re
from asyncio import ensure_future, gather, wait
from dataclasses import replace

import grpc
import numpy as np
import pytest
from fakes import FakeModel, drawings
from google.rpc import error_details_pb2, status_pb2
from in_process import InProcess, rejection, serving, until
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_client import RetryPolicy
from sketchbatch_service.batching.batcher import BatchLimits
from status_causes import PROVOKE, Row, status_rows

pytestmark = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]

LIMITS = BatchLimits(max_batch_rows=4, max_queued_rows=4)
MANY_ROWS = replace(LIMITS, max_queued_rows=100)
STATUS = "grpc-status-details-bin"
TRAILERS = (STATUS, "grpc-retry-pushback-ms")
STREAM = "sketchbatch_requests_total {} sketchbatch.v1.ClassifierService/ClassifyStream"


def message(*first_pixels: int, **fields) -> pb.ClassifyStreamRequest:
    """Return a stream message with one row per value of `first_pixels`."""
    return pb.ClassifyStreamRequest(bitmaps=drawings(*first_pixels).tobytes(), **fields)


async def occupied(service: InProcess, model: FakeModel):
    """Send one row to the held model and wait until its model call starts; later requests then stay in the queue."""
    call = ensure_future(service.classify(0))
    await until(model.started.is_set)
    return call


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return the google.rpc.Status in the trailers of an error."""
    return status_pb2.Status.FromString(dict(error.trailing_metadata())[STATUS])


@pytest.mark.parametrize("row", status_rows(), ids=lambda row: f"{row.status}: {row.cause}")
async def test_every_row_of_the_guide_can_be_provoked(row: Row, tmp_path):
    """The cause in a row of the guide's status table leads to the status, details and trailers of the row.

    The client of this project retries the errors for which the guide advises a retry, and no others.
    """
    error = await PROVOKE[row.cause](tmp_path)
    assert error.code().name == row.status
    trailers = {key for key, _ in error.trailing_metadata() or () if key in TRAILERS}
    assert (", ".join(each for each in TRAILERS if each in trailers) or "none") == row.trailers
    found = [each.TypeName() for each in details(error).details] if STATUS in trailers else []
    assert (", ".join(found) or "none") == row.details
    assert (RetryPolicy().delay_s(error, failures=1) is not None) == row.retry.startswith("yes")


def test_the_guide_has_every_status_that_the_service_can_return(root):
    """The statuses in the guide's table are those that the code of the service names, except OK."""
    files = (root / "service/sketchbatch_service").rglob("*.py")
    named = {name for file in files for name in re.findall(r"\bgrpc\.StatusCode\.([A-Z_]+)", file.read_text())}
    assert {row.status for row in status_rows()} == named - {"OK"}
    assert [row.cause for row in status_rows()] == list(PROVOKE)


@pytest.mark.parametrize(
    ("bad", "field", "text"),
    [
        (pb.ClassifyRequest(bitmaps=bytes(1000)), "bitmaps", "must be a multiple of 784 bytes"),
        (pb.ClassifyRequest(), "bitmaps", r"must be 1\.\.8 rows, got 0 rows"),
        (pb.ClassifyRequest(bitmaps=bytes(9 * 784)), "bitmaps", r"must be 1\.\.8 rows, got 9 rows"),
        (pb.ClassifyRequest(bitmaps=bytes(784), top_k=2), "top_k", r"must be 1\.\.1, or 0 .*, got 2"),
    ],
)
async def test_a_request_that_can_never_succeed_is_invalid_argument(bad, field, text):
    """An invalid request receives INVALID_ARGUMENT and a BadRequest message that names the field.

    The error message contains the field, the expected value and the received value.
    """
    async with serving(LIMITS, max_request_rows=8, fake=FakeModel()) as service:
        error = await rejection(service.stub.Classify(bad))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(text, error.details())
    bad_request = error_details_pb2.BadRequest()
    assert details(error).details[0].Unpack(bad_request)
    assert bad_request.field_violations[0].field == field
    assert bad_request.field_violations[0].description == error.details()


@pytest.mark.parametrize("fields", [{"model_name": "zebra"}, {"model_version": "2"}])
async def test_an_unknown_model_or_version_is_not_found(fields):
    """The error for an unknown model or version lists the served models, for both Classify and GetModel."""
    async with serving(fake=FakeModel()) as service:
        errors = [
            await service.rejection(1, **fields),
            await rejection(service.stub.GetModel(pb.GetModelRequest(**fields))),
        ]
    for error in errors:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "there are: fake (version 1)" in error.details()


async def test_an_unknown_version_is_not_found_with_the_newest_version():
    """The error for an unknown version of a served model has the newest version as google.rpc.ErrorInfo."""
    async with serving(fake=FakeModel()) as service:
        error = await service.rejection(1, model_version="2")
        unknown_model = await service.rejection(1, model_name="zebra", model_version="2")
    info = error_details_pb2.ErrorInfo()
    assert details(error).details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "VERSION_NOT_SERVED",
        "sketchbatch.v1",
        {"newest_version": "1"},
    )
    assert STATUS not in dict(unknown_model.trailing_metadata())


async def test_a_full_queue_is_resource_exhausted_with_pushback():
    """If the queue is full, a request receives RESOURCE_EXHAUSTED with a retry delay.

    The error's RetryInfo message and the pushback trailer contain the same delay, which is greater than 0.

    GetModel succeeds while the queue is full, because GetModel does not wait in the queue.
    """
    model = FakeModel(held=True)
    async with serving(LIMITS, fake=model) as service:
        running = await occupied(service, model)
        queued = ensure_future(service.classify(1, 2, 3, 4))
        await until(lambda: service.batcher.queued_rows == 4)
        error = await service.rejection(5)
        assert (await service.stub.GetModel(pb.GetModelRequest())).model.name == "fake"
        model.release.set()
        await gather(running, queued)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pushback_ms = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    retry = error_details_pb2.RetryInfo()
    assert details(error).details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == pushback_ms > 0


async def test_a_deadline_that_passes_in_the_queue_is_deadline_exceeded_and_never_run():
    """A request whose deadline passes in the queue receives DEADLINE_EXCEEDED, and its rows never reach the model."""
    model = FakeModel(held=True)
    async with serving(LIMITS, fake=model) as service:
        running = await occupied(service, model)
        late = ensure_future(rejection(service.stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784)), timeout=1)))
        await until(lambda: service.batcher.queued_rows == 1)
        error = await late
        # wait until the server, too, has ended the call: only the running call is open then
        await until(lambda: service.batcher.open_requests == 1)
        model.release.set()
        await running
        await service.classify(2, 3)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert model.batch_sizes == [1, 2]


async def test_a_failed_model_call_is_internal_without_its_cause():
    """After a failed model call, the client receives the model and the request id, but no cause or stack trace."""
    model = FakeModel()
    model.error = RuntimeError("secret path /models/x")
    async with serving(fake=model) as service:
        error = await service.rejection(1, request_id="abc")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "a call of model 'fake' version 1 failed, request id abc"
    assert "secret" not in repr(error.trailing_metadata())


async def test_a_stream_responds_in_order_and_a_bad_message_affects_no_other():
    """Each stream message receives one response, and a bad message receives the status that Classify would send."""
    async with serving(MANY_ROWS, fake=FakeModel()) as service:
        messages = [
            message(1, 2, request_id="a"),
            pb.ClassifyStreamRequest(bitmaps=bytes(3), request_id="b"),
            message(3, request_id="c", model_name="zebra"),
            message(*range(8), request_id="d", top_k=1),
        ]
        responses = [response async for response in service.stub.ClassifyStream(messages)]
    assert [response.request_id for response in responses] == ["a", "b", "c", "d"]
    assert [response.rows for response in responses] == [2, 0, 0, 8]
    assert np.frombuffer(responses[0].scores, "<f4").tolist() == [1, 2]
    assert list(responses[3].score) == list(range(8))
    codes = [response.error.code for response in responses]
    assert codes == [0, grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0], 0]
    assert responses[1].error.details[0].Is(error_details_pb2.BadRequest.DESCRIPTOR)


async def test_a_stream_waits_while_the_queue_is_full():
    """A stream with more rows than the queue can hold waits for space, and none of its rows are rejected."""
    async with serving(LIMITS, fake=FakeModel()) as service:
        messages = (message(n % 250, 1, 2) for n in range(300))
        responses = [response async for response in service.stub.ClassifyStream(messages)]
    assert [response.error.code for response in responses] == [0] * 300
    assert [np.frombuffer(response.scores, "<f4")[0] for response in responses] == [n % 250 for n in range(300)]


async def test_draining_ends_a_stream_after_its_last_response():
    """A draining service answers accepted messages of a stream, then ends the stream with UNAVAILABLE.

    The client then opens a stream to another replica.
    """
    model = FakeModel(held=True)
    async with serving(LIMITS, fake=model) as service:
        call = service.stub.ClassifyStream()
        await call.write(message(7))
        await until(model.started.is_set)
        service.classifier.drain()
        model.release.set()
        assert np.frombuffer((await call.read()).scores, "<f4").tolist() == [7]
        assert (await rejection(call.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_whose_last_message_arrived_before_the_drain_ends_with_ok():
    """If the last message of a stream arrived before the drain, the stream ends with OK.

    With another status, the client would send messages again that already have their responses.
    """
    model = FakeModel(held=True)
    async with serving(LIMITS, fake=model) as service:
        call = service.stub.ClassifyStream()
        await call.write(message(7))
        await call.done_writing()
        await until(model.started.is_set)
        await wait(service.classifier._streams._readers)  # wait until the server has read the end of the stream
        service.classifier.drain()
        model.release.set()
        assert [response.rows async for response in call] == [1]
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_opened_after_the_drain_is_unavailable():
    """A stream that is opened while the service drains receives UNAVAILABLE, and none of its messages is read."""
    async with serving(fake=FakeModel()) as service:
        service.classifier.drain()
        call = service.stub.ClassifyStream()
        assert (await rejection(call.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_long_names_fit_into_the_metadata_of_the_response():
    """An error keeps its own status, however long the model name in its message is."""
    async with serving(fake=FakeModel()) as service:
        error = await service.rejection(1, model_name="z" * 50_000)
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_cancelling_a_stream_cancels_its_queued_rows():
    """After a client cancels a stream, the model never receives the queued rows of that stream."""
    model = FakeModel(held=True)
    async with serving(MANY_ROWS, fake=model) as service:
        running = await occupied(service, model)
        call = service.stub.ClassifyStream()
        for n in range(5):
            await call.write(message(n, n))
        await until(lambda: service.batcher.queued_rows == 10)
        call.cancel()
        await until(lambda: service.values().get(STREAM.format("CANCELLED")) == 1)
        assert service.batcher.open_requests == 1
        model.release.set()
        await running
        await service.classify(9)
    assert model.batch_sizes == [1, 1]
