"""Builds the networks. Scaling and softmax are part of them: uint8 bitmaps in, scores out."""

import math
from collections.abc import Sequence

import keras
from keras import layers

from .recipes import ArticleNetwork, ResidualNetwork

LOGITS = "logits"
"""Name of the layer before the softmax, and of nothing else."""

_BATCH_NORM_MOMENTUM = 0.95  # of the running mean: 20 steps, since small runs have only some 30 steps an epoch


@keras.saving.register_keras_serializable("sketchbatch")
class StaticFlatten(layers.Flatten):  # type: ignore[misc]  # Keras has no types
    """Flatten that exports as one Reshape.

    Keras's own asks for the number of rows first, which becomes six ONNX nodes of shape arithmetic. Those run on the
    CPU wherever the model runs, so that `--provider cuda`, which refuses any such node, would refuse the model.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))


def build(network: ArticleNetwork | ResidualNetwork, classes: int) -> keras.Model:
    """Builds a network: uint8 (rows, 28, 28) in, softmax scores (rows, classes) out."""
    bitmaps = keras.Input((28, 28), dtype="uint8", name="bitmaps")
    x = layers.Rescaling(1 / 255)(bitmaps)  # before the reshape: on 28x28x1 ONNX Runtime would scale pixel by pixel
    x = layers.Reshape((28, 28, 1))(x)
    x = _article(network, x) if isinstance(network, ArticleNetwork) else _residual(network, x)
    x = layers.Dense(classes, name=LOGITS)(x)  # (rows, classes)
    return keras.Model(bitmaps, layers.Softmax(name="scores")(x))


def with_logits(model: keras.Model) -> keras.Model:
    """The same network without its softmax, sharing its weights: what the loss is computed from."""
    return keras.Model(model.inputs, model.get_layer(LOGITS).output)


def start_from(model: keras.Model, earlier: keras.Model, columns: Sequence[int] | None) -> None:
    """Copies every layer's weights from a network of the same shape.

    Of the last layer only `columns`, the classes of `earlier` that `model` knows, in its order; None = it stays.
    """
    for layer, source in zip(model.layers, earlier.layers, strict=True):
        if layer.name != LOGITS:
            layer.set_weights(source.get_weights())
        elif columns is not None:
            layer.set_weights([weights[..., columns] for weights in source.get_weights()])


def _article(network: ArticleNetwork, x: keras.KerasTensor) -> keras.KerasTensor:
    """The article's: two convolutions and a max-pool, two dense layers each with L2, batch norm and dropout."""
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
    """Ours: few filters while the side is long, more as it halves, and a dense layer that knows where things are."""
    x = _conv(x, network.stem_filters, strides=network.stem_strides)  # (rows, 14, 14, stem)
    for filters in network.stage_filters:
        x = _conv(x, filters, strides=2)  # (rows, 7, 7, filters), then 4x4
        inner = _conv(x, filters)
        inner = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(inner)
        inner = layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, gamma_initializer="zeros")(inner)
        x = layers.ReLU()(layers.Add()([x, inner]))  # the zeros: each block begins as no change
    x = StaticFlatten()(x)  # (rows, 4 * 4 * filters): where something is matters, and pooling would forget it
    x = layers.Dropout(network.dropout)(x)
    x = layers.Dense(network.head_units, use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM)(x))
    return layers.Dropout(network.dropout)(x)


def _conv(x: keras.KerasTensor, filters: int, strides: int = 1) -> keras.KerasTensor:
    conv = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")
    return layers.ReLU()(layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM)(conv(x)))
