"""Compute metrics from a confusion matrix: five of the whole model, and those of each class.

The means over classes leave out classes without drawings: how good the model is on them is unknown. NaN or None stands
for a metric that is not defined, and `reasons` for the cause. Tests compare the metrics with scikit-learn.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]  # (classes, classes): rows = true class, columns = predicted class

TITLES = {
    "accuracy": ("Accuracy", "share of drawings classified correctly"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "specificity": ("Specificity", "share of other drawings not predicted as the class, mean"),
    "matthews_corrcoef": ("Matthews correlation", "1 = perfect, 0 = chance"),
    "jaccard": ("Jaccard", "hits / (true + predicted - hits), mean"),
}
"""Title and meaning of each metric on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The five metrics; 1 = perfect, NaN = not defined, see `reasons`. Only the Matthews correlation can be below 0."""

    accuracy: float
    """Share of rows predicted correctly."""
    balanced_accuracy: float
    """Mean recall of the classes that have drawings."""
    specificity: float
    """Mean over these classes of: share of the rows of other classes not predicted as this class."""
    matthews_corrcoef: float
    """Multiclass Matthews correlation (Gorodkin 2004)."""
    jaccard: float
    """Mean over these classes of: hits / (rows of the class + rows predicted as the class - hits)."""

    @property
    def defined(self) -> dict[str, float]:
        """The metrics that are defined, by name."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


def confuse(true: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int) -> Confusion:
    """Return the number of rows for each pair of a true and a predicted class index; both arguments: (rows,)."""
    cell = true.astype(np.int64) * classes + predicted
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes)


def measure(confusion: Confusion) -> Metrics:
    """Return the five metrics of a confusion matrix that counts at least one row."""
    hits, actual, predicted, total = _counts(confusion)
    has_rows = actual > 0
    correct = hits.sum()
    covariance = correct * total - (actual * predicted).sum()
    spread = np.sqrt(float(total**2 - (predicted**2).sum())) * np.sqrt(float(total**2 - (actual**2).sum()))
    return Metrics(
        accuracy=float(correct / total),
        balanced_accuracy=_mean(hits, actual),
        specificity=_mean((total - actual - predicted + hits)[has_rows], (total - actual)[has_rows]),
        matthews_corrcoef=float(covariance / spread) if spread else math.nan,
        jaccard=_mean(hits[has_rows], (actual + predicted - hits)[has_rows]),
    )


def reasons(confusion: Confusion) -> dict[str, str]:
    """Return why a metric of `Metrics` is not defined, by name."""
    if np.count_nonzero(confusion.sum(axis=1)) == 1:
        other = "no drawing of another class"
        return {"specificity": other, "matthews_corrcoef": other}
    if np.count_nonzero(confusion.sum(axis=0)) == 1:
        return {"matthews_corrcoef": "all drawings are predicted as one class"}
    return {}


def measure_each(confusion: Confusion) -> list[dict[str, Any]]:
    """Return the metrics of each class: precision, recall, specificity, and numbers of true and predicted rows.

    A metric is None where it is not defined; then `not_defined` has the reason under the metric's name.
    """
    hits, actual, predicted, total = _counts(confusion)
    shares = {
        "precision": (hits, predicted, "no drawing is predicted as the class"),
        "recall": (hits, actual, "no drawing of the class"),
        "specificity": (total - actual - predicted + hits, total - actual, "no drawing of another class"),
    }
    return [
        {
            **{
                name: float(part[index] / whole[index]) if whole[index] else None
                for name, (part, whole, _) in shares.items()
            },
            "rows": int(actual[index]),
            "predicted": int(predicted[index]),
            "not_defined": {name: reason for name, (_, whole, reason) in shares.items() if not whole[index]},
        }
        for index in range(len(confusion))
    ]


def confused_pairs(confusion: Confusion, limit: int) -> list[tuple[int, int]]:
    """Return at most `limit` pairs of confused class indices (true, predicted); the most frequent pair is first."""
    wrong = confusion - np.diag(np.diagonal(confusion))
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    found = zip(*np.unravel_index(pairs, wrong.shape), strict=True)
    return [(int(true), int(predicted)) for true, predicted in found if wrong[true, predicted]]


def _counts(confusion: Confusion) -> tuple[Confusion, Confusion, Confusion, int]:
    """Return for each class the numbers of hits, true rows and predicted rows, and then the number of all rows."""
    return np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0), int(confusion.sum())


def _mean(part: Confusion, whole: Confusion) -> float:
    """Return the mean ratio over the classes with a defined ratio; NaN if there is none."""
    defined = whole > 0
    return float((part[defined] / whole[defined]).mean()) if defined.any() else math.nan
