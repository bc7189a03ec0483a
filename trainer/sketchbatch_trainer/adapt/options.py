"""Closed sets of values of the flags of `sketchbatch-train adapt`; this module imports neither onnx nor NumPy."""

from enum import StrEnum


class Layout(StrEnum):
    """The shape of one row of a model's input."""

    PLAIN = "plain"
    FLAT = "flat"
    NCHW = "nchw"
    NHWC = "nhwc"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one row."""
        shapes = {Layout.PLAIN: (28, 28), Layout.FLAT: (784,), Layout.NCHW: (1, 28, 28), Layout.NHWC: (28, 28, 1)}
        return shapes[self]


class Softmax(StrEnum):
    """Whether the adapted model turns scores into probabilities."""

    AUTO = "auto"
    """Logits by a softmax, those of a single class by a sigmoid, logarithms by the exponential function."""
    YES = "yes"
    """By a softmax, whatever the scores are; refused for a single class."""
    NO = "no"
    """The scores stay as they are."""
