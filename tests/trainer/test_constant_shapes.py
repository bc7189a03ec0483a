"""Test that adapted models compute no shapes, because ONNX Runtime would run these nodes on the CPU."""

import numpy as np
import onnx
import pytest
from adapting import adapt, served_scores, softmax
from foreign_models import weights, write_model
from onnx import TensorProto, helper, numpy_helper
from sketchbatch_trainer.adapt.graph.reshapes import with_constant_shapes

BITMAPS = np.random.default_rng(4).integers(0, 256, (9, 28, 28), np.uint8)


def flattened_as_pytorch_does(nodes, initializers, last):
    """Reshape rows as `x.view(x.size(0), -1)` does: the number of rows is read from the data."""
    for name, value in (("none", 0), ("axes", [0]), ("rest", [-1])):
        initializers.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes.append(helper.make_node("Shape", [last], ["all axes"]))
    nodes.append(helper.make_node("Gather", ["all axes", "none"], ["count"]))
    nodes.append(helper.make_node("Unsqueeze", ["count", "axes"], ["counts"]))
    nodes.append(helper.make_node("Concat", ["counts", "rest"], ["computed"], axis=0))
    nodes.append(helper.make_node("Reshape", [last, "computed"], ["viewed"]))
    return "viewed"


def through_three_axes(nodes, initializers, last):
    """Reshape to (1, rows, 784) and back, with shapes that are computed from the number of rows."""
    for name, value in (("one", [1]), ("pixels", [784])):
        initializers.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes.append(helper.make_node("Shape", [last], ["rows"], end=1))
    nodes.append(helper.make_node("Concat", ["rows", "pixels"], ["shape back"], axis=0))
    nodes.append(helper.make_node("Concat", ["one", "rows", "pixels"], ["shape of three"], axis=0))
    nodes.append(helper.make_node("Reshape", [last, "shape of three"], ["three"]))
    nodes.append(helper.make_node("Reshape", ["three", "shape back"], ["back"]))
    return "back"


def operators_of(graph: onnx.ModelProto) -> set[str]:
    """Return the operators of a graph."""
    return {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize("front", [flattened_as_pytorch_does, through_three_axes])
def test_shapes_that_vary_with_the_rows_become_constants(tmp_path, front):
    """The adapted model has the same scores, and no node that computes a shape."""
    output = adapt(write_model(tmp_path / "m.onnx", front=front))
    assert operators_of(onnx.load(output)).isdisjoint({"Shape", "Gather", "Unsqueeze", "Concat"})
    expected = softmax(BITMAPS.reshape(-1, 784).astype(np.float32) @ weights())
    np.testing.assert_allclose(served_scores(output, BITMAPS), expected, atol=1e-5)


def test_a_shape_that_varies_otherwise_is_left_alone():
    """A shape with another relation to the number of rows has no constant that stands for it."""
    one_more = numpy_helper.from_array(np.array([1], np.int64), "one")
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], end=1),
        helper.make_node("Mul", ["rows", "rows"], ["squared"]),
        helper.make_node("Sub", ["rows", "rows"], ["zero"]),
        helper.make_node("Add", ["zero", "one"], ["first"]),
        helper.make_node("MatMul", ["x", "t"], ["product"]),
        helper.make_node("Concat", ["first", "squared"], ["shape"], axis=0),
        helper.make_node("Reshape", ["product", "shape"], ["y"]),
    ]
    nodes.insert(4, helper.make_node("Transpose", ["x"], ["t"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "M"]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [one_more]), ir_version=9)
    changed = with_constant_shapes(model, np.ones((3, 4), np.float32))
    assert [node.input[1] for node in changed.graph.node if node.op_type == "Reshape"] == ["shape"]
