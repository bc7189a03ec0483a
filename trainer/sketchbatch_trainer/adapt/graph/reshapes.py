"""Make the shapes of Reshape nodes constants, so that the service can run the whole model on CUDA.

The layer Flatten of Keras and `x.view(x.size(0), -1)` of PyTorch are exported as nodes that compute a shape from the
number of rows. ONNX Runtime runs such nodes on the CPU, and the service refuses a model with CPU nodes for
`--provider cuda`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

from ..source import Runner, Values

_CALLS = (2, 3)  # rows of two calls, in which an axis of the rows has different lengths


def with_constant_shapes(graph: ModelProto, values: Values) -> ModelProto:
    """Return a copy in which a Reshape node has a constant shape if only its axis of the rows varies.

    The nodes that computed the shapes stay, for other nodes.

    Args:
        graph: A model that accepts any number of rows.
        values: Input rows, three or more.

    Raises:
        AdaptRefused: ONNX Runtime rejects the graph.
        RunFailed: The model fails on its own input.
    """
    copy = ModelProto()
    copy.CopyFrom(graph)
    nodes = _computed_reshapes(copy)
    for index, (node, shapes) in enumerate(zip(nodes, _observe(graph, nodes, values), strict=True)):
        constant = _constant_shape(shapes)
        if constant is not None:
            name = f"{node.input[1]}/constant/{index}"
            copy.graph.initializer.append(numpy_helper.from_array(constant, name))
            node.input[1] = name
    return copy


def _computed_reshapes(graph: ModelProto) -> list[NodeProto]:
    """Return the Reshape nodes whose shape is neither a weight nor the output of a Constant node."""
    constants = {each.name for each in graph.graph.initializer}
    constants |= {name for node in graph.graph.node if node.op_type == "Constant" for name in node.output}
    return [node for node in graph.graph.node if node.op_type == "Reshape" and node.input[1] not in constants]


def _observe(graph: ModelProto, nodes: Sequence[NodeProto], values: Values) -> list[list[tuple[int, ...]]]:
    """Return the shape of the result of each node in each of `_CALLS`."""
    if not nodes:
        return []
    probe = ModelProto()
    probe.CopyFrom(graph)
    known = {each.name for each in probe.graph.output}
    probe.graph.output.extend(ValueInfoProto(name=name) for node in nodes if (name := node.output[0]) not in known)
    results = [Runner(probe).run(values[:rows]) for rows in _CALLS]
    return [[result[node.output[0]].shape for result in results] for node in nodes]


def _constant_shape(shapes: Sequence[tuple[int, ...]]) -> NDArray[np.int64] | None:
    """Return a shape, with -1 for the axis of the rows, that stands for all `shapes`; None if there is none."""
    if len(set(map(len, shapes))) != 1:
        return None
    first, second = (np.array(shape, np.int64) for shape in shapes)
    varying = np.flatnonzero(first != second)
    is_of_rows = first[varying] * _CALLS[1] == second[varying] * _CALLS[0]
    if varying.size > 1 or not is_of_rows.all():
        return None
    first[varying] = -1
    return first
