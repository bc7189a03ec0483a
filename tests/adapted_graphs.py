"""Write graphs for the tests of `sketchbatch-train adapt` that are harder to adapt than one linear layer.

Most functions are a `Front` of `foreign_models`, or return one.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from foreign_models import LABELS, weights
from onnx import NodeProto, TensorProto, helper, numpy_helper


def reshape_to(*shape: int):
    """Return a front that reshapes the pixels to a constant shape, as an exporter does that traces one example."""

    def front(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
        initializers.append(numpy_helper.from_array(np.array(shape, np.int64), "fixed shape"))
        nodes.append(helper.make_node("Reshape", [last, "fixed shape"], ["reshaped"]))
        nodes.append(helper.make_node("Reshape", ["reshaped", "shape"], ["flat again"]))
        return "flat again"

    return front


def joined_and_separated(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Reshape all pixels of all rows into one list, and that into one row, as exporters do that see one example."""
    initializers.append(numpy_helper.from_array(np.array([-1], np.int64), "one list"))
    initializers.append(numpy_helper.from_array(np.array([1, 784], np.int64), "one row"))
    nodes.append(helper.make_node("Reshape", [last, "one list"], ["listed"]))
    nodes.append(helper.make_node("Reshape", ["listed", "one row"], ["separated"]))
    return "separated"


def even_rows_only(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Join rows in pairs and separate them again, which fails for an odd number of rows."""
    initializers.append(numpy_helper.from_array(np.array([-1, 2, 784], np.int64), "pairs"))
    nodes.append(helper.make_node("Reshape", [last, "pairs"], ["paired"]))
    nodes.append(helper.make_node("Reshape", ["paired", "shape"], ["unpaired"]))
    return "unpaired"


def four_rows_only(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Add a constant of four rows, which no change of shapes makes correct for other numbers of rows."""
    initializers.append(numpy_helper.from_array(np.arange(4 * 784, dtype=np.float32).reshape(4, 784), "four"))
    nodes.append(helper.make_node("Add", [last, "four"], ["added"]))
    return "added"


def divided_by_own_mean(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Divide each drawing by the mean of its own pixels, which is 0 for a blank drawing. Needs opset 13."""
    nodes.append(helper.make_node("ReduceMean", [last], ["own_mean"], axes=[1], keepdims=1))
    nodes.append(helper.make_node("Div", [last, "own_mean"], ["divided"]))
    return "divided"


def divided_by_first_pixel_minus_7(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Divide each drawing by its first pixel minus 7, which is 0 for a few drawings only."""
    initializers.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    initializers.append(numpy_helper.from_array(np.array(7, np.float32), "seven"))
    nodes.append(helper.make_node("Gather", [last, "first"], ["first pixel"], axis=1))
    nodes.append(helper.make_node("Sub", ["first pixel", "seven"], ["divisor"]))
    nodes.append(helper.make_node("Div", [last, "divisor"], ["divided"]))
    return "divided"


def minus_batch_mean(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Subtract the mean of all rows, as a batch normalisation in training mode does."""
    nodes.append(helper.make_node("ReduceMean", [last], ["mean"], axes=[0], keepdims=1))
    nodes.append(helper.make_node("Sub", [last, "mean"], ["centred"]))
    return "centred"


def hidden_layer(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Add a dense layer with a ReLU, whose largest output differs between drawings."""
    hidden = np.random.default_rng(3).normal(0, 0.5, (784, 784)).astype(np.float32)
    initializers.append(numpy_helper.from_array(hidden, "hidden"))
    nodes.append(helper.make_node("MatMul", [last, "hidden"], ["dense"]))
    nodes.append(helper.make_node("Relu", ["dense"], ["activated"]))
    return "activated"


def logarithm(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Take the logarithm of the pixels, which is infinite for paper."""
    nodes.append(helper.make_node("Log", [last], ["logarithm"]))
    return "logarithm"


def clashing_names(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Use our names for other values: `bitmaps`, `scores` and one of the names that the command adds."""
    for name in ("bitmaps", "scores", "adapt/bitmaps/Cast", "source/bitmaps"):
        nodes.append(helper.make_node("Identity", [last], [name]))
        last = name
    return last


def doubled_in_a_branch(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Double the pixels in a branch of If that reads a weight and a value of the outer graph."""
    initializers.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    initializers.append(numpy_helper.from_array(np.array(True), "always"))
    result = helper.make_tensor_value_info("doubled", TensorProto.FLOAT, None)
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Mul", [last, "two"], ["doubled"])], "then", [], [result])
    other = helper.make_graph([helper.make_node("Identity", [last], ["same"])], "else", [], [same])
    nodes.append(helper.make_node("If", ["always"], ["chosen"], then_branch=then, else_branch=other))
    return "chosen"


def scaled_by(operator: str, number: float, how: str = ""):
    """Return a front that scales the pixels inside the graph, as the layer Rescaling of Keras does.

    `how` is the way to the number: an initializer, "value_float" of a Constant node, or "converted" by Cast and
    Identity. With "shape", another node reads the shape of the pixels first, as PyTorch's `x.size(0)` does.
    """

    def front(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
        if how == "shape":
            nodes.append(helper.make_node("Shape", [last], ["size"]))
        if how == "value_float":
            nodes.append(helper.make_node("Constant", [], ["number"], value_float=float(number)))
        elif how == "converted":
            initializers.append(numpy_helper.from_array(np.array(number, np.float64), "double"))
            nodes.append(helper.make_node("Identity", ["double"], ["same"]))
            nodes.append(helper.make_node("Cast", ["same"], ["number"], to=TensorProto.FLOAT))
        else:
            initializers.append(numpy_helper.from_array(np.array(number, np.float32), "number"))
        nodes.append(helper.make_node(operator, [last, "number"], ["scaled"]))
        return "scaled"

    return front


def in_float16(nodes: list[NodeProto], initializers: list[TensorProto], last: str) -> str:
    """Replace the weights by float16, as a converter to half precision does."""
    initializers[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializers[0]).astype(np.float16), "w"))
    nodes.append(helper.make_node("Cast", [last], ["half"], to=TensorProto.FLOAT16))
    return "half"


def change(path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """Apply `edit` to the model at `path`; return `path`."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def list_weights_as_inputs(model: onnx.ModelProto) -> None:
    """Make the model one of IR version 3, in which every weight is an input, too."""
    model.ir_version = 3
    for each in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))


def move_softmax_into_function(model: onnx.ModelProto) -> None:
    """Replace the softmax by a function of the model, as the newer exporter of PyTorch writes layers."""
    softmax = helper.make_node("Softmax", ["scores"], ["bitmaps"], axis=1)
    function = helper.make_function("mine", "Head", ["scores"], ["bitmaps"], [softmax], [helper.make_opsetid("", 18)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    [node] = [each for each in model.graph.node if each.op_type == "Softmax"]
    node.CopyFrom(helper.make_node("Head", node.input, node.output, domain="mine"))


def write_convolution(path: Path, *, is_nhwc: bool, shape: tuple[str, ...] | None) -> Path:
    """Write a model that begins with a convolution of one channel, which fails on the other layout.

    `shape` is the declared shape of its input; None = no shape is declared. The scores are logits.
    """
    nodes = [helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2])] if is_nhwc else []
    nodes += [
        helper.make_node("Conv", ["nchw" if is_nhwc else "x", "kernel"], ["same"]),
        helper.make_node("Reshape", ["same", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weighted = {"kernel": np.ones((1, 1, 1, 1), np.float32), "shape": np.array([-1, 784]), "w": weights()}
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weighted.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def write_scikit_learn(path: Path, *, zipmap: bool = False, standard_opset: bool = True) -> Path:
    """Write a LogisticRegression as skl2onnx does: a label, and probabilities as a tensor or as dictionaries."""
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["X"],
            ["label", "probability_tensor"],
            domain="ai.onnx.ml",
            classlabels_strings=list(LABELS),
            coefficients=weights().T.reshape(-1).tolist(),
            intercepts=[0.0] * len(LABELS),
            multi_class=1,
            post_transform="SOFTMAX",
        ),
        helper.make_node("Normalizer", ["probability_tensor"], ["probabilities"], domain="ai.onnx.ml", norm="L1"),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, len(LABELS)]),
    ]
    if zipmap:
        nodes.append(
            helper.make_node(
                "ZipMap",
                ["probabilities"],
                ["output_probability"],
                domain="ai.onnx.ml",
                classlabels_strings=list(LABELS),
            )
        )
        dictionary = helper.make_map_type_proto(
            TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
        outputs[1] = helper.make_value_info("output_probability", helper.make_sequence_type_proto(dictionary))
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 784])]
    opsets = [helper.make_opsetid("ai.onnx.ml", 1), *([helper.make_opsetid("", 18)] if standard_opset else [])]
    graph = helper.make_graph(nodes, "LogisticRegression", inputs, outputs)
    onnx.save(helper.make_model(graph, producer_name="skl2onnx", opset_imports=opsets, ir_version=8), path)
    return path
