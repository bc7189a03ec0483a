"""Decode the tensors of the Open Inference Protocol into bitmaps, and encode scores into tensors.

A response has the form of its request: raw bytes, or typed numbers. Only raw UINT8 is decoded without a copy. Of a
large message, raw contents are a view.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sketchbatch.openinference.v2 import open_inference_pb2 as pb

from ...arrays import ROW_BYTES, ROW_SHAPE, Bitmaps, Scores
from ...errors import InvalidRequest
from ..classifier.codec import best
from ..large_field import LARGE_BYTES, take_out

INPUT = "bitmaps"
OUTPUT = "scores"

_Tensor = pb.ModelInferRequest.InferInputTensor
_Output = pb.ModelInferRequest.InferRequestedOutputTensor

_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
_ROW_SHAPES = (list(ROW_SHAPE), [*ROW_SHAPE, 1], [1, *ROW_SHAPE], [ROW_BYTES])
_SHARED_MEMORY = "shared_memory_region"


_CACHED_BYTES = 256  # size of the description of a tensor up to which the result of its check is cached


@dataclass(slots=True)
class Request:
    """A `ModelInferRequest`."""

    fields: pb.ModelInferRequest  # all fields except `raw_input_contents`, which may be missing here
    raw: Sequence[bytes | memoryview]  # the field `raw_input_contents`; the response to raw tensors has raw tensors
    message_bytes: int


def read(message: bytes) -> Request:
    """Parse one message; raise google.protobuf.message.DecodeError if the bytes are not a message."""
    field = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
    if len(message) >= LARGE_BYTES and (taken := take_out(message, field)):
        views, rest = taken
        return Request(pb.ModelInferRequest.FromString(rest), views, len(message))
    fields = pb.ModelInferRequest.FromString(message)
    return Request(fields, fields.raw_input_contents, len(message))


def is_quick(request: Request, *, rows: int) -> bool:
    """Return whether decoding makes no copy, or converts at most `rows` rows.

    The client may state a wrong shape: `decode` compares it with the size of the data.
    """
    if request.message_bytes <= rows * ROW_BYTES:
        return True
    inputs = request.fields.inputs
    if len(inputs) != 1:
        return True  # `decode` rejects the request
    tensor = inputs[0]
    return (tensor.datatype == "UINT8" and bool(request.raw)) or not tensor.shape or tensor.shape[0] <= rows


def timeout_s(request: pb.ModelInferRequest) -> float:
    """Return the request's parameter `timeout` (microseconds; 0 = no limit) in seconds; infinity without one."""
    parameters = request.parameters
    if "timeout" not in parameters:
        return math.inf
    timeout_us = parameters["timeout"].int64_param or parameters["timeout"].uint64_param
    return timeout_us / 1e6 if timeout_us > 0 else math.inf


def decode(request: Request, *, max_rows: int) -> Bitmaps:
    """Return the request's one input as uint8, (rows, 28, 28); FP32 is rounded to the nearest of 256 grey levels.

    Raise InvalidRequest unless the input is one tensor `bitmaps` of a supported type, shape, size and range.
    """
    tensor = _only_input(request.fields)
    if request.raw:
        described = tensor.SerializeToString()
        check = _raw_layout if len(described) <= _CACHED_BYTES else _raw_layout.__wrapped__
        rows, dtype = check(described, max_rows, len(request.raw))
        payload = request.raw[0]
        expected_bytes = rows * ROW_BYTES * dtype.itemsize
        if len(payload) != expected_bytes:
            raise _wrong_size("raw_input_contents[0]", "bytes", len(payload), tensor, expected_bytes)
        values = np.frombuffer(payload, dtype)
    else:
        _check_description(tensor)
        rows = _rows(tensor, max_rows)
        values = _typed_values(tensor, rows)
    bitmaps = values if values.dtype == np.uint8 else _grey_levels(values)
    return bitmaps.reshape(rows, *ROW_SHAPE)


@lru_cache(maxsize=1024)
def _raw_layout(described: bytes, max_rows: int, raw_contents: int) -> tuple[int, np.dtype[Any]]:
    """Check the description of the tensor of a raw request; return its rows and the type of its values.

    `described` is the serialized `InferInputTensor`: a client sends the same one again and again, and a lookup takes a
    fraction of the time of the checks. Errors are not cached.
    """
    tensor = _Tensor.FromString(described)
    _check_description(tensor)
    rows = _rows(tensor, max_rows)
    if raw_contents != 1:
        raise InvalidRequest(field="raw_input_contents", expected="one for each input, 1", got=str(raw_contents))
    if tensor.HasField("contents"):
        raise InvalidRequest(field="inputs[0].contents", expected="empty with raw_input_contents", got="both")
    return rows, _DTYPES[tensor.datatype]


def _only_input(request: pb.ModelInferRequest) -> _Tensor:
    inputs = request.inputs
    if len(inputs) != 1 or inputs[0].name != INPUT:
        raise InvalidRequest(field="inputs", expected=f"one tensor, {INPUT}", got=_listed(inputs))
    return inputs[0]


def _check_description(tensor: _Tensor) -> None:
    _reject_shared_memory(tensor, "inputs[0]")
    if tensor.datatype not in _DTYPES:
        raise InvalidRequest(
            field="inputs[0].datatype", expected="UINT8 (0 to 255) or FP32 (0 to 1)", got=repr(tensor.datatype[:100])
        )


def _rows(tensor: _Tensor, max_rows: int) -> int:
    rows, *row_shape = tensor.shape or [0]
    if row_shape not in _ROW_SHAPES:
        raise InvalidRequest(
            field="inputs[0].shape",
            expected="[rows, 28, 28], [rows, 28, 28, 1], [rows, 1, 28, 28] or [rows, 784]",
            got=str(list(tensor.shape[:10])),
        )
    if not 1 <= rows <= max_rows:
        raise InvalidRequest(field="inputs[0].shape", expected=f"1..{max_rows} rows", got=f"{rows} rows")
    return rows


def _typed_values(tensor: _Tensor, rows: int) -> NDArray[Any]:
    contents = tensor.contents
    if tensor.datatype == "FP32":
        _check_size("inputs[0].contents.fp32_contents", "values", len(contents.fp32_contents), tensor, rows * ROW_BYTES)
        return np.array(contents.fp32_contents, np.float32)
    if contents.bytes_contents:
        payload = b"".join(contents.bytes_contents)
        _check_size("inputs[0].contents.bytes_contents", "bytes", len(payload), tensor, rows * ROW_BYTES)
        return np.frombuffer(payload, np.uint8)
    numbers = contents.uint_contents or contents.int_contents
    _check_size("inputs[0].contents.uint_contents", "values", len(numbers), tensor, rows * ROW_BYTES)
    values = np.array(numbers, np.int64)
    if values.min() < 0 or values.max() > 255:
        wrong = next(value for value in values if not 0 <= value <= 255)
        raise InvalidRequest(field="inputs[0].contents", expected="0..255 for UINT8", got=str(wrong))
    return values.astype(np.uint8)


def _check_size(field: str, unit: str, got: int, tensor: _Tensor, expected: int) -> None:
    if got != expected:
        raise _wrong_size(field, unit, got, tensor, expected)


def _wrong_size(field: str, unit: str, got: int, tensor: _Tensor, expected: int) -> InvalidRequest:
    shape = f"{tensor.datatype} {list(tensor.shape)}"
    return InvalidRequest(field=field, expected=f"{expected} {unit} ({shape})", got=f"{got} {unit}")


def _grey_levels(ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scale 0..1 to 0..255 and round; n / 255 becomes n."""
    low, high = ink.min(), ink.max()  # one NaN in the array makes both NaN
    if not (low >= 0 and high <= 1):
        wrong = next(value for value in (low, high) if not 0 <= value <= 1)
        raise InvalidRequest(
            field=INPUT, expected="0 to 1 for FP32 (0 = paper, 1 = ink; divide grey levels by 255)", got=f"{wrong:g}"
        )
    scaled: NDArray[np.float32] = ink * np.float32(255)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def top_k(request: pb.ModelInferRequest, *, classes: int) -> int:
    """Return the requested number of best classes; 0 = all scores, also if the request names no output.

    Raise InvalidRequest if the output is not `scores`, or its parameter `classification` is not 1 to `classes`.
    """
    outputs = request.outputs
    if not outputs:
        return 0
    output = outputs[0]
    if len(outputs) > 1 or output.name != OUTPUT:
        raise InvalidRequest(field="outputs", expected=f"{OUTPUT}, or none", got=_listed(outputs))
    _reject_shared_memory(output, "outputs[0]")
    if "classification" not in output.parameters:
        return 0
    parameter = output.parameters["classification"]
    chosen = parameter.WhichOneof("parameter_choice")
    count: int | None = getattr(parameter, chosen) if chosen in ("int64_param", "uint64_param") else None
    if count is None or not 1 <= count <= classes:
        raise InvalidRequest(
            field="outputs[0].parameters[classification]",
            expected=f"an integer, 1..{classes}",
            got="another type" if count is None else str(count),
        )
    return count


def _reject_shared_memory(tensor: _Tensor | _Output, field: str) -> None:
    if _SHARED_MEMORY in tensor.parameters:
        raise InvalidRequest(field=f"{field}.parameters", expected="without shared memory", got=_SHARED_MEMORY)


def _listed(tensors: Sequence[_Tensor] | Sequence[_Output]) -> str:
    return repr([tensor.name[:100] for tensor in tensors[:10]]) if tensors else "none"


def encode(scores: Scores, top_k: int, labels: Sequence[str], response: pb.ModelInferResponse, *, as_raw: bool) -> None:
    """Add the output to `response`: all scores, or the best `top_k` classes of each row."""
    response.outputs.append(_output("BYTES" if top_k else "FP32", len(scores), top_k or scores.shape[1]))
    if top_k:
        texts = _classification(scores, top_k, labels)
        if as_raw:
            response.raw_output_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
        else:
            response.outputs[0].contents.bytes_contents.extend(texts)
    elif as_raw:
        response.raw_output_contents.append(scores.astype("<f4", copy=False).tobytes())
    else:
        response.outputs[0].contents.fp32_contents.extend(scores.ravel().tolist())


@lru_cache(maxsize=1024)
def _output(datatype: str, rows: int, columns: int) -> pb.ModelInferResponse.InferOutputTensor:
    """Return the description of an output; to copy it takes less time than to make it."""
    return pb.ModelInferResponse.InferOutputTensor(name=OUTPUT, datatype=datatype, shape=[rows, columns])


def _classification(scores: Scores, top_k: int, labels: Sequence[str]) -> list[bytes]:
    """Return the texts SCORE:INDEX:LABEL, rows x top_k of them, row by row."""
    indices = best(scores, top_k)
    values = np.take_along_axis(scores, indices, axis=1)
    return [
        f"{value:f}:{index}:{labels[index]}".encode()
        for value, index in zip(values.ravel().tolist(), indices.ravel().tolist(), strict=True)
    ]
