"""Builds the networks. Scaling and softmax are part of them: uint8 bitmaps in, scores out."""

import math

import keras
from keras import layers

from .recipes import Recipe


@keras.saving.register_keras_serializable("sketchbatch")
class StaticFlatten(layers.Flatten):  # type: ignore[misc]  # Keras has no types
    """Flatten that exports as one Reshape.

    Keras's own asks for the number of rows first, which becomes six ONNX nodes of shape arithmetic. Those run on the
    CPU wherever the model runs, so that `--provider cuda`, which refuses any such node, would refuse the model.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.reshape(inputs, (-1, math.prod(inputs.shape[1:])))


def article_cnn(recipe: Recipe, classes: int) -> keras.Model:
    """The article's CNN: two convolutions and a max-pool, two dense layers each with L2, batch norm and dropout."""
    bitmaps = keras.Input((28, 28), dtype="uint8", name="bitmaps")
    x = layers.Rescaling(1 / 255)(bitmaps)
    x = layers.Reshape((28, 28, 1))(x)
    x = layers.Conv2D(recipe.conv_filters[0], 3, activation="relu")(x)  # (rows, 26, 26, 32)
    x = layers.Conv2D(recipe.conv_filters[1], 3, activation="relu")(x)  # (rows, 24, 24, 64)
    x = layers.MaxPooling2D(2)(x)  # (rows, 12, 12, 64)
    x = StaticFlatten()(x)  # (rows, 9216)
    for units, dropout in zip(recipe.dense_units, recipe.dropout, strict=True):
        x = layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(recipe.l2))(x)
        x = layers.BatchNormalization()(x)
        x = layers.Dropout(dropout)(x)
    scores = layers.Dense(classes, activation="softmax", name="scores")(x)  # (rows, classes)
    return keras.Model(bitmaps, scores, name=recipe.name)
