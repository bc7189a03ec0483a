"""Load the weights of an exported ONNX file into a Keras network, and restore its batch normalisation.

The export folds each batch normalisation into the layer before it. Training needs the batch normalisation back: it
normalises with the statistics of the batch. So its moving mean and variance are measured on drawings, and its gamma and
beta are set so that the scores stay the same. With mean 0 and variance 1 instead, the first training step would run
another function than the file (docs/training.md has the measurement).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from sketchbatch_client.drawings.readers import Bitmaps

from ..errors import RunRefused
from .networks import build
from .starting_point import ModelFile, network_of

Array = NDArray[np.float32]

_CALL_ROWS = 256  # rows in one model call


_TOLERANCE = 1e-4  # as for the export: Keras and ONNX Runtime, both in float32 on the CPU


class WeightsMismatch(Exception):
    """The graph does not have the layers of the network."""


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Weights of a convolution (height, width, channels in, filters) or of a dense layer (units in, units)."""

    weights: Array


@dataclass(frozen=True, slots=True)
class _Affine:
    """A scale and a shift of each channel: a bias, a batch normalisation, or both in one."""

    scale: Array
    shift: Array

    def then(self, other: "_Affine") -> "_Affine":
        return _Affine(self.scale * other.scale, self.shift * other.scale + other.shift)


def rebuild(file: ModelFile, drawings: Bitmaps) -> keras.Model:
    """Return the Keras network of a model file, with the same scores, ready for training.

    Args:
        file: A float32 file of `sketchbatch-train export`.
        drawings: uint8, (rows, 28, 28): training drawings, for the statistics of the batch normalisations.

    Raises:
        RunRefused: The file is a float16 or int8 variant, or its graph has been changed since the export.
    """
    graph, config = file.read_graph(), file.read_config()
    model = build(network_of(file), len(config["labels"]))
    try:
        load_weights(model, graph, drawings)
    except WeightsMismatch as exc:
        raise _refusal(file, str(exc)) from exc
    sample = drawings[:_CALL_ROWS]
    session = ort.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    expected = session.run(["scores"], {"bitmaps": sample})[0]
    difference = float(np.abs(model(sample, training=False) - expected).max())
    if not difference <= _TOLERANCE:  # `not <=` is also true for NaN
        raise _refusal(file, f"its scores and those of the rebuilt network differ by {difference:.1e}")
    return model


def load_weights(model: keras.Model, graph: onnx.ModelProto, drawings: Bitmaps) -> None:
    """Set the weights of `model` to those of `graph`, which was exported from a network of the same shape.

    Args:
        model: A network of `networks.build`.
        graph: The float32 graph of an export.
        drawings: uint8, (rows, 28, 28): typical drawings, for the statistics of the batch normalisations.

    Raises:
        WeightsMismatch: The graph has other layers, or weights of another shape or type.
    """
    steps = list(_read_steps(graph))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            arrays = [_take(steps, _Kernel, layer).weights]
            if layer.use_bias:
                arrays.append(_take(steps, _Affine, layer).shift)
            _set(layer, arrays)
        elif isinstance(layer, keras.layers.BatchNormalization):
            affine = _take(steps, _Affine, layer)
            _set_normalisation(layer, affine, np.zeros_like(affine.shift), np.ones_like(affine.shift))
    if steps:
        raise WeightsMismatch(f"{len(steps)} layers of weights more than the network")
    _measure_normalisations(model, drawings)


def _refusal(file: ModelFile, reason: str) -> RunRefused:
    return RunRefused(f"{file.path}: not an unchanged float32 file of sketchbatch-train export: {reason}")


def _read_steps(graph: onnx.ModelProto) -> Iterator[_Kernel | _Affine]:
    """Yield kernels, and the affine steps between other operators, in the order in which the graph applies them."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    affine: _Affine | None = None
    for node in graph.graph.node:
        arrays = [constants[name] for name in node.input if name in constants]
        step = _affine_of(node.op_type, arrays)
        if step is not None:
            affine = affine.then(step) if affine else step
            continue
        if affine is not None:
            yield affine
            affine = None
        if node.op_type == "Conv" and arrays:
            yield _Kernel(arrays[0].transpose(2, 3, 1, 0))
            affine = _Affine(np.ones_like(arrays[1]), arrays[1]) if len(arrays) > 1 else None
        elif node.op_type == "MatMul" and arrays:
            yield _Kernel(arrays[0])
    if affine is not None:
        yield affine


def _affine_of(op_type: str, arrays: list[Array]) -> _Affine | None:
    """Return the affine step of an operator with one value per channel, otherwise None."""
    if op_type not in ("Mul", "Add") or len(arrays) != 1 or arrays[0].ndim != 1:
        return None
    array = arrays[0]
    return _Affine(array, np.zeros_like(array)) if op_type == "Mul" else _Affine(np.ones_like(array), array)


def _take(steps: list[Any], kind: type[Any], layer: keras.layers.Layer) -> Any:
    if not steps or not isinstance(steps[0], kind):
        raise WeightsMismatch(f"no weights for the layer {layer.name}")
    return steps.pop(0)


def _set(layer: keras.layers.Layer, arrays: list[Array]) -> None:
    expected = [(str(weights.dtype), tuple(weights.shape)) for weights in layer.weights]
    got = [(str(array.dtype), array.shape) for array in arrays]
    if got != expected:
        raise WeightsMismatch(f"weights of the layer {layer.name} must be {expected}, got {got}")
    layer.set_weights(arrays)


def _set_normalisation(layer: keras.layers.Layer, affine: _Affine, mean: Array, variance: Array) -> None:
    """Set the statistics, and gamma and beta so that the layer computes `affine`."""
    gamma = affine.scale * np.sqrt(variance + layer.epsilon)
    _set(layer, [gamma, affine.shift + affine.scale * mean, mean, variance])


def _measure_normalisations(model: keras.Model, drawings: Bitmaps) -> None:
    """Set the statistics of each batch normalisation to those of its input on `drawings`; the scores stay the same."""
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    inputs = keras.Model(model.inputs[0], [layer.input for layer in found])
    sums = [np.zeros((2, layer.input.shape[-1])) for layer in found]
    counts = [0] * len(found)
    for start in range(0, len(drawings), _CALL_ROWS):
        for index, tensor in enumerate(inputs(drawings[start : start + _CALL_ROWS], training=False)):
            values = np.asarray(tensor, np.float64).reshape(-1, tensor.shape[-1])
            sums[index] += [values.sum(axis=0), np.square(values).sum(axis=0)]
            counts[index] += len(values)
    for layer, (total, squares), count in zip(found, sums, counts, strict=True):
        mean = total / count
        variance = np.maximum(squares / count - np.square(mean), 0.0)
        gamma, beta, old_mean, old_variance = layer.get_weights()
        scale = gamma / np.sqrt(old_variance + layer.epsilon)
        affine = _Affine(scale, beta - scale * old_mean)
        _set_normalisation(layer, affine, mean.astype(np.float32), variance.astype(np.float32))
