"""Put a model between bitmaps and scores: one graph of our signature around the graph of the source.

The added nodes run on CUDA: no node computes a shape.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import AdaptRefused
from ..options import Layout
from ..scaling import Scaling
from ..source import STANDARD
from .signature import Input

INPUT, OUTPUT = "bitmaps", "scores"

_SOURCE = "source/"  # begins the names of the source, so that none of them is a name of ours
_OURS = "adapt/"
_MIN_IR = 4  # from this IR version on, weights need not be inputs
_OPSET = 13  # for a source that uses no operator of the standard set


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The output of the source that has the scores."""

    name: str
    elem_type: int
    """The element type, as `onnx.TensorProto` numbers it."""
    rank: int
    """Number of axes; 2 = (rows, classes), more = further axes of length 1."""
    classes: int
    operator: str
    """The operator that makes probabilities of the scores: Softmax, Sigmoid, Exp, or empty for none."""


def wrap(graph: ModelProto, source_input: Input, scaling: Scaling, output: Output) -> ModelProto:
    """Return a model with the input `bitmaps`, uint8 (N, 28, 28), and the output `scores`, float32 (N, classes).

    `graph` is the source, which accepts any number of rows. For an integer input, only the inversion of `scaling`
    counts.

    Raises:
        AdaptRefused: onnx finds the graph invalid, for example because it repeats a name.
    """
    inner = _pruned(graph.graph, output.name)
    initializers = {each.name: _SOURCE + each.name for each in inner.initializer}  # subgraphs refer to them, too
    inner = onnx.compose.add_prefix_graph(inner, _SOURCE, name_map=initializers)
    before = _prepare(source_input, scaling)
    after = _finish(output)
    wrapped = ModelProto()
    wrapped.CopyFrom(graph)
    wrapped.graph.CopyFrom(
        helper.make_graph(
            [*before.nodes, *inner.node, *after.nodes],
            graph.graph.name or "adapted",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", 28, 28])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", output.classes])],
            [*inner.initializer, *before.constants, *after.constants],
            sparse_initializer=inner.sparse_initializer,
        )
    )
    wrapped.ir_version = max(wrapped.ir_version, _MIN_IR)
    if not any(each.domain in STANDARD for each in wrapped.opset_import):
        wrapped.opset_import.append(helper.make_opsetid("", _OPSET))
    try:
        onnx.checker.check_model(wrapped)
    except onnx.checker.ValidationError as exc:
        cause = next(iter(str(exc).splitlines()), "")
        raise AdaptRefused(f"onnx {onnx.__version__} finds the model invalid: {cause}") from exc
    return wrapped


@dataclass(slots=True)
class _Chain:
    """Nodes that each process the result of the previous node."""

    at: str
    """The name of the latest result."""
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, constant: NDArray[Any] | None = None, **attributes: Any) -> None:
        name = f"{_OURS}{self.at.removeprefix(_OURS)}/{operator}"
        inputs = [self.at]
        if constant is not None:
            self.constants.append(numpy_helper.from_array(constant, f"{name}/constant"))
            inputs.append(f"{name}/constant")
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.at = name

    def end_as(self, name: str) -> "_Chain":
        """Give the result of the chain the name `name`."""
        if not self.nodes:
            self.add("Identity")
        self.nodes[-1].output[0] = name
        return self


def _prepare(source_input: Input, scaling: Scaling) -> _Chain:
    """Return the nodes between the bitmaps and the input of the source."""
    chain = _Chain(INPUT)
    if source_input.layout is not Layout.PLAIN:
        chain.add("Reshape", np.array([-1, *source_input.layout.row_shape], np.int64))
    elem_type = TensorProto.UINT8
    if scaling.steps:
        elem_type = helper.np_dtype_to_tensor_dtype(source_input.scaling_dtype)
        chain.add("Cast", to=elem_type)
    for operator, number in scaling.steps:
        chain.add(operator, np.array(number, source_input.scaling_dtype))
    if elem_type != source_input.elem_type:
        chain.add("Cast", to=source_input.elem_type)
    return chain.end_as(_SOURCE + source_input.name)


def _finish(output: Output) -> _Chain:
    """Return the nodes between the scores of the source and ours."""
    chain = _Chain(_SOURCE + output.name)
    if output.elem_type != TensorProto.FLOAT:
        chain.add("Cast", to=TensorProto.FLOAT)
    if output.rank != 2:
        chain.add("Reshape", np.array([-1, output.classes], np.int64))
    if output.operator:
        axis: dict[str, Any] = {"axis": 1} if output.operator == "Softmax" else {}
        chain.add(output.operator, **axis)
    return chain.end_as(OUTPUT)


def _pruned(graph: GraphProto, output: str) -> GraphProto:
    """Return a copy with only the nodes and weights that `output` needs; a service need not run the others."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):  # nodes stand in the order of execution
        if not needed.isdisjoint(node.output):
            needed |= _names_in(node)
            nodes.append(node)
    copy = GraphProto()
    copy.CopyFrom(graph)
    del copy.node[:], copy.initializer[:], copy.output[:], copy.value_info[:]
    copy.node.extend(reversed(nodes))
    copy.initializer.extend(each for each in graph.initializer if each.name in needed)
    copy.output.extend(each for each in graph.output if each.name == output)
    return copy


def _names_in(node: NodeProto) -> set[str]:
    """Return the names that a node reads, those of its subgraphs included."""
    graphs = [graph for each in node.attribute for graph in ([each.g] if each.HasField("g") else each.graphs)]
    outputs = {value.name for graph in graphs for value in graph.output}  # may be names of the outer graph
    return set(node.input).union(outputs, *(_names_in(each) for graph in graphs for each in graph.node))
