"""Tell what the scores of a model are: probabilities, their logarithms, independent shares or logits."""

from enum import StrEnum

import numpy as np

from ..arrays import Scores

_SUM_TOLERANCE = 1e-2  # for the sum of a row: the tolerance for float16 in `engines.parity`
_RANGE_TOLERANCE = 1e-4  # for the limits 0 and 1, which rounding may exceed


class ScoreKind(StrEnum):
    """Kinds of scores, as `Model.score_kind` in classifier.proto defines them; a higher score is a better match."""

    PROBABILITIES = "probabilities"  # 0 to 1, and the scores of a row sum to 1, as after a softmax
    LOG_PROBABILITIES = "log-probabilities"  # logarithms of such scores, as after a log-softmax
    INDEPENDENT = "independent"  # 0 to 1 each, with any sum, as after a sigmoid
    LOGITS = "logits"  # any finite numbers


def kind_of(scores: Scores) -> ScoreKind:
    """Return the kind that fits all finite rows of `scores`, (rows, classes); LOGITS if no row is finite."""
    scores = scores[np.isfinite(scores).all(axis=1)]
    if not len(scores):
        return ScoreKind.LOGITS
    if scores.min() >= -_RANGE_TOLERANCE and scores.max() <= 1 + _RANGE_TOLERANCE:
        return ScoreKind.PROBABILITIES if _each_row_sums_to_1(scores) else ScoreKind.INDEPENDENT
    if scores.max() <= _RANGE_TOLERANCE and _each_row_sums_to_1(np.exp(scores)):
        return ScoreKind.LOG_PROBABILITIES
    return ScoreKind.LOGITS


def _each_row_sums_to_1(scores: Scores) -> bool:
    return bool((np.abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())
