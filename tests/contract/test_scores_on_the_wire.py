"""Test over real gRPC what clients receive about scores: their kind, and an error in place of NaN and infinity.

A score that is NaN has no rank among the others, so a label computed from it would be chance.
"""

import asyncio
import math

import grpc
import numpy as np
import pytest
from fakes import FakeModel, drawings
from google.protobuf import message
from in_process import InProcess, rejection, serving, until
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.batching.batcher import BatchLimits

pytestmark = [pytest.mark.both_transports, pytest.mark.usefixtures("transport")]

NAN, INFINITE = 250, 251
"""First pixels of the rows to which `BrokenModel` gives scores that are not finite."""

TEXT = "model 'broken' version 1 returned scores that are not finite for row {}, request id abc"


class BrokenModel(FakeModel):
    """A fake model that returns NaN or infinity for some rows."""

    def predict(self, bitmaps):
        scores = super().predict(bitmaps)
        return np.select([scores == NAN, scores == INFINITE], [math.nan, -math.inf], scores).astype(np.float32)


def stream_message(*first_pixels: int, **fields) -> pb.ClassifyStreamRequest:
    """Return a message of ClassifyStream with one row per value of `first_pixels`."""
    return pb.ClassifyStreamRequest(bitmaps=drawings(*first_pixels).tobytes(), **fields)


def inference(*first_pixels: int, **fields) -> oip.ModelInferRequest:
    """Return a request of the Open Inference Protocol with one row per value of `first_pixels`."""
    bitmaps = drawings(*first_pixels)
    made = oip.ModelInferRequest(raw_input_contents=[bitmaps.tobytes()], **fields)
    made.inputs.add(name="bitmaps", datatype="UINT8", shape=bitmaps.shape)
    return made


def inference_rpc(service: InProcess, name: str, kind: type[message.Message], *, streams: bool = False):
    """Return the callable of an RPC of the Open Inference Protocol."""
    make = service.channel.stream_stream if streams else service.channel.unary_unary
    return make(
        f"/inference.GRPCInferenceService/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=kind.FromString,
    )


@pytest.mark.parametrize("fields", [{}, {"top_k": 1}])
@pytest.mark.parametrize("bad", [NAN, INFINITE])
async def test_scores_that_are_not_finite_are_internal(bad, fields):
    """If a row has scores that are not finite, its request receives INTERNAL, which names the model and the row."""
    async with serving(broken=BrokenModel()) as service:
        error = await service.rejection(1, 2, bad, 3, bad, request_id="abc", **fields)
        log = [event for event in service.log if event["event"] == "request failed"]
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == TEXT.format(2)
    assert [(event["request_id"], event["log_level"]) for event in log] == [("abc", "error")]
    assert "'broken' version 1" in log[0]["reason"]


async def test_only_the_request_with_the_row_fails():
    """Of the requests whose rows share a batch, only the request with the bad row fails; the others are answered."""
    model = BrokenModel(held=True)
    async with serving(BatchLimits(max_batch_rows=8), broken=model) as service:
        first = asyncio.ensure_future(service.classify(9))
        await until(model.started.is_set)
        others = [asyncio.ensure_future(service.classify(n, n + 1)) for n in (10, 20)]
        await until(lambda: service.batcher.queued_rows == 4)
        bad = asyncio.ensure_future(service.rejection(5, NAN, request_id="abc"))
        await until(lambda: service.batcher.queued_rows == 6)
        last = asyncio.ensure_future(service.classify(30, 31))
        await until(lambda: service.batcher.queued_rows == 8)
        model.release.set()
        answers = await asyncio.gather(first, *others, last)
        error = await bad
    assert model.batch_sizes == [1, 8]
    assert [np.frombuffer(answer.scores, "<f4").tolist() for answer in answers] == [[9], [10, 11], [20, 21], [30, 31]]
    assert error.details() == TEXT.format(1)


async def test_the_row_is_that_of_the_request():
    """In a request that spans several batches, the row is counted from the start of the request."""
    async with serving(BatchLimits(max_batch_rows=2), broken=BrokenModel()) as service:
        error = await service.rejection(0, 1, 2, 3, 4, NAN, 6, request_id="abc")
        assert (await service.classify(7)).rows == 1
    assert error.details() == TEXT.format(5)


async def test_a_stream_continues_after_scores_that_are_not_finite():
    """The message with the bad row receives INTERNAL, and the other messages of the stream receive their scores."""
    async with serving(broken=BrokenModel()) as service:
        messages = [stream_message(1), stream_message(NAN, request_id="abc"), stream_message(3)]
        responses = [response async for response in service.stub.ClassifyStream(messages)]
    assert [response.error.code for response in responses] == [0, grpc.StatusCode.INTERNAL.value[0], 0]
    assert responses[1].error.message == TEXT.format(0)
    assert (responses[1].scores, responses[1].rows) == (b"", 0)


async def test_the_open_inference_protocol_returns_the_same_error():
    """ModelInfer and ModelStreamInfer return the error of Classify for a row with scores that are not finite.

    This holds for requests of all scores, and for requests of a classification.
    """
    async with serving(broken=BrokenModel()) as service:
        infer = inference_rpc(service, "ModelInfer", oip.ModelInferResponse)
        best = inference(NAN, id="abc")
        best.outputs.add(name="scores").parameters["classification"].int64_param = 1
        errors = [await rejection(infer(request)) for request in (inference(7, INFINITE, id="abc"), best)]
        stream = inference_rpc(service, "ModelStreamInfer", oip.ModelStreamInferResponse, streams=True)
        responses = [response async for response in stream([inference(NAN, id="abc"), inference(3)])]
    assert [error.code() for error in errors] == [grpc.StatusCode.INTERNAL] * 2
    assert [error.details() for error in errors] == [TEXT.format(1), TEXT.format(0)]
    assert [response.error_message for response in responses] == [f"INTERNAL: {TEXT.format(0)}", ""]


async def test_rows_that_are_not_finite_are_counted_and_do_not_change_health():
    """A metric counts the rows of each model whose scores are not finite, and health stays SERVING.

    Blank drawings of one client must not take the service away from the others. An operator sees from the metric, and
    not from health, that rows receive no scores.
    """
    async with serving(BatchLimits(max_batch_rows=8), broken=BrokenModel()) as service:
        for _ in range(4):
            await service.rejection(1, NAN, INFINITE, 2)
        await service.classify(1)
        values = service.values()
        assert await service.is_serving()
        assert not service.batcher.is_failing
    assert values["sketchbatch_nonfinite_rows_total broken"] == 8
    assert values["sketchbatch_unanswered_requests_total broken"] == 4
    assert values["sketchbatch_rows_total broken"] == 1
    assert values["sketchbatch_broken_batches_total broken"] == 0
    assert values["sketchbatch_rejected_total ScoresNotFinite"] >= 4


async def test_the_kind_of_the_scores_is_announced():
    """GetModel, ListModels, ModelMetadata and ModelConfig return what the scores of a row are."""
    async with serving(fake=FakeModel()) as service:
        got = (await service.stub.GetModel(pb.GetModelRequest())).model
        [listed] = (await service.stub.ListModels(pb.ListModelsRequest())).models
        metadata = await inference_rpc(service, "ModelMetadata", oip.ModelMetadataResponse)(
            oip.ModelMetadataRequest(name="fake")
        )
        config = await inference_rpc(service, "ModelConfig", oip.ModelConfigResponse)(
            oip.ModelConfigRequest(name="fake")
        )
    assert got.score_kind == listed.score_kind == "logits"
    assert metadata.properties["scores"] == "logits"
    assert config.config.parameters["scores"].string_value == "logits"
