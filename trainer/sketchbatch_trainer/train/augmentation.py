"""Moves drawings a little, differently each time: mirror, turn, scale, slant, shift, in one resampling."""

import tensorflow as tf

from .recipes import Augmentation

_MIDDLE_PX = 13.5


def augment(bitmaps: tf.Tensor, how: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """Moves each bitmap by its own amount.

    Args:
        bitmaps: uint8, (rows, 28, 28), 0 = paper, 255 = ink.
        how: How far.
        seed: int32, (2,): the same seed moves the same rows in the same way.

    Returns:
        uint8, (rows, 28, 28), bilinear between pixels, paper from beyond the edge.
    """
    rows = tf.shape(bitmaps)[0]
    random = tf.random.stateless_uniform((7, rows), seed, -1.0, 1.0)
    mirror = tf.where(random[0] < 0, -1.0, 1.0) if how.flips else tf.ones(rows)
    angle, shear = random[1] * how.rotate_rad, random[4] * how.shear
    wide = tf.exp(random[2] * how.scale)
    high = wide * tf.exp(random[3] * how.stretch)
    # Where each pixel comes from: mirrored, then slanted, scaled and turned around the middle, then moved.
    xx, xy = tf.cos(angle) * wide * mirror, -tf.sin(angle) * high + shear * wide
    yx, yy = tf.sin(angle) * wide * mirror, tf.cos(angle) * high
    x0 = _MIDDLE_PX * (1 - xx - xy) + random[5] * how.shift_px
    y0 = _MIDDLE_PX * (1 - yx - yy) + random[6] * how.shift_px
    none = tf.zeros(rows)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(bitmaps, tf.float32)[..., None],
        transforms=tf.stack([xx, xy, x0, yx, yy, y0, none, none], axis=1),
        output_shape=tf.constant([28, 28]),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    return tf.cast(tf.round(moved[..., 0]), tf.uint8)
