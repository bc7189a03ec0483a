"""Name the input and the output of a model file that an engine binds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Names of two tensors in a model file; files from other tools have other names."""

    input: str = "bitmaps"  # uint8, (rows, 28, 28)
    scores: str = "scores"  # float32, (rows, classes)


OUR_NAMES = TensorNames()
"""The names that `sketchbatch-train` writes."""
