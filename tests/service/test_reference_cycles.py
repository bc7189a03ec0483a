"""What a call brings is let go of when the call ends, and does not wait for Python to look for circles.

Looking for them took some 25 us of a request, in pauses, and up to 50 MB of a few streams' messages lay about then.
"""

import asyncio
import gc
from collections import Counter
from contextlib import suppress

import grpc
import pytest
from fakes import FakeModel, drawings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from in_process import serving
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_service.batching.batcher import Batch
from sketchbatch_service.batching.row_queue import Request
from sketchbatch_service.transport.core_call import AsyncCall, DirectCall

TIMES = 20
OF_A_CALL = DirectCall, AsyncCall, Batch, Request


def of_ours(found: object) -> bool:
    """Whether the service made it, for one call."""
    kind = type(found)
    return kind.__module__.startswith("sketchbatch_service") or kind.__name__ == "BatchOperationEvent"


async def classify(channel, request=None):
    await classifier_pb2_grpc.ClassifierServiceStub(channel).Classify(
        request or pb.ClassifyRequest(bitmaps=drawings(1).tobytes())
    )


async def classify_wrongly(channel):
    with pytest.raises(grpc.aio.AioRpcError):
        await classify(channel, pb.ClassifyRequest(bitmaps=b"x"))


async def leave(channel):
    asking = asyncio.create_task(classify(channel, pb.ClassifyRequest(bitmaps=drawings(*range(90)).tobytes())))
    await asyncio.sleep(0.002)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


async def stream(channel, request=None):
    calls = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()
    for _ in range(3):
        await calls.write(request or pb.ClassifyStreamRequest(bitmaps=drawings(1).tobytes()))
        assert (await calls.read()).HasField("error") == bool(request)
    await calls.done_writing()
    assert await calls.read() == grpc.aio.EOF


async def stream_wrongly(channel):
    await stream(channel, pb.ClassifyStreamRequest(bitmaps=b"x"))


async def leave_a_stream(channel):
    calls = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()
    for _ in range(5):
        await calls.write(pb.ClassifyStreamRequest(bitmaps=drawings(*range(20)).tobytes()))
    await calls.read()
    calls.cancel()


async def leave_a_watch(channel):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    watch.cancel()


async def infer(channel, request=None):
    if request is None:
        tensor = oip.ModelInferRequest.InferInputTensor(name="bitmaps", datatype="UINT8", shape=[1, 28, 28])
        request = oip.ModelInferRequest(model_name="a", inputs=[tensor], raw_input_contents=[drawings(1).tobytes()])
    await channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )(request)


async def infer_wrongly(channel):
    with pytest.raises(grpc.aio.AioRpcError):
        await infer(channel, oip.ModelInferRequest(model_name="nobody"))


CALLS = [
    classify,
    classify_wrongly,
    leave,
    stream,
    stream_wrongly,
    leave_a_stream,
    leave_a_watch,
    infer,
    infer_wrongly,
]


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_leaves_no_circle(call):
    async with serving(a=FakeModel()) as service:
        await call(service.channel)  # what is made once
        await asyncio.sleep(0.1)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(TIMES):
                await call(service.channel)
            await asyncio.sleep(0.1)
            alive = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OF_A_CALL))
            gc.collect()
            found = Counter(type(each).__name__ for each in gc.garbage if of_ours(each))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not alive
    assert not found
