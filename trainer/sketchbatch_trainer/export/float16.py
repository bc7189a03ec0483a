"""Convert a float32 graph to float16 for CUDA, and simulate on the CPU how CUDA scores with the float16 graph."""

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the graph with logits in float16; bitmaps stay uint8, softmax and scores stay float32."""
    logits_only = copy.deepcopy(graph)
    scores = logits_only.graph.output[0]
    softmax = logits_only.graph.node.pop()  # softmax stays float32, because scores in float16 do not sum to 1
    scores.name = softmax.input[0]
    converted: onnx.ModelProto = convert_float_to_float16(logits_only, keep_io_types=True)
    converted.graph.node.append(softmax)
    converted.graph.output[0].name = softmax.output[0]
    onnx.checker.check_model(converted)
    return converted


def rounded_as_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 copy of the graph that rounds weights and node outputs, except the scores, to float16.

    CUDA adds in float32 and stores results in float16. ONNX Runtime's CPU provider runs a float16 graph in float32
    without rounding between nodes; values above 65,504 overflow on CUDA only.
    """
    rounded = onnx.shape_inference.infer_shapes(graph)
    floats = {each.name for each in rounded.graph.value_info if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    for weight in rounded.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = _as_float16(numpy_helper.to_array(weight)).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    nodes = [each for node in rounded.graph.node for each in _rounded(node, floats)]
    del rounded.graph.node[:]
    rounded.graph.node.extend(nodes)
    return rounded


def _rounded(node: onnx.NodeProto, floats: set[str]) -> list[onnx.NodeProto]:
    """Return the node, followed by a cast to float16 and a cast back if its output is in `floats`."""
    name = node.output[0]
    if name not in floats:
        return [node]
    node.output[0] = f"{name}:exact"
    return [
        node,
        helper.make_node("Cast", [f"{name}:exact"], [f"{name}:float16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}:float16"], [name], to=TensorProto.FLOAT),
    ]


def _as_float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # an overflow becomes infinity, and the export then refuses the model
        return values.astype(np.float16)
