"""Convert a TensorFlow function that scores rows into an ONNX graph, and run it.

Keras files and SavedModel folders share this module.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from ..errors import AdaptRefused
from ..export.exporting import OPSET
from .source import Values

Outputs = dict[str, tf.Tensor]  # by the name that each output gets in the graph


def to_onnx(call: Callable[[tf.Tensor], Outputs], spec: tf.TensorSpec) -> onnx.ModelProto:
    """Convert `call`, a function of one tensor like `spec`, to a graph; `spec.name` is the name of its input.

    Raises:
        AdaptRefused: tf2onnx cannot convert the function.
    """
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # the exceptions already report the cause
    function = tf.function(call, input_signature=[spec])
    try:
        graph: onnx.ModelProto = tf2onnx.convert.from_function(function, input_signature=[spec], opset=OPSET)[0]
        _embed_constants(graph, function.get_concrete_function())
        onnx.checker.check_model(graph)
    except Exception as exc:  # TensorFlow and tf2onnx raise errors of many classes for operations without ONNX form
        raise AdaptRefused(f"tf2onnx cannot convert the model to ONNX: {first_line(exc)}") from exc
    return graph


def scores(call: Callable[[tf.Tensor], Outputs], spec: tf.TensorSpec, values: Values, output: str) -> Values:
    """Return one output for all input rows, in order.

    If `spec` fixes the number of rows of a call, rows of zeros fill up the last call; their scores are left out.
    """
    size = spec.shape[0] or len(values)
    filled = np.zeros((-(-len(values) // size) * size, *values.shape[1:]), values.dtype)
    filled[: len(values)] = values
    parts = [call(tf.constant(filled[start : start + size]))[output] for start in range(0, len(filled), size)]
    return np.concatenate([np.asarray(part) for part in parts])[: len(values)]


def first_line(exc: Exception) -> str:
    """Return the first line of an error's text, at most 200 characters."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]


def _embed_constants(graph: onnx.ModelProto, function: Any) -> None:
    """Store constants that `function` captured in the graph; tf2onnx declares each as one more input.

    An example is the mean of a Normalization layer that was not adapted but constructed with a mean.
    """
    captured = function.captured_inputs
    names = [tensor.name for tensor in function.inputs[len(function.inputs) - len(captured) :]]
    values = {name: value for name, value in zip(names, captured, strict=True) if value.dtype != tf.resource}
    for each in [each for each in graph.graph.input if each.name in values]:
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values[each.name].numpy(), each.name))
        graph.graph.input.remove(each)
