"""Read a model that was made elsewhere, with its weights, and refuse files that are no model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Source:
    """A model as its tool saved it."""

    graph: onnx.ModelProto
    """The model as one ONNX graph: all weights are in it, its input and outputs are those of the original."""
    scores: Callable[[NDArray[Any]], NDArray[Any]] | None
    """The original model: returns the scores of input rows of the original's own shape and type.

    None = the graph is the original, so ONNX Runtime computes the scores with it.
    """
    description: str
    """What the model is, for messages and for the metadata, such as "Keras model"."""
