"""Compute ONNX operators with TensorFlow, so that a graph made by another tool can be trained.

Tensors keep the layout of the graph; images are (rows, channels, height, width). Each function receives the inputs of a
node, where None = left out, and the attributes of the node.

Constants, and shapes computed from them, are NumPy arrays, in which -1 stands for the number of rows. So the exported
file computes no shapes: ONNX Runtime computes them on the CPU, and the service's `--provider cuda` refuses such nodes.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import tensorflow as tf

Inputs = list[Any]
Attributes = dict[str, Any]


class OperatorRefused(Exception):
    """An operator, or one of its attributes, is not supported."""


def compute(node: onnx.NodeProto, inputs: Inputs) -> Any:
    """Return the first output of a node.

    Raises:
        OperatorRefused: The operator or an attribute of it is not supported.
    """
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return OPERATORS[node.op_type](inputs, attributes)


def _cast(inputs: Inputs, attributes: Attributes) -> Any:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    return inputs[0].astype(dtype) if isinstance(inputs[0], np.ndarray) else tf.cast(inputs[0], dtype)


def _constant(inputs: Inputs, attributes: Attributes) -> Any:
    if "value" not in attributes:
        return np.array(next(iter(attributes.values())))
    return onnx.numpy_helper.to_array(attributes["value"])


def _shape(inputs: Inputs, attributes: Attributes) -> Any:
    return np.array([-1 if length is None else length for length in inputs[0].shape])


def _reshape(inputs: Inputs, attributes: Attributes) -> Any:
    x, shape = inputs
    if not isinstance(shape, np.ndarray):
        raise OperatorRefused("Reshape to a shape that depends on the values of a tensor")
    lengths = [x.shape[axis] if length == 0 else int(length) for axis, length in enumerate(shape)]
    if lengths[0] in (None, -1) and -1 in lengths[1:]:  # the second open length follows from those of x
        known = math.prod(length for length in lengths[1:] if length != -1)
        lengths = [math.prod(x.shape[1:]) // known if length == -1 else length for length in lengths]
        lengths[0] = -1
    return tf.reshape(x, [-1 if length is None else length for length in lengths])


def _flatten(inputs: Inputs, attributes: Attributes) -> Any:
    if attributes.get("axis", 1) != 1:
        raise OperatorRefused("Flatten along another axis than 1")
    return tf.reshape(inputs[0], (-1, math.prod(inputs[0].shape[1:])))


def _gather(inputs: Inputs, attributes: Attributes) -> Any:
    values, indices = inputs
    gather = np.take if isinstance(values, np.ndarray) else tf.gather
    return gather(values, indices, axis=attributes.get("axis", 0))


def _concat(inputs: Inputs, attributes: Attributes) -> Any:
    is_constant = all(isinstance(each, np.ndarray) for each in inputs)
    return (np.concatenate if is_constant else tf.concat)(inputs, attributes["axis"])


def _axes(inputs: Inputs, attributes: Attributes) -> list[int]:
    """Return the axes, which are an attribute in older operator sets and an input in newer ones."""
    axes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
    if axes is None or not isinstance(axes, np.ndarray | list):
        raise OperatorRefused("axes that are computed or left out")
    return [int(axis) for axis in np.ravel(axes)]


def _squeeze(inputs: Inputs, attributes: Attributes) -> Any:
    squeeze = np.squeeze if isinstance(inputs[0], np.ndarray) else tf.squeeze
    return squeeze(inputs[0], tuple(_axes(inputs, attributes)))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Any:
    x = inputs[0]
    expand = np.expand_dims if isinstance(x, np.ndarray | np.generic) else tf.expand_dims
    for axis in sorted(_axes(inputs, attributes)):
        x = expand(x, axis)
    return x


def _clip(inputs: Inputs, attributes: Attributes) -> Any:
    low, high = ([*inputs[1:], None, None])[:2]
    low = attributes.get("min", -math.inf) if low is None else low
    high = attributes.get("max", math.inf) if high is None else high
    return tf.minimum(tf.maximum(inputs[0], low), high)


def _gemm(inputs: Inputs, attributes: Attributes) -> Any:
    product = tf.matmul(
        inputs[0], inputs[1], transpose_a=bool(attributes.get("transA")), transpose_b=bool(attributes.get("transB"))
    )
    product *= attributes.get("alpha", 1.0)
    return product if len(inputs) < 3 else product + attributes.get("beta", 1.0) * inputs[2]


def _conv(inputs: Inputs, attributes: Attributes) -> Any:
    x, kernel = inputs[:2]
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    groups, channels = attributes.get("group", 1), int(kernel.shape[1])
    if len(kernel.shape) != 4 or (groups > 1 and channels > 1):
        raise OperatorRefused("Conv with groups of several channels, or not in two dimensions")
    x, padding = _padded(x, attributes, 0.0)
    if groups > 1:  # each group is one channel
        shape = [groups, int(kernel.shape[0]) // groups, *kernel.shape[2:]]
        kernel = tf.transpose(tf.reshape(kernel, shape), (2, 3, 0, 1))
        y = tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, dilations=dilations)
    else:
        y = tf.nn.conv2d(x, tf.transpose(kernel, (2, 3, 1, 0)), strides, padding, dilations=dilations)
    return _channels_first(y if len(inputs) < 3 else y + inputs[2])


def _pool(inputs: Inputs, attributes: Attributes, *, is_max: bool) -> Any:
    if attributes.get("ceil_mode") or attributes.get("dilations", [1, 1]) != [1, 1]:
        raise OperatorRefused("pooling with ceil_mode or dilations")
    if not is_max and any(attributes.get("pads", [])) and not attributes.get("count_include_pad"):
        raise OperatorRefused("AveragePool that leaves out its padding")
    pool = tf.nn.max_pool2d if is_max else tf.nn.avg_pool2d
    x, padding = _padded(inputs[0], attributes, -math.inf if is_max else 0.0)
    return _channels_first(pool(x, attributes["kernel_shape"], attributes.get("strides", [1, 1]), padding))


def _padded(x: Any, attributes: Attributes, value: float) -> tuple[Any, str]:
    """Return images as (rows, height, width, channels) with their padding, and the padding that remains to be done."""
    x = tf.transpose(x, (0, 2, 3, 1))
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    if automatic == "SAME_UPPER":
        return x, "SAME"
    if automatic not in ("NOTSET", "VALID"):
        raise OperatorRefused(f"auto_pad {automatic}")
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if any((top, left, bottom, right)):
        x = tf.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)], constant_values=value)
    return x, "VALID"


def _channels_first(x: Any) -> Any:
    return tf.transpose(x, (0, 3, 1, 2))


def _batch_normalization(inputs: Inputs, attributes: Attributes) -> Any:
    """Normalise with the moving statistics, in training, too."""
    x, scale, shift, mean, variance = inputs
    shape = [1, -1, *[1] * (len(x.shape) - 2)]
    factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    return x * factor.reshape(shape) + (shift - mean * factor).reshape(shape)


def _reduce_mean(inputs: Inputs, attributes: Attributes) -> Any:
    return tf.reduce_mean(inputs[0], _axes(inputs, attributes), keepdims=bool(attributes.get("keepdims", 1)))


OPERATORS: dict[str, Callable[[Inputs, Attributes], Any]] = {
    "Add": lambda inputs, attributes: inputs[0] + inputs[1],
    "AveragePool": lambda inputs, attributes: _pool(inputs, attributes, is_max=False),
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Div": lambda inputs, attributes: inputs[0] / inputs[1],
    "Dropout": lambda inputs, attributes: inputs[0],
    "Elu": lambda inputs, attributes: tf.nn.elu(inputs[0]),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda inputs, attributes: tf.reduce_mean(inputs[0], (2, 3), keepdims=True),
    "GlobalMaxPool": lambda inputs, attributes: tf.reduce_max(inputs[0], (2, 3), keepdims=True),
    "Identity": lambda inputs, attributes: inputs[0],
    "LeakyRelu": lambda inputs, attributes: tf.nn.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "MatMul": lambda inputs, attributes: tf.matmul(inputs[0], inputs[1]),
    "MaxPool": lambda inputs, attributes: _pool(inputs, attributes, is_max=True),
    "Mul": lambda inputs, attributes: inputs[0] * inputs[1],
    "ReduceMean": _reduce_mean,
    "Relu": lambda inputs, attributes: tf.nn.relu(inputs[0]),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda inputs, attributes: tf.sigmoid(inputs[0]),
    "Softmax": lambda inputs, attributes: tf.nn.softmax(inputs[0], attributes.get("axis", -1)),
    "Squeeze": _squeeze,
    "Sub": lambda inputs, attributes: inputs[0] - inputs[1],
    "Tanh": lambda inputs, attributes: tf.tanh(inputs[0]),
    "Transpose": lambda inputs, attributes: tf.transpose(inputs[0], attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
}
"""The supported operators."""
