"""Measure what a model costs: FLOPs and parameters of its graph, and its rows per second."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime as ort
from sketchbatch_client.drawings.readers import Bitmaps

_CALL_ROWS = 256
_ROUNDS = 7  # every model runs in each round, so that a change of the clock rate affects all models


def parameters(graph: onnx.ModelProto) -> int:
    """Count the weights of a graph; constants with one value (scales, zero points) do not count."""
    weights = [each for each in graph.graph.initializer if each.data_type != onnx.TensorProto.INT64]  # int64 = shapes
    return sum(math.prod(each.dims) for each in weights if math.prod(each.dims) > 1)


def flops(graph: onnx.ModelProto) -> int:
    """Count the multiplications and additions for one bitmap.

    Only convolutions and matrix products are counted, which are nearly all of the work.
    """
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    shapes = {each.name: [size.dim_value for size in each.type.tensor_type.shape.dim] for each in values}
    shapes |= {each.name: list(each.dims) for each in inferred.initializer}
    return sum(_node_flops(node, shapes) for node in inferred.node)


def rows_per_s(models: Sequence[Path], bitmaps: Bitmaps) -> list[float]:
    """Measure the rows per second of each model in ONNX Runtime on one core; return the medians over the rounds.

    Args:
        models: Model files.
        bitmaps: uint8, (rows, 28, 28), typical drawings.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in models]
    inputs = {"bitmaps": np.resize(bitmaps, (_CALL_ROWS, 28, 28))}
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(_ROUNDS):
        for session, own_seconds in zip(sessions, seconds, strict=True):
            session.run(None, inputs)  # fills the CPU caches with the model
            started_at = time.thread_time()  # CPU time excludes other processes
            session.run(None, inputs)
            session.run(None, inputs)
            own_seconds.append(time.thread_time() - started_at)
    return [2 * _CALL_ROWS / median(own_seconds) for own_seconds in seconds]


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type == "Conv":
        weights, output = shapes[node.input[1]], shapes[node.output[0]]
        return 2 * math.prod(weights) * math.prod(output[2:])
    if node.op_type in ("MatMul", "Gemm"):
        return 2 * math.prod(shapes[node.input[1]])
    return 0
