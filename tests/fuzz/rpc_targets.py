"""Hostile requests to every RPC of a running service, over real gRPC: each ends in a documented status.

An input is the bytes of a message, or of a stream of them, whatever they are. Whether a message is well-formed we find
out ourselves: then an answer has the model's own scores, and otherwise the status is INVALID_ARGUMENT.
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
from service_process import CLASSIFY, MAX_ROWS, Service, running
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from targets import MEMORY_MIB, Target, Trial, mutants

INFER = "/inference.GRPCInferenceService/ModelInfer"
_WAIT_S = 20.0
_REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
_TOO_LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED
_MESSAGE_BYTES = 2 * MAX_ROWS * 784 + 65536  # docs/security.md, "Limits"

OTHERS: list[tuple[str, type[Message] | None]] = [  # an input's first byte chooses among them; None = no such method
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


def _oddly(data: bytes) -> dict:
    """What may come beside a message: mostly nothing; the same for the same bytes."""
    chance = random.Random(zlib.crc32(data))
    if chance.random() > 0.1:
        return {}
    return {
        "metadata": chance.choice(_METADATA),
        "compression": chance.choice((grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate)),
    }


def rpcs(send: Callable[[Service, list[bytes]], Iterator[str]]) -> Callable:
    """Tries a batch at once against a service of its own; then its neighbour, its memory and its log are looked at."""

    @contextmanager
    def begin(folder: Path) -> Iterator[Trial]:
        with running(folder) as service:

            def trial(inputs: list[bytes], at: Callable[[int], None]) -> list[tuple[int, str]]:
                at(0)
                wrong = [(place, what) for place, what in enumerate(send(service, inputs)) if what]
                at(len(inputs) - 1)
                what = service.wrong_now(MEMORY_MIB)
                return [*wrong, (0, f"after this batch: {what}")] if what else wrong

            yield trial

    return begin


def unary(method: str, kind: type[Message], check: Callable[[Service, Message, bytes], str]) -> Callable:
    """Sends messages of one method; `check` is given what was asked, if that is well-formed, and the answer."""

    def send(service: Service, inputs: list[bytes]) -> Iterator[str]:
        call = service.channel.unary_unary(method)
        calls = [call.future(data, timeout=_WAIT_S, **_oddly(data)) for data in inputs]
        for data, each in zip(inputs, calls, strict=True):
            yield _judged(service, data, each, kind, check)

    return rpcs(send)


def _judged(service: Service, data: bytes, call, kind: type[Message] | None, check: Callable) -> str:
    error, request = call.exception(), parsed(kind, data) if kind else None
    if error:
        code = error.code()
        if code is _TOO_LARGE and len(data) > _MESSAGE_BYTES:
            return ""
        if kind is None:
            return "" if code is grpc.StatusCode.UNIMPLEMENTED else f"{code.name}: {error.details()[:300]}"
        expected = {grpc.StatusCode.INVALID_ARGUMENT} if request is None else _REFUSALS
        return "" if code in expected and len(error.details()) < 4000 else f"{code.name}: {error.details()[:300]}"
    if request is None:
        return "answered what is no message"
    return check(service, request, call.result())


def parsed(kind: type[Message], data: bytes) -> Message | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def right_scores(service: Service, request: Message, answer: bytes) -> str:
    """Of Classify: exactly the model's own, of the rows asked for."""
    response = pb.ClassifyResponse.FromString(answer)
    scores = service.scores(np.frombuffer(request.bitmaps, np.uint8).reshape(-1, 28, 28))
    if response.rows != len(scores) or (request.request_id and response.request_id != request.request_id):
        return "another's answer"
    if not request.top_k:
        return "" if np.allclose(np.frombuffer(response.scores, "<f4"), scores.ravel(), atol=1e-5) else "wrong scores"
    best = np.argsort(-scores, axis=1, kind="stable")[:, : request.top_k]
    is_right = np.allclose(response.score, np.take_along_axis(scores, best, axis=1).ravel(), atol=1e-5)
    return "" if is_right else "wrong best scores"


def right_tensor(service: Service, request: Message, answer: bytes) -> str:
    """Of ModelInfer: as many rows as were asked for, and scores that add up to 1."""
    response = oip.ModelInferResponse.FromString(answer)
    rows, columns = response.outputs[0].shape
    if rows != request.inputs[0].shape[0] or response.id != request.id:
        return "another's answer"
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
        calls.append((data[1:], kind, call.future(data[1:], timeout=_WAIT_S, **_oddly(data))))
    for data, kind, call in calls:
        yield _judged(service, data, call, kind, lambda *_: "")


def _watches(service: Service, inputs: list[bytes]) -> Iterator[str]:
    """Each hears how the service is, and leaves; a watch has no end of its own."""
    answer = health_pb2.HealthCheckResponse
    watch = service.channel.unary_stream("/grpc.health.v1.Health/Watch", None, answer.FromString)
    calls = [watch(data, timeout=_WAIT_S, **_oddly(data)) for data in inputs]
    for data, call in zip(inputs, calls, strict=True):
        request = parsed(health_pb2.HealthCheckRequest, data)
        try:
            told = next(call).status
        except grpc.RpcError as error:
            is_right = request is None and error.code() is grpc.StatusCode.INVALID_ARGUMENT
            yield "" if is_right else f"{error.code().name}: {error.details()[:300]}"
            continue
        call.cancel()
        is_right = request is not None and told in (answer.SERVING, answer.SERVICE_UNKNOWN)
        yield "" if is_right else f"told {told}"


def streams(method: str, kind: type[Message], answer: type[Message], codes: Callable[[Message], str]) -> Callable:
    """Sends streams of messages: each has its answer, or its error, in order, until one is no message at all."""

    def send(service: Service, inputs: list[bytes]) -> Iterator[str]:
        call = service.channel.stream_stream(method, None, answer.FromString)
        calls = [(frames(data), call(iter(frames(data)), timeout=_WAIT_S)) for data in inputs]
        for sent, responses in calls:
            yield _judged_stream(sent, responses, kind, codes)

    return rpcs(send)


def _judged_stream(sent: list[bytes], responses, kind: type[Message], codes: Callable[[Message], str]) -> str:
    good = next((place for place, data in enumerate(sent) if parsed(kind, data) is None), len(sent))
    got = []
    try:
        got.extend(map(codes, responses))
    except grpc.RpcError as error:
        if error.code() is _TOO_LARGE and max(map(len, sent)) > _MESSAGE_BYTES:
            return ""
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT or good == len(sent):
            return f"{error.code().name}: {error.details()[:300]}"
    else:
        if good < len(sent):
            return "answered what is no message"
        if len(got) != len(sent):
            return f"{len(got)} answers to {len(sent)} messages"
    odd = set(got) - {"", "INVALID_ARGUMENT", "NOT_FOUND"}
    return f"in the stream: {odd}" if odd else ""


def frames(data: bytes) -> list[bytes]:
    """The messages of a stream: each 4 bytes of its length, then itself, or what is left of it; 16 at most."""
    found, at = [], 0
    while at + 4 <= len(data) and len(found) < 16:
        length = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def framed(make: Callable[[random.Random], bytes]) -> Callable[[random.Random], bytes]:
    """A stream of some of them."""

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
        name="classify", share=22, make=_classify, begin=unary(CLASSIFY, pb.ClassifyRequest, right_scores), batch=128
    ),
    Target(name="infer", share=8, make=_infer, begin=unary(INFER, oip.ModelInferRequest, right_tensor), batch=128),
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
