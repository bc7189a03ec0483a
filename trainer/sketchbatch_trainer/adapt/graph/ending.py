"""Find out what the scores of a model are: probabilities, their logarithms, independent values or logits."""

from enum import StrEnum

import numpy as np

from ...errors import AdaptRefused
from ..options import Softmax
from ..source import Values
from .batch import NOT_FINITE

_SUM_TOLERANCE = 1e-2  # for the sum of a row of probabilities; float16 needs that much
_RANGE_TOLERANCE = 1e-4  # for the limits 0 and 1, which rounding may exceed; both are those of the service


class Ending(StrEnum):
    """What the scores of a row are; the names are those of `Model.score_kind` of the service."""

    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log-probabilities"
    INDEPENDENT = "independent"
    LOGITS = "logits"


def probability_operator(ending: Ending, softmax: Softmax, classes: int) -> str:
    """Return the ONNX operator to add after scores of this kind: Softmax, Sigmoid, Exp, or empty for none.

    A single class has no other class to share a sum of 1 with: its logits get a sigmoid.

    Raises:
        AdaptRefused: A softmax is wanted for a single class.
    """
    if softmax is Softmax.YES and classes == 1:
        raise AdaptRefused(
            "--softmax yes does not fit a model with one class: its softmax is always 1; leave --softmax out, "
            "which adds a sigmoid to logits"
        )
    if softmax is Softmax.YES:
        return "Softmax"
    operators = {Ending.LOGITS: "Sigmoid" if classes == 1 else "Softmax", Ending.LOG_PROBABILITIES: "Exp"}
    return operators.get(ending, "") if softmax is Softmax.AUTO else ""


def find_ending(scores: Values) -> Ending:
    """Return what `scores`, (rows, classes) of many different drawings, are.

    The scores alone decide, as in the service. Only for a single class, numbers near 0 are logits rather than the
    logarithms of probabilities that are always 1.

    Raises:
        AdaptRefused: A score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise AdaptRefused(NOT_FINITE)
    values = scores.astype(np.float64)
    if values.min() >= -_RANGE_TOLERANCE and values.max() <= 1 + _SUM_TOLERANCE and _sums_to_one(values):
        return Ending.PROBABILITIES
    if values.min() >= -_RANGE_TOLERANCE and values.max() <= 1 + _RANGE_TOLERANCE:
        return Ending.INDEPENDENT
    if values.shape[1] > 1 and values.max() <= _SUM_TOLERANCE and _sums_to_one(np.exp(values)):
        return Ending.LOG_PROBABILITIES
    return Ending.LOGITS


def end(scores: Values, operator: str) -> Values:
    """Return what `operator` (Softmax, Sigmoid, Exp or empty) makes of scores, (rows, classes), in float64."""
    values = scores.astype(np.float64)
    if operator == "Exp":
        return np.exp(values)
    if operator == "Sigmoid":
        return (1 + np.tanh(values / 2)) / 2  # equal to 1 / (1 + exp(-values)), without overflow
    if operator == "Softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return values


def _sums_to_one(values: Values) -> bool:
    return bool(np.abs(values.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)
