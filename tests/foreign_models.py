"""Write small models as other tools export them, with onnx.helper: no PyTorch, no TensorFlow, a few milliseconds each.

Each model is one linear layer, so that tests can compute the expected scores with NumPy (`weights`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

LABELS = ("bear", "cat", "dog")

Front = Callable[[list[NodeProto], list[TensorProto], str], str]
"""Adds nodes and initializers between the pixels, float32 (N, 784), and the weights; returns the name of its output."""

_TYPES = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "double": TensorProto.DOUBLE,
}

FOREIGN: dict[str, dict[str, Any]] = {
    "fits": {},
    # PyTorch, as tutorials export MNIST: float32 NCHW, the names of PyTorch, logits, no labels
    "torch": {
        "input_name": "input",
        "input_type": "float32",
        "input_shape": ("batch_size", 1, 28, 28),
        "output_name": "output",
        "ending": "",
        "labels": None,
    },
    "torch-batch1": {
        "input_name": "input.1",
        "input_type": "float32",
        "input_shape": (1, 1, 28, 28),
        "rows_out": 1,
        "output_name": "19",
        "ending": "",
        "labels": None,
    },
    "torch-external": {"external": True},  # torch.onnx.export since 2.9: model.onnx and model.onnx.data
    # Keras 3: model.export(format="onnx")
    "keras": {
        "input_name": "keras_tensor",
        "input_type": "float32",
        "input_shape": ("unk__6", 28, 28, 1),
        "output_name": "output_0",
        "labels": None,
    },
    # tf2onnx from a SavedModel
    "tf2onnx-savedmodel": {
        "input_name": "input_1:0",
        "input_type": "float32",
        "input_shape": ("unk__12", 28, 28, 1),
        "output_name": "Identity:0",
        "labels": None,
        "opset": 13,
        "ir": 7,
    },
    "flat784": {"input_shape": ("N", 784)},
    "logits": {"ending": ""},
    "log-softmax": {"ending": "LogSoftmax"},
    "sigmoid": {"ending": "Sigmoid"},
    "argmax-int64": {"output_type": "int64", "output_name": "label"},
    "fp16-io": {"input_type": "float16", "output_type": "float16"},
    "two-outputs": {"extra_outputs": ("features",)},
    "wrong-label-count": {"labels": ["bear", "cat", "dog", "background", "x", "y"]},
    "labels-by-number": {"labels": ["0", "1", "2"]},
    "old-opset": {"opset": 11, "ir": 6},
    "new-ir": {"ir": 99},
    "ten-thousand": {"classes": 10_000, "labels": [f"class {number}" for number in range(10_000)]},
}
"""Arguments of `write_model` for each kind of export."""


def weights(classes: int = 3, seed: int = 7) -> NDArray[np.float32]:
    """Return the weights of the linear layer, float32 (784, classes); it has no bias."""
    return (np.random.default_rng(seed).normal(size=(784, classes)) * 0.01).astype(np.float32)


def write_foreign(name: str, path: Path) -> Path:
    """Write the model `name` of FOREIGN to `path`; return `path`."""
    return write_model(path, **FOREIGN[name])


def write_model(
    path: Path,
    *,
    input_name: str = "bitmaps",
    input_type: str = "uint8",
    input_shape: Sequence[int | str] = ("N", 28, 28),
    output_name: str = "scores",
    output_type: str = "float32",
    rows_out: int | str = "N",
    extra_outputs: Sequence[str] = (),
    ending: str = "Softmax",
    front: Front | None = None,
    labels: Sequence[str] | None = LABELS,
    metadata: dict[str, str] | None = None,
    classes: int = 3,
    seed: int = 7,
    external: bool = False,
    opset: int = 18,
    ir: int = 9,
) -> Path:
    """Write a linear model of the given signature to `path`; return `path`.

    `ending` is the operator after the linear layer; empty = the outputs are logits. The output type int64 makes the
    output the index of the best class instead of scores.
    """
    initializers = [numpy_helper.from_array(weights(classes, seed), "w")]
    initializers.append(numpy_helper.from_array(np.array([-1, 784]), "shape"))
    nodes = [helper.make_node("Cast", [input_name], ["f"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Reshape", ["f", "shape"], ["flat"]))
    last = front(nodes, initializers, "flat") if front else "flat"
    nodes.append(helper.make_node("MatMul", [last, "w"], ["logits"]))
    last = "logits"
    if ending:
        axis = {} if "Sigmoid" in ending else {"axis": 1}
        nodes.append(helper.make_node(ending, [last], ["ended"], **axis))
        last = "ended"
    if output_type == "int64":
        nodes.append(helper.make_node("ArgMax", [last], [output_name], axis=1, keepdims=0))
    else:
        nodes.append(helper.make_node("Cast", [last], [output_name], to=_TYPES[output_type]))
    shape = [rows_out] if output_type == "int64" else [rows_out, classes]
    outputs = [helper.make_tensor_value_info(output_name, _TYPES[output_type], shape)]
    for name in extra_outputs:
        nodes.append(helper.make_node("Identity", ["flat"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows_out, 784]))
    inputs = [helper.make_tensor_value_info(input_name, _TYPES[input_type], list(input_shape))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    properties = {**(metadata or {}), **({} if labels is None else {"sketchbatch.labels": json.dumps(list(labels))})}
    helper.set_model_props(model, properties)
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    else:
        onnx.save(model, path)
    return path
