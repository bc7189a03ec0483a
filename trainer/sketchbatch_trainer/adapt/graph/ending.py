"""Find out what the scores of a model are: probabilities, their logarithms, independent values or logits."""

from enum import StrEnum

import numpy as np
import onnx

from ...errors import AdaptRefused
from ..options import Softmax
from ..source import Values
from .batch import NOT_FINITE

_TOLERANCE = 1e-2  # for the sum of a row of probabilities; float16 needs that much
_LINEAR = (
    "Add",
    "Conv",
    "Gemm",
    "MatMul",
    "Mul",
    "Sub",
)  # logits, even if all are in 0..1
_PASSED_THROUGH = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose")  # do not change any value


class Ending(StrEnum):
    """What the scores of a row are; the names are those of `Model.score_kind` of the service."""

    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log-probabilities"
    INDEPENDENT = "independent"
    LOGITS = "logits"


def probability_operator(ending: Ending, softmax: Softmax) -> str:
    """Return the ONNX operator to add after scores of this kind: Softmax, Exp, or empty for none."""
    if softmax is Softmax.YES:
        return "Softmax"
    operators = {Ending.LOGITS: "Softmax", Ending.LOG_PROBABILITIES: "Exp"}
    return operators.get(ending, "") if softmax is Softmax.AUTO else ""


def find_ending(graph: onnx.ModelProto, output: str, scores: Values) -> Ending:
    """Return what `scores`, (rows, classes) of many different drawings, are; `output` is their name in the graph.

    Raises:
        AdaptRefused: A score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise AdaptRefused(NOT_FINITE)
    values = scores.astype(np.float64)
    is_share = values.min() >= -_TOLERANCE / 100 and values.max() <= 1 + _TOLERANCE
    if is_share and _sums_to_one(values):
        return Ending.PROBABILITIES
    if values.max() <= _TOLERANCE and _sums_to_one(np.exp(values)):
        return Ending.LOG_PROBABILITIES
    return Ending.INDEPENDENT if is_share and last_operator(graph, output) not in _LINEAR else Ending.LOGITS


def last_operator(graph: onnx.ModelProto, output: str) -> str:
    """Return the operator that computes `output`, except operators that only move or convert values."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    name = output
    while (node := makers.get(name)) and node.op_type in _PASSED_THROUGH:
        name = node.input[0]
    return node.op_type if node else ""


def end(scores: Values, operator: str) -> Values:
    """Return what `operator` (Softmax, Exp or empty) makes of scores, (rows, classes), in float64."""
    values = scores.astype(np.float64)
    if operator == "Exp":
        return np.exp(values)
    if operator == "Softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return values


def _sums_to_one(values: Values) -> bool:
    return bool(np.abs(values.sum(axis=1) - 1).max() <= _TOLERANCE)
