"""Make a model accept any number of rows, and prove that it does.

Exporters that see one example row write its number of rows into the graph: into the shapes of inputs and outputs, and
into the constants of Reshape nodes.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..source import RunFailed, Values

ROW_COUNTS = (1, 2, 3, 5, 7, 16, 17)
"""Numbers of rows in one call for which a row must get the scores that it gets alone."""

NOT_FINITE = "the scores must be finite numbers, got NaN or infinity: another --scale may help"

DEPENDS = (
    "the scores of a row depend on the other rows or on chance: export the model in inference mode "
    "(model.eval() in PyTorch, training=False in Keras), with a softmax over the classes and without dynamic "
    "quantisation"
)

_TOLERANCES = {np.dtype(np.float16): 1e-2}  # relative to the largest score; sums of float16 depend on their order
_TOLERANCE = 1e-3  # the one of the service for float32


def opened(graph: ModelProto, rows: int) -> Iterator[ModelProto]:
    """Yield copies of the graph that may accept any number of rows, the one with the fewest changes first.

    Args:
        graph: The model.
        rows: The number of rows that its input declares; 0 = any.
    """
    declared = _with_open_shapes(graph)
    yield declared
    for number in (rows,) if rows else fixed_rows(graph):
        yield _with_open_reshapes(declared, number)


def fixed_rows(graph: ModelProto) -> list[int]:
    """Return the numbers of rows that the Reshape nodes of a model with open input suggest."""
    constants = _constants(graph)
    targets = [constants[node.input[1]] for node in _reshapes_of_rows(graph) if node.input[1] in constants]
    return sorted({int(target[0]) for target in targets if target.size and target[0] > 0})


def problem_with_rows(run: Callable[[Values], Values], values: Values) -> str:
    """Return why a model does not score each row by itself, whatever the number of rows; empty if it does.

    The problem is `NOT_FINITE`, `DEPENDS`, or that the model fails with some number of rows.

    Args:
        run: Returns the scores of input rows.
        values: Input rows, at least as many as the largest number in `ROW_COUNTS`, with different contents.
    """
    try:
        alone = np.concatenate([run(values[row : row + 1]) for row in range(max(ROW_COUNTS))])
    except RunFailed as exc:
        return f"it fails on 1 row: {exc}"
    if not np.isfinite(alone).all():
        return NOT_FINITE
    tolerance = _TOLERANCES.get(alone.dtype, _TOLERANCE) * max(1.0, float(np.abs(alone).max()))
    for count in ROW_COUNTS:
        try:
            together = run(values[:count])
        except RunFailed as exc:
            return f"it fails on {count} rows: {exc}"
        if together.shape != alone[:count].shape:
            return f"it returns scores of the shape {together.shape} for {count} rows"
        if not np.abs(together - alone[:count]).max() <= tolerance:  # `not <=` is also true for NaN
            return DEPENDS
    return ""


def open_batch_remedy(name: str) -> str:
    """Return how to export a model whose input `name` accepts any number of rows."""
    return (
        f"export it with an open batch: dynamic_axes={{{name!r}: {{0: 'N'}}}} or dynamic_shapes of torch.onnx.export, "
        "or keras.Input without batch_size"
    )


def _with_open_shapes(graph: ModelProto) -> ModelProto:
    """Return a copy whose input and outputs declare any number of rows; shapes between them are dropped."""
    copy = ModelProto()
    copy.CopyFrom(graph)
    for value in (*copy.graph.input, *copy.graph.output):
        axes = value.type.tensor_type.shape.dim
        if axes and value.name not in {each.name for each in copy.graph.initializer}:
            axes[0].dim_param = "N"
    del copy.graph.value_info[:]
    return copy


def _with_open_reshapes(graph: ModelProto, rows: int) -> ModelProto:
    """Return a copy in which Reshape nodes with the constant (rows, ...) become (-1, ...)."""
    copy = ModelProto()
    copy.CopyFrom(graph)
    constants, shapes = _constants(copy), _shapes_with(copy, rows)
    for number, node in enumerate(_reshapes_of_rows(copy)):
        target = constants.get(node.input[1])
        if target is None or not target.size or target[0] != rows:
            continue
        axes = shapes.get(node.output[0], [])
        # -1 needs all other axes; without them, 0 takes the number of rows from the input of the node
        open_target = [-1, *axes[1:]] if len(axes) == len(target) and all(axes) else [0, *target[1:]]
        name = f"{node.input[1]}/open/{number}"  # a new constant, because other nodes may use the old one
        copy.graph.initializer.append(numpy_helper.from_array(np.array(open_target, np.int64), name))
        node.input[1] = name
    return copy


def _reshapes_of_rows(graph: ModelProto) -> list[NodeProto]:
    """Return the Reshape nodes whose data depend on the model's input; the others reshape weights."""
    weights = {each.name for each in graph.graph.initializer}
    dependent = {each.name for each in graph.graph.input} - weights
    found = []
    for node in graph.graph.node:  # in the order of execution
        if not dependent.isdisjoint(node.input):
            dependent.update(node.output)
            if node.op_type == "Reshape" and node.input[0] in dependent:
                found.append(node)
    return found


def _constants(graph: ModelProto) -> dict[str, np.ndarray]:
    """Return the constants of type int64 by name: initializers, and outputs of Constant nodes."""
    tensors = {each.name: each for each in graph.graph.initializer if each.data_type == TensorProto.INT64}
    found = {name: numpy_helper.to_array(each) for name, each in tensors.items()}
    for node in graph.graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, TensorProto) and value.data_type == TensorProto.INT64:
                found[node.output[0]] = numpy_helper.to_array(value)
            elif node.attribute[0].name == "value_ints":
                found[node.output[0]] = np.array(value, np.int64)
    return {name: array.reshape(-1) for name, array in found.items()}


def _shapes_with(graph: ModelProto, rows: int) -> dict[str, list[int]]:
    """Return the shapes of all values if the input has `rows` rows; 0 = an axis of unknown length."""
    fixed = ModelProto()
    fixed.CopyFrom(graph)
    for value in fixed.graph.input:
        if value.type.tensor_type.shape.dim and value.name not in {each.name for each in fixed.graph.initializer}:
            value.type.tensor_type.shape.dim[0].dim_value = rows
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # an operator that onnx does not know, or shapes that contradict
        return {}
    return {
        each.name: [axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in (*inferred.value_info, *inferred.output)
    }
