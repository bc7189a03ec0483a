"""Write tiny real ONNX models, with a correct or an incorrect signature."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = ("ant", "bee", "cow")


def write_model(
    path: Path,
    *,
    labels: object = LABELS,
    input_name: str = "bitmaps",
    input_type: int = TensorProto.UINT8,
    input_shape: tuple[object, ...] = ("rows", 28, 28),
    output_name: str = "scores",
    classes: int = 3,
    open_classes: bool = False,
    flat_width: int = 784,
    correct_rows: int | None = None,
    seed: int = 7,
    softmax: bool = True,
    scale: float = 0.001,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a model that scores a bitmap by a linear map with random weights and a softmax; return the file's path.

    `seed` determines the weights. Other options make a part of the signature or of the metadata incorrect. If
    `correct_rows` is given, the model scores all rows after the first `correct_rows` rows as blank bitmaps.
    """
    weights = np.random.default_rng(seed).normal(size=(flat_width, classes)).astype(np.float32) * np.float32(scale)
    nodes = [
        helper.make_node("Cast", [input_name], ["ink"], to=TensorProto.FLOAT),
        *(_blank_after(correct_rows) if correct_rows is not None else []),
        helper.make_node("Reshape", ["ink" if correct_rows is None else "correct ink", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        # The operator Compress keeps all columns here, but ONNX cannot infer their number from the graph.
        *([helper.make_node("Compress", ["logits", "kept"], ["open"], axis=1)] if open_classes else []),
        helper.make_node(
            "Softmax" if softmax else "Sigmoid",
            ["open" if open_classes else "logits"],
            [output_name],
            **({"axis": 1} if softmax else {}),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, input_type, input_shape)],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ("rows", "c" if open_classes else classes))],
        [
            numpy_helper.from_array(np.array([-1, flat_width]), "shape"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.ones(classes, bool), "kept"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    props = dict(metadata or {})
    if labels is not None:
        props["sketchbatch.labels"] = labels if isinstance(labels, str) else json.dumps(labels)
    helper.set_model_props(model, props)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _blank_after(rows: int) -> list[onnx.NodeProto]:
    """Return the nodes that copy the tensor `ink` to `correct ink`, and make all rows after the first `rows` blank."""
    numbers = {"zero": [0], "rows": [rows], "end": [2**31 - 1]}
    return [
        *(helper.make_node("Constant", [], [name], value_ints=value) for name, value in numbers.items()),
        helper.make_node("Constant", [], ["blank"], value_float=0.0),
        helper.make_node("Slice", ["ink", "zero", "rows", "zero"], ["first"]),
        helper.make_node("Slice", ["ink", "rows", "end", "zero"], ["rest"]),
        helper.make_node("Mul", ["rest", "blank"], ["no ink"]),
        helper.make_node("Concat", ["first", "no ink"], ["correct ink"], axis=0),
    ]
