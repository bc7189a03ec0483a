"""Make protobuf messages that can be parsed, but have extreme or contradictory values.

The values are texts, sizes, shapes, types and numbers.
"""

import random

import numpy as np
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb

_TEXTS = ("", "tiny", "unknown", "\u2603" * 300, "a" * 100_000, "\0", "1", "2", "-1", "\ud7ff\n\r%00")
_COUNTS = (0, 1, 2, 3, 4, 784, 2**31 - 1, 2**31, 2**32 - 1)
_ROWS = (0, 1, 2, 3, 63, 64, 65, 100)


def classify_message(chance: random.Random) -> bytes:
    """Make a ClassifyRequest with extreme values."""
    size = chance.choice(_ROWS) * 784 + chance.choice((0, 0, 0, 0, 1, -1))
    return pb.ClassifyRequest(
        model_name=chance.choice(_TEXTS[: chance.choice((2, len(_TEXTS)))]),
        model_version=chance.choice(("", "", "1", *_TEXTS)),
        bitmaps=chance.randbytes(max(0, size)),
        top_k=chance.choice(_COUNTS[: chance.choice((4, len(_COUNTS)))]),
        request_id=chance.choice(_TEXTS),
    ).SerializeToString()


_DIMENSIONS = (0, 1, 2, 28, 64, 65, 784, -1, 2**31, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, 1.0, 0.5, -0.0, 1e-45, 1.0000001, float("nan"), float("inf"), float("-inf"), 3.4e38)
_DATATYPES = ("UINT8", "UINT8", "FP32", "FP32", "INT64", "BYTES", "", "\u2603" * 120)


def infer_message(chance: random.Random) -> bytes:
    """Make a ModelInferRequest with tensors whose type, shape and contents may contradict each other."""
    request = oip.ModelInferRequest(model_name=chance.choice(("", "tiny", *_TEXTS)), id=chance.choice(_TEXTS))
    for _ in range(chance.choice((1, 1, 1, 1, 0, 2, 12))):
        _add_tensor(request, chance)
    _add_outputs(request, chance)
    if chance.random() < 0.2:
        parameter = request.parameters[chance.choice(("timeout", "priority", "\u2603" * 100))]
        setattr(parameter, *chance.choice((("int64_param", -1), ("uint64_param", 2**64 - 1), ("string_param", "1"))))
    return request.SerializeToString()


def _add_tensor(request: oip.ModelInferRequest, chance: random.Random) -> None:
    tensor = request.inputs.add(name=chance.choice(("bitmaps",) * 6 + _TEXTS), datatype=chance.choice(_DATATYPES))
    rows = chance.choice(_ROWS[: chance.choice((4, len(_ROWS)))])
    tensor.shape.extend(chance.choice(([rows, 28, 28], [rows, 784], [rows, 28, 28, 1])))
    if chance.random() < 0.3:
        tensor.shape[:] = [chance.choice(_DIMENSIONS) for _ in range(chance.randint(0, 5))]
    values = max(0, rows * 784 + chance.choice((0, 0, 0, 0, 1, -1)))
    is_float, form = tensor.datatype == "FP32", chance.randrange(4)
    if form == 0:
        size = values * (4 if is_float else 1)
        request.raw_input_contents.append(
            np.full(values, chance.choice(_FLOATS), "<f4").tobytes() if is_float else bytes(size)
        )
    elif form == 1:
        tensor.contents.fp32_contents.extend([chance.choice(_FLOATS)] * values)
    elif form == 2:
        tensor.contents.uint_contents.extend([chance.choice((0, 1, 255, 256, 2**32 - 1))] * values)
        tensor.contents.int_contents.extend([-1] * chance.choice((0, 0, 784)))
    else:
        tensor.contents.bytes_contents.append(bytes(values))
    if chance.random() < 0.1:
        tensor.parameters[chance.choice(("shared_memory_region", *_TEXTS))].string_param = "x"


def _add_outputs(request: oip.ModelInferRequest, chance: random.Random) -> None:
    for _ in range(chance.choice((0, 0, 1, 1, 2, 12))):
        output = request.outputs.add(name=chance.choice(("scores",) * 6 + _TEXTS))
        if chance.random() < 0.5:
            parameter = output.parameters["classification"]
            values = (
                ("int64_param", chance.choice((-1, 0, 1, 3, 4, 2**63 - 1))),
                ("string_param", "2"),
                ("double_param", 1.0),
            )
            setattr(parameter, *chance.choice(values))
