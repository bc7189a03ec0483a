"""Build the networks, which include scaling and softmax: the input is uint8 bitmaps, the output is scores."""

import math
from collections.abc import Sequence

import keras
from keras import layers

from .graph_network import BODY, build_on
from .recipes import ArticleNetwork, GraphNetwork, Network, ResidualNetwork

LOGITS = "logits"
"""Name of the last layer before the softmax."""

_BATCH_NORM_MOMENTUM = 0.95  # the running mean covers about 20 steps: small trainings have about 30 steps per epoch


@keras.saving.register_keras_serializable("sketchbatch")
class StaticFlatten(layers.Flatten):  # type: ignore[misc]  # Keras has no types
    """A Flatten layer that exports as one ONNX Reshape node.

    The Flatten layer of Keras reads the number of rows first, which exports as six nodes of shape arithmetic. ONNX
    Runtime runs shape arithmetic on the CPU, and the service's `--provider cuda` refuses a model with CPU nodes.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))


def build(network: Network, classes: int, *, like: keras.Model | None = None) -> keras.Model:
    """Build a network: uint8 (rows, 28, 28) in, softmax scores (rows, classes) out.

    For a `GraphNetwork`, `like` is the network that was rebuilt from its file.
    """
    if isinstance(network, GraphNetwork):
        assert like is not None, "a GraphNetwork needs the network that was rebuilt from its file"
        return build_on(like.get_layer(BODY), network.dropout, classes, LOGITS)
    bitmaps = keras.Input((28, 28), dtype="uint8", name="bitmaps")
    x = layers.Rescaling(1 / 255)(bitmaps)  # before the reshape, because ONNX Runtime scales 28x28x1 pixel by pixel
    x = layers.Reshape((28, 28, 1))(x)
    x = _article(network, x) if isinstance(network, ArticleNetwork) else _residual(network, x)
    x = layers.Dense(classes, name=LOGITS)(x)  # (rows, classes)
    return keras.Model(bitmaps, layers.Softmax(name="scores")(x))


def with_logits(model: keras.Model) -> keras.Model:
    """Return the network without its softmax, for the loss; the returned network shares its weights with `model`."""
    # `model.inputs` is a list: Keras would warn at each call with an array.
    return keras.Model(model.inputs[0], model.get_layer(LOGITS).output)


def divide_logits(model: keras.Model, temperature: float) -> keras.Model:
    """Return the network with its logits divided by `temperature`; the other layers are those of `model`."""
    logits = model.get_layer(LOGITS)
    divided = layers.Dense(logits.units, name=LOGITS)
    outputs = layers.Softmax(name="scores")(divided(logits.input))
    divided.set_weights([weights / temperature for weights in logits.get_weights()])
    return keras.Model(model.inputs[0], outputs)


def copy_weights(source: keras.Model, target: keras.Model, columns: Sequence[int] | None) -> None:
    """Copy the weights of every layer between two networks of the same shape.

    In the last layer each column belongs to a class. `columns` has, for each class of `target`, the index of the same
    class in `source`; only these columns are copied. If `columns` is None, the last layer of `target` stays as it is.
    """
    for source_layer, layer in zip(source.layers, target.layers, strict=True):
        if layer.name != LOGITS:
            layer.set_weights(source_layer.get_weights())
        elif columns is not None:
            layer.set_weights([weights[..., columns] for weights in source_layer.get_weights()])


def _article(network: ArticleNetwork, x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Conv2D(network.conv_filters[0], 3, activation="relu")(x)  # (rows, 26, 26, 32)
    x = layers.Conv2D(network.conv_filters[1], 3, activation="relu")(x)  # (rows, 24, 24, 64)
    x = layers.MaxPooling2D(2)(x)  # (rows, 12, 12, 64)
    x = StaticFlatten()(x)  # (rows, 9216)
    for units, dropout in zip(network.dense_units, network.dropout, strict=True):
        x = layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(network.l2))(x)
        x = layers.BatchNormalization()(x)
        x = layers.Dropout(dropout)(x)
    return x


def _residual(network: ResidualNetwork, x: keras.KerasTensor) -> keras.KerasTensor:
    # The network has few filters at high resolution, more after each halving, and a dense layer over all positions.
    x = _conv(x, network.stem_filters, strides=network.stem_strides)  # (rows, 14, 14, stem)
    for filters in network.stage_filters:
        x = _conv(x, filters, strides=2)  # (rows, 7, 7, filters) in the first stage, 4x4 in the second
        inner = _conv(x, filters)
        inner = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(inner)
        inner = layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, gamma_initializer="zeros")(inner)
        x = layers.ReLU()(layers.Add()([x, inner]))  # each block starts as the identity, because gamma starts at 0
    x = StaticFlatten()(x)  # (rows, 4 * 4 * filters): flattening keeps positions, pooling loses them
    x = layers.Dropout(network.dropout)(x)
    x = layers.Dense(network.head_units, use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM)(x))
    return layers.Dropout(network.dropout)(x)


def _conv(x: keras.KerasTensor, filters: int, strides: int = 1) -> keras.KerasTensor:
    conv = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")
    return layers.ReLU()(layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM)(conv(x)))
