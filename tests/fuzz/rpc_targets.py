"""Send hostile messages to every RPC of a running service; each call must end with a documented status.

An input is any bytes, sent as one message or as a stream of messages. If protobuf can parse the message, the service
must return a correct response or a documented error. If protobuf cannot, the status must be INVALID_ARGUMENT.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from mutations import either
from rpc_messages import classify_message, infer_message
from service_process import CLASSIFY, MAX_ROWS, Service, running_service
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from targets import MEMORY_MIB, Target, Trial, mutants

INFER = "/inference.GRPCInferenceService/ModelInfer"
_LIMIT_S = 20.0
_REJECTIONS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
_TOO_LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED
_MESSAGE_BYTES = 2 * MAX_ROWS * 784 + 65536  # the service's limit for the size of a message: docs/security.md

# The first byte of an input chooses one of these methods. The service has no method whose message type is None.
OTHERS: list[tuple[str, type[Message] | None]] = [
    ("/sketchbatch.v1.ClassifierService/GetModel", pb.GetModelRequest),
    ("/sketchbatch.v1.ClassifierService/ListModels", pb.ListModelsRequest),
    ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest),
    ("/grpc.health.v1.Health/List", health_pb2.HealthListRequest),
    *(
        (f"/inference.GRPCInferenceService/{method.name}", getattr(oip, method.input_type.name))
        for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        if method.name not in ("ModelInfer", "ModelStreamInfer")
    ),
    ("/sketchbatch.v1.ClassifierService/Nothing", None),
    ("/\u2603", None),
]

_METADATA = (
    (("authorization", "Bearer ~ , ;"),),
    (("x-odd", ""), ("x-odd", "a" * 1000), ("x-odd", "~" * 3)),
    (("x-bin", bytes(range(256))), ("authorization", "Basic " + "=" * 100)),
    (("traceparent", "00-" + "f" * 32 + "-" + "0" * 16 + "-zz"), ("tracestate", "=,=,")),
)


def _call_options(data: bytes) -> dict:
    """Return call options, which depend on `data`: one message in ten has unusual metadata and a compression."""
    chance = random.Random(zlib.crc32(data))
    if chance.random() > 0.1:
        return {}
    return {
        "metadata": chance.choice(_METADATA),
        "compression": chance.choice((grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate)),
    }


def rpcs(send: Callable[[Service, list[bytes]], Iterator[str]]) -> Callable:
    """Return a function for `Target.begin`: it starts a service and yields a function that sends it inputs by `send`.

    After each batch, the result of a valid request, the service's memory and its log are checked.
    """

    @contextmanager
    def begin(folder: Path) -> Iterator[Trial]:
        with running_service(folder) as service:

            def trial(inputs: list[bytes], progress: Callable[[int], None]) -> list[tuple[int, str]]:
                progress(0)
                found = [(index, problem) for index, problem in enumerate(send(service, inputs)) if problem]
                progress(len(inputs) - 1)
                problem = service.problem_after_batch(MEMORY_MIB)
                return [*found, (0, f"after this batch: {problem}")] if problem else found

            yield trial

    return begin


def unary(method: str, kind: type[Message], check: Callable[[Service, Message, bytes], str]) -> Callable:
    """Return the function `Target.begin` of a target that sends each input as one message to `method`.

    If a parsable request receives a response, `check` returns the problem of this response, or "" if there is none.
    """

    def send(service: Service, inputs: list[bytes]) -> Iterator[str]:
        call = service.channel.unary_unary(method)
        calls = [call.future(data, timeout=_LIMIT_S, **_call_options(data)) for data in inputs]
        for data, each in zip(inputs, calls, strict=True):
            yield _problem(service, data, each, kind, check)

    return rpcs(send)


def _problem(service: Service, data: bytes, call, kind: type[Message] | None, check: Callable) -> str:
    """Return the problem of the result of a unary call, or "" if there is none."""
    error, request = call.exception(), parsed(kind, data) if kind else None
    if error:
        code = error.code()
        if code is _TOO_LARGE and len(data) > _MESSAGE_BYTES:
            return ""
        if kind is None:
            return "" if code is grpc.StatusCode.UNIMPLEMENTED else f"{code.name}: {error.details()[:300]}"
        expected = {grpc.StatusCode.INVALID_ARGUMENT} if request is None else _REJECTIONS
        return "" if code in expected and len(error.details()) < 4000 else f"{code.name}: {error.details()[:300]}"
    if request is None:
        return "a response to an invalid message"
    return check(service, request, call.result())


def parsed(kind: type[Message], data: bytes) -> Message | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def scores_problem(service: Service, request: Message, data: bytes) -> str:
    """Return how a ClassifyResponse differs from the model's scores for the rows of the request; "" if it does not."""
    response = pb.ClassifyResponse.FromString(data)
    scores = service.scores(np.frombuffer(request.bitmaps, np.uint8).reshape(-1, 28, 28))
    if response.rows != len(scores) or (request.request_id and response.request_id != request.request_id):
        return "the response of another request"
    if not request.top_k:
        return "" if np.allclose(np.frombuffer(response.scores, "<f4"), scores.ravel(), atol=1e-5) else "wrong scores"
    best = np.argsort(-scores, axis=1, kind="stable")[:, : request.top_k]
    is_equal = np.allclose(response.score, np.take_along_axis(scores, best, axis=1).ravel(), atol=1e-5)
    return "" if is_equal else "wrong best scores"


def tensor_problem(service: Service, request: Message, data: bytes) -> str:
    """Check that a ModelInferResponse has the rows of the request and that its scores add up to 1."""
    response = oip.ModelInferResponse.FromString(data)
    rows, columns = response.outputs[0].shape
    if rows != request.inputs[0].shape[0] or response.id != request.id:
        return "the response of another request"
    if response.outputs[0].datatype != "FP32":
        return ""
    raw = response.raw_output_contents
    scores = np.frombuffer(raw[0], "<f4") if raw else np.array(response.outputs[0].contents.fp32_contents)
    return "" if np.allclose(scores.reshape(rows, columns).sum(axis=1), 1, atol=1e-4) else "wrong scores"


def _others(service: Service, inputs: list[bytes]) -> Iterator[str]:
    calls = []
    for data in inputs:
        method, kind = OTHERS[data[0] % len(OTHERS)] if data else OTHERS[0]
        call = service.channel.unary_unary(method)
        calls.append((data[1:], kind, call.future(data[1:], timeout=_LIMIT_S, **_call_options(data))))
    for data, kind, call in calls:
        yield _problem(service, data, call, kind, lambda *_: "")


def _watches(service: Service, inputs: list[bytes]) -> Iterator[str]:
    """Receive the first status of each health watch, then cancel it, because a watch never ends by itself."""
    response = health_pb2.HealthCheckResponse
    watch = service.channel.unary_stream("/grpc.health.v1.Health/Watch", None, response.FromString)
    calls = [watch(data, timeout=_LIMIT_S, **_call_options(data)) for data in inputs]
    for data, call in zip(inputs, calls, strict=True):
        request = parsed(health_pb2.HealthCheckRequest, data)
        try:
            status = next(call).status
        except grpc.RpcError as error:
            is_expected = request is None and error.code() is grpc.StatusCode.INVALID_ARGUMENT
            yield "" if is_expected else f"{error.code().name}: {error.details()[:300]}"
            continue
        call.cancel()
        is_expected = request is not None and status in (response.SERVING, response.SERVICE_UNKNOWN)
        yield "" if is_expected else f"health status {status}"


def streams(
    method: str, kind: type[Message], response_type: type[Message], code_of: Callable[[Message], str]
) -> Callable:
    """Return the function `Target.begin` of a target that sends each input as a stream of messages to `method`.

    Each message must receive a response or an error. The first message that protobuf cannot parse ends the stream with
    INVALID_ARGUMENT.
    """

    def send(service: Service, inputs: list[bytes]) -> Iterator[str]:
        call = service.channel.stream_stream(method, None, response_type.FromString)
        calls = [(frames(data), call(iter(frames(data)), timeout=_LIMIT_S)) for data in inputs]
        for sent, responses in calls:
            yield _stream_problem(sent, responses, kind, code_of)

    return rpcs(send)


def _stream_problem(sent: list[bytes], responses, kind: type[Message], code_of: Callable[[Message], str]) -> str:
    is_valid = all(parsed(kind, data) is not None for data in sent)
    codes = []
    try:
        codes.extend(map(code_of, responses))
    except grpc.RpcError as error:
        if error.code() is _TOO_LARGE and max(map(len, sent)) > _MESSAGE_BYTES:
            return ""
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT or is_valid:
            return f"{error.code().name}: {error.details()[:300]}"
    else:
        if not is_valid:
            return "a response to an invalid message"
        if len(codes) != len(sent):
            return f"{len(codes)} responses to {len(sent)} messages"
    unexpected = set(codes) - {"", "INVALID_ARGUMENT", "NOT_FOUND"}
    return f"in the stream: {unexpected}" if unexpected else ""


def frames(data: bytes) -> list[bytes]:
    """Split an input into at most 16 messages, each after its length in 4 bytes; the last one may be cut off."""
    found, at = [], 0
    while at + 4 <= len(data) and len(found) < 16:
        length = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def framed(make: Callable[[random.Random], bytes]) -> Callable[[random.Random], bytes]:
    """Return a function that makes streams of up to five messages; `make` makes the messages."""

    def stream(chance: random.Random) -> bytes:
        messages = [make(chance) for _ in range(chance.choice((0, 1, 2, 5)))]
        return b"".join(struct.pack(">I", len(each)) + each for each in messages)

    return stream


def _code_of(response: pb.ClassifyStreamResponse) -> str:
    if not response.HasField("error"):
        return ""
    return next(code.name for code in grpc.StatusCode if code.value[0] == response.error.code)


def _code_of_infer(response: oip.ModelStreamInferResponse) -> str:
    return response.error_message.partition(":")[0]


def _code_of_reflection(response: reflection_pb2.ServerReflectionResponse) -> str:
    return ""


_STREAM = "/sketchbatch.v1.ClassifierService/ClassifyStream"
_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_classify = either(mutants("classify"), classify_message)
_infer = either(mutants("infer"), infer_message)

RPCS: Sequence[Target] = [
    Target(
        name="classify", share=22, make=_classify, begin=unary(CLASSIFY, pb.ClassifyRequest, scores_problem), batch=128
    ),
    Target(name="infer", share=8, make=_infer, begin=unary(INFER, oip.ModelInferRequest, tensor_problem), batch=128),
    Target(name="others", share=8, make=mutants("others"), begin=rpcs(_others), batch=128),
    Target(name="watch", share=2, make=mutants("watch"), begin=rpcs(_watches), batch=128),
    Target(
        name="stream",
        share=2,
        make=either(mutants("stream"), framed(_classify)),
        begin=streams(_STREAM, pb.ClassifyStreamRequest, pb.ClassifyStreamResponse, _code_of),
        batch=16,
    ),
    Target(
        name="inferstream",
        share=1,
        make=framed(_infer),
        begin=streams(_STREAM_INFER, oip.ModelInferRequest, oip.ModelStreamInferResponse, _code_of_infer),
        batch=16,
    ),
    Target(
        name="reflection",
        share=1,
        make=mutants("reflection"),
        begin=streams(
            _REFLECTION,
            reflection_pb2.ServerReflectionRequest,
            reflection_pb2.ServerReflectionResponse,
            _code_of_reflection,
        ),
        batch=16,
    ),
]
