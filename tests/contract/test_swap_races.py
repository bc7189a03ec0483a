"""Test that a request survives the replacement of its model between its look-up and its place in the queue.

The tests run Classify, ClassifyStream, ModelInfer and ModelStreamInfer over real gRPC. The tests replace the model
themselves, at the moments that are hard to hit from outside.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from fakes import FakeModel, RecordingBatcher, drawings
from in_process import InProcess, serving, until
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.batching.batcher import BatchLimits
from sketchbatch_service.errors import Overloaded

pytestmark = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]

LIMITS = BatchLimits(max_batch_rows=4, max_queued_rows=4)

Outcome = float | str  # the score of a request with one row, or the name of its status code

Call = Callable[..., Awaitable[Outcome]]


class NewModel(FakeModel):
    """A model whose score is the first pixel of the drawing, plus 1000."""

    def predict(self, bitmaps):
        return super().predict(bitmaps) + np.float32(1000)


def swap(service: InProcess, *, version: str = "1") -> RecordingBatcher:
    """Replace the served model by a `NewModel`, and unload the old one; return the batcher of the new model."""
    old = service.models.get("", "")
    new = RecordingBatcher(NewModel().predict, LIMITS)
    service.pool.add(new, polls_while_saturated=True)
    service.models.put([replace(old, batcher=new, version=version)], [])
    old.batcher.close()  # as `Batcher.release` does as soon as the queue is empty
    return new


def swap_before_submit(service: InProcess, **options: str) -> None:
    """Call `swap` when the next request has found its model, and is about to be queued."""
    old = service.batcher
    submit = old.submit

    def swap_and_submit(*args, **kwargs):
        old.submit = submit
        swap(service, **options)
        return submit(*args, **kwargs)

    old.submit = swap_and_submit


@asynccontextmanager
async def waiting_for_space(
    call: Call, **fields: str
) -> AsyncIterator[tuple[InProcess, asyncio.Future[Outcome], FakeModel]]:
    """Run a service with a full queue; yield it, a call whose message waits for space, and the held model."""
    model, is_waiting = FakeModel(held=True), asyncio.Event()
    async with serving(LIMITS, fake=model) as service:
        running = asyncio.ensure_future(service.classify(0))
        await until(model.started.is_set)
        batcher = service.batcher
        queued = batcher.submit(drawings(1, 2, 3, 4))
        submit = batcher.submit

        def observed(*args, **kwargs):
            try:
                return submit(*args, **kwargs)
            except Overloaded:
                is_waiting.set()
                raise

        batcher.submit = observed
        outcome = asyncio.ensure_future(call(service, 7, **fields))
        await is_waiting.wait()
        yield service, outcome, model
        model.release.set()
        await running
        queued.result(5)


async def classify(service: InProcess, pixel: int, **fields: str) -> Outcome:
    try:
        return np.frombuffer((await service.classify(pixel, **fields)).scores, "<f4").item()
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def classify_stream(service: InProcess, pixel: int, **fields: str) -> Outcome:
    message = pb.ClassifyStreamRequest(bitmaps=drawings(pixel).tobytes(), **fields)
    [response] = [each async for each in service.stub.ClassifyStream([message])]
    return code_name(response.error.code) if response.error.code else np.frombuffer(response.scores, "<f4").item()


async def model_infer(service: InProcess, pixel: int, **fields: str) -> Outcome:
    call = service.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    try:
        response = await call(infer_request(pixel, **fields))
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return np.frombuffer(response.raw_output_contents[0], "<f4").item()


async def model_stream_infer(service: InProcess, pixel: int, **fields: str) -> Outcome:
    call = service.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )
    [response] = [each async for each in call([infer_request(pixel, **fields)])]
    if response.error_message:
        return response.error_message.partition(":")[0]
    return np.frombuffer(response.infer_response.raw_output_contents[0], "<f4").item()


def infer_request(pixel: int, **fields: str) -> oip.ModelInferRequest:
    bitmaps = drawings(pixel)
    request = oip.ModelInferRequest(raw_input_contents=[bitmaps.tobytes()], **fields)
    request.inputs.add(name="bitmaps", datatype="UINT8", shape=bitmaps.shape)
    return request


def code_name(code: int) -> str:
    return next(each.name for each in grpc.StatusCode if each.value[0] == code)


STREAMS = [classify_stream, model_stream_infer]
CALLS = [classify, model_infer, *STREAMS]


@pytest.mark.parametrize("call", CALLS)
async def test_a_request_whose_model_is_unloaded_before_it_is_queued_uses_the_new_model(call):
    """If the model of a request is replaced and unloaded before the request is queued, the new model runs it."""
    async with serving(LIMITS, fake=FakeModel()) as service:
        swap_before_submit(service)
        assert await call(service, 7) == 1007


@pytest.mark.parametrize("call", CALLS)
async def test_a_request_whose_version_is_unloaded_before_it_is_queued_is_not_found(call):
    """If a request names a version that is removed and unloaded before the request is queued, it receives NOT_FOUND."""
    async with serving(LIMITS, fake=FakeModel()) as service:
        swap_before_submit(service, version="2")
        assert await call(service, 7, model_version="1") == "NOT_FOUND"


@pytest.mark.parametrize("call", STREAMS)
async def test_a_message_that_waits_for_space_uses_the_new_model(call):
    """If the model is replaced while a message of a stream waits for space in the queue, the new model runs it."""
    async with waiting_for_space(call) as (service, outcome, held):
        new = swap(service)
        await until(lambda: new.accepted_requests or outcome.done())
        held.release.set()
        assert await outcome == 1007


@pytest.mark.parametrize("call", STREAMS)
async def test_a_message_that_waits_for_space_in_a_removed_version_is_not_found(call):
    """If a message names a version that is removed while the message waits for space, it receives NOT_FOUND."""
    async with waiting_for_space(call, model_version="1") as (service, outcome, _):
        swap(service, version="2")
        assert await outcome == "NOT_FOUND"
