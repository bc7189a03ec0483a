"""Says what a model costs: FLOPs and parameters from its graph, rows a second by trying."""

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
_ROUNDS = 7  # in turn, so that a slower clock falls on all models alike


def parameters(graph: onnx.ModelProto) -> int:
    """How many weights the graph holds: constants of one value (scales, zero points) do not count."""
    weights = [each for each in graph.graph.initializer if each.data_type != onnx.TensorProto.INT64]  # those are shapes
    return sum(math.prod(each.dims) for each in weights if math.prod(each.dims) > 1)


def flops(graph: onnx.ModelProto) -> int:
    """Multiplications and additions for one row, of convolutions and matrix products, which are nearly all."""
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    known = [*inferred.value_info, *inferred.input, *inferred.output]
    shapes = {each.name: [side.dim_value for side in each.type.tensor_type.shape.dim] for each in known}
    shapes |= {each.name: list(each.dims) for each in inferred.initializer}
    return sum(_node_flops(node, shapes) for node in inferred.node)


def rows_per_s(models: Sequence[Path], bitmaps: Bitmaps) -> list[float]:
    """Rows a second of each model in ONNX Runtime on one core, median of rounds in turn.

    `bitmaps` are uint8, (rows, 28, 28), drawings like those it will see.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in models]
    call = {"bitmaps": np.resize(bitmaps, (_CALL_ROWS, 28, 28))}
    took: list[list[float]] = [[] for _ in sessions]
    for _ in range(_ROUNDS):
        for session, times in zip(sessions, took, strict=True):
            session.run(None, call)  # the caches are this model's again
            started_at = time.thread_time()  # of this core: what else the machine does takes none of it
            session.run(None, call)
            session.run(None, call)
            times.append(time.thread_time() - started_at)
    return [2 * _CALL_ROWS / median(times) for times in took]


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type == "Conv":
        weights, made = shapes[node.input[1]], shapes[node.output[0]]
        return 2 * math.prod(weights) * math.prod(made[2:])
    if node.op_type in ("MatMul", "Gemm"):
        return 2 * math.prod(shapes[node.input[1]])
    return 0
