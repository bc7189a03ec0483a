"""Augment drawings: mirror, rotate, scale, shear and shift them at random, in one resampling."""

import tensorflow as tf

from .recipes import Augmentation

_CENTRE_PX = 13.5


def augment(bitmaps: tf.Tensor, augmentation: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """Transform each bitmap by its own random amount.

    Args:
        bitmaps: uint8, (rows, 28, 28), 0 = paper, 255 = ink.
        augmentation: Limits of the random transformations.
        seed: int32, (2,): the same seed transforms the same rows in the same way.

    Returns:
        uint8, (rows, 28, 28), interpolated bilinearly; pixels from outside the bitmap are paper.
    """
    rows = tf.shape(bitmaps)[0]
    random = tf.random.stateless_uniform((7, rows), seed, -1.0, 1.0)
    mirror = tf.where(random[0] < 0, -1.0, 1.0) if augmentation.flips else tf.ones(rows)
    angle, shear = random[1] * augmentation.rotate_rad, random[4] * augmentation.shear
    width = tf.exp(random[2] * augmentation.scale)
    height = width * tf.exp(random[3] * augmentation.stretch)
    # The matrix gives the source coordinates of each pixel: mirror, shear, scale and rotate at the centre, then shift.
    xx, xy = tf.cos(angle) * width * mirror, -tf.sin(angle) * height + shear * width
    yx, yy = tf.sin(angle) * width * mirror, tf.cos(angle) * height
    x0 = _CENTRE_PX * (1 - xx - xy) + random[5] * augmentation.shift_px
    y0 = _CENTRE_PX * (1 - yx - yy) + random[6] * augmentation.shift_px
    zeros = tf.zeros(rows)
    transformed = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(bitmaps, tf.float32)[..., None],
        transforms=tf.stack([xx, xy, x0, yx, yy, y0, zeros, zeros], axis=1),
        output_shape=tf.constant([28, 28]),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    return tf.cast(tf.round(transformed[..., 0]), tf.uint8)
