"""Builds the networks. Scaling and softmax are part of them: uint8 bitmaps in, scores out."""

import keras
from keras import layers

from .recipes import Recipe


def article_cnn(recipe: Recipe, classes: int) -> keras.Model:
    """The article's CNN: two convolutions and a max-pool, two dense layers each with L2, batch norm and dropout."""
    bitmaps = keras.Input((28, 28), dtype="uint8", name="bitmaps")
    x = layers.Rescaling(1 / 255)(bitmaps)
    x = layers.Reshape((28, 28, 1))(x)
    x = layers.Conv2D(recipe.conv_filters[0], 3, activation="relu")(x)  # (rows, 26, 26, 32)
    x = layers.Conv2D(recipe.conv_filters[1], 3, activation="relu")(x)  # (rows, 24, 24, 64)
    x = layers.MaxPooling2D(2)(x)  # (rows, 12, 12, 64)
    x = layers.Flatten()(x)  # (rows, 9216)
    for units, dropout in zip(recipe.dense_units, recipe.dropout, strict=True):
        x = layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(recipe.l2))(x)
        x = layers.BatchNormalization()(x)
        x = layers.Dropout(dropout)(x)
    scores = layers.Dense(classes, activation="softmax", name="scores")(x)  # (rows, classes)
    return keras.Model(bitmaps, scores, name=recipe.name)
