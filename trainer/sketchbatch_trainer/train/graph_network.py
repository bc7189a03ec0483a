"""Train on from a model that another tool made: its layers except the last one, and a new last layer.

`sketchbatch-train adapt` wrote the file: bitmaps uint8 (N, 28, 28) in, scores out, the graph of the source in between.
All weights of its convolutions and dense layers are trained. Batch normalisations keep the statistics of the file.
"""

import base64
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime as ort
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray
from onnx import numpy_helper
from sketchbatch_client.drawings.readers import Bitmaps

from ..errors import RunRefused
from .onnx_operators import OPERATORS, OperatorRefused, compute
from .starting_point import ModelFile

BODY = "body"
"""Name of the layer with the graph of the file."""

_TOLERANCE = 1e-4  # largest difference of a feature from that of ONNX Runtime, relative to the largest feature
_SAMPLE_ROWS = 64
_ENDINGS = frozenset({"Add", "Cast", "Exp", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze"})


@keras.saving.register_keras_serializable("sketchbatch")
class GraphBody(layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Computes the features of bitmaps with an ONNX graph whose weights are trained.

    Args:
        graph: The graph without the data of its trained weights, serialized, in base64; its output is the features.
        shapes: The shape of each trained weight by its name in the graph.
        units: Number of features of a row.
    """

    def __init__(self, graph: str, shapes: dict[str, list[int]], units: int, **options: Any) -> None:
        super().__init__(**options)
        self._encoded, self._shapes, self._units = graph, shapes, units
        self._graph = onnx.ModelProto.FromString(base64.b64decode(graph)).graph
        self._constants = {each.name: numpy_helper.to_array(each) for each in self._graph.initializer}
        self._trained: dict[str, Any] = {}

    def build(self, input_shape: Any) -> None:
        for number, (name, shape) in enumerate(self._shapes.items()):
            kind = "bias" if len(shape) == 1 else "kernel"  # the optimizer knows by the name what has no weight decay
            self._trained[name] = self.add_weight(shape=shape, initializer="zeros", name=f"{kind}_{number}")

    def call(self, bitmaps: Any) -> Any:
        trained = {name: tf.convert_to_tensor(weight) for name, weight in self._trained.items()}
        values = {"": None, self._graph.input[0].name: bitmaps, **self._constants, **trained}
        for node in self._graph.node:
            values[node.output[0]] = compute(node, [values[name] for name in node.input])
        return tf.reshape(values[self._graph.output[0].name], (-1, self._units))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        return (input_shape[0], self._units)

    def get_config(self) -> dict[str, Any]:
        own = {"graph": self._encoded, "shapes": self._shapes, "units": self._units}
        return {**super().get_config(), **own}


@dataclass(frozen=True, slots=True)
class _Head:
    """The last dense layer of a graph."""

    features: str
    """Name of the input of the layer."""
    kernel: NDArray[np.float32]
    """(units, classes)"""
    bias: NDArray[np.float32]
    """(classes,)"""


def build_on(body: GraphBody, dropout: float, classes: int, logits: str) -> keras.Model:
    """Return a network with a copy of `body`, without its weights, and a new last layer with the name `logits`."""
    bitmaps = keras.Input((28, 28), dtype="uint8", name="bitmaps")
    features = GraphBody.from_config(body.get_config())(bitmaps)
    x = layers.Dense(classes, name=logits)(layers.Dropout(dropout)(features))
    return keras.Model(bitmaps, layers.Softmax(name="scores")(x))


def rebuild_graph(file: ModelFile, drawings: Bitmaps, logits: str) -> keras.Model:
    """Return a network with the layers and weights of an adapted file; it ends with a softmax in any case.

    Args:
        file: A file of `sketchbatch-train adapt`.
        drawings: uint8, (rows, 28, 28): the features of some are compared with those of ONNX Runtime.
        logits: Name of the last layer before the softmax.

    Raises:
        RunRefused: The graph has operators that cannot be trained, or does not end with a dense layer.
    """
    graph = file.read_graph()
    try:
        head = _find_head(graph)
        body = _cut(graph, head)
        model = _assemble(body, head, logits)
        sample = drawings[:_SAMPLE_ROWS]
        features = np.asarray(model.get_layer(BODY)(sample))
    except (OperatorRefused, tf.errors.OpError, TypeError, ValueError) as exc:  # the last two: shapes that do not fit
        reason = str(exc).partition("\n")[0]
        raise RunRefused(f"{file.path}: its graph cannot be trained: {reason}; start from another model") from exc
    session = ort.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"bitmaps": sample})[0].reshape(features.shape)
    difference, largest = float(np.abs(features - expected).max()), float(np.abs(expected).max())
    if not difference <= _TOLERANCE * max(1.0, largest):  # `not <=` is also true for NaN
        raise RunRefused(
            f"{file.path}: its graph cannot be trained: its features differ by {difference:.1e} from ONNX Runtime; "
            "start from another model"
        )
    return model


def _assemble(body: onnx.ModelProto, head: _Head, logits: str) -> keras.Model:
    """Return the network of a graph and its last layer, with their weights."""
    weights = _trained_weights(body)
    stripped = onnx.ModelProto()
    stripped.CopyFrom(body)
    kept = [each for each in stripped.graph.initializer if each.name not in weights]
    del stripped.graph.initializer[:]
    stripped.graph.initializer.extend(kept)
    layer = GraphBody(
        base64.b64encode(stripped.SerializeToString()).decode(),
        {name: list(array.shape) for name, array in weights.items()},
        len(head.kernel),
        name=BODY,
    )
    model = build_on(layer, 0.0, len(head.bias), logits)
    model.get_layer(BODY).set_weights(list(weights.values()))
    model.get_layer(logits).set_weights([head.kernel, head.bias])
    return model


def _find_head(graph: onnx.ModelProto) -> _Head:
    """Return the last dense layer, which only a bias and functions such as softmax follow."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    makers = {name: node for node in graph.graph.node for name in node.output}
    name, bias = graph.graph.output[0].name, np.zeros(1, np.float32)
    while (node := makers.get(name)) is not None and node.op_type in _ENDINGS:
        tensors = [each for each in node.input if each not in constants]
        if len(tensors) != 1:
            break
        if node.op_type == "Add":
            bias = next(constants[each] for each in node.input if each in constants)
        name = tensors[0]
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        raise OperatorRefused("its last layer must be a dense layer (MatMul or Gemm with constant weights)")
    kernel = constants[node.input[1]]
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if attributes.get("transB"):
        kernel = kernel.T
    if len(node.input) > 2:
        bias = constants[node.input[2]]
    return _Head(node.input[0], kernel, np.broadcast_to(bias.ravel(), kernel.shape[1:]))


def _cut(graph: onnx.ModelProto, head: _Head) -> onnx.ModelProto:
    """Return the part of the graph that computes the input of the last layer."""
    needed, nodes = {head.features}, []
    for node in reversed(graph.graph.node):  # nodes stand in the order of execution
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            nodes.append(node)
    if unknown := sorted({node.op_type for node in nodes} - OPERATORS.keys()):
        raise OperatorRefused(f"it has the operators {', '.join(unknown)}")
    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    output = onnx.helper.make_tensor_value_info(head.features, onnx.TensorProto.FLOAT, None)
    initializers = [each for each in graph.graph.initializer if each.name in needed]
    cut.graph.CopyFrom(
        onnx.helper.make_graph(list(reversed(nodes)), BODY, list(graph.graph.input), [output], initializers)
    )
    return cut


def _trained_weights(body: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return the weights of the convolutions and dense layers by name."""
    constants = {each.name: each for each in body.graph.initializer}
    names = [
        name
        for node in body.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        for name in node.input
        if name in constants
    ]
    weights = {name: numpy_helper.to_array(constants[name]) for name in names}
    if other := sorted({str(array.dtype) for array in weights.values()} - {"float32"}):
        raise OperatorRefused(f"its weights must be float32, got {', '.join(other)}")
    return weights
