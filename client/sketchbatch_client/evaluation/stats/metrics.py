"""Says how good predictions are: the article's five metrics, and each class's own, from a confusion matrix.

Macro averages run over the classes that occur, as labels or as predictions. scikit-learn is the reference (tests).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]  # (classes, classes): rows = true class, columns = predicted class


TITLES = {
    "accuracy": ("Accuracy", "drawings named right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "specificity": ("Specificity", "others not taken for the class, mean"),
    "matthews_corrcoef": ("Matthews correlation", "1 = perfect, 0 = chance"),
    "jaccard": ("Jaccard", "hits / (true + predicted - hits), mean"),
}
"""Of the five, as pages call them, and what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The five numbers; all but the Matthews correlation (-1 to 1) run from 0 to 1, 1 = perfect."""

    accuracy: float
    """Share of rows predicted right."""

    balanced_accuracy: float
    """Mean recall of the classes."""

    specificity: float
    """Mean over classes of: rows of other classes that were not predicted as this one."""

    matthews_corrcoef: float
    """Multiclass Matthews correlation (Gorodkin 2004); 0 where it is undefined."""

    jaccard: float
    """Mean over classes of: hits / (rows of the class + rows predicted as it - hits)."""


def confuse(true: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int) -> Confusion:
    """Counts rows by true and predicted class index, both (rows,)."""
    cell = true.astype(np.int64) * classes + predicted
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes)


def measure(confusion: Confusion) -> Metrics:
    """The five metrics of a confusion matrix with at least one row counted."""
    hits, actual, predicted, total = _counts(confusion)
    occurs = actual + predicted > 0
    correct = hits.sum()
    joint = correct * total - (actual * predicted).sum()
    spread = np.sqrt(float(total**2 - (predicted**2).sum())) * np.sqrt(float(total**2 - (actual**2).sum()))
    return Metrics(
        accuracy=float(correct / total),
        balanced_accuracy=_mean(hits, actual),
        specificity=_mean((total - actual - predicted + hits)[occurs], (total - actual)[occurs]),
        matthews_corrcoef=float(joint / spread) if spread else 0.0,
        jaccard=_mean(hits, actual + predicted - hits),
    )


def measure_each(confusion: Confusion) -> list[dict[str, float]]:
    """For each class: precision, recall, specificity (0 where undefined), its rows, and the rows predicted as it."""
    hits, actual, predicted, total = _counts(confusion)
    precision, recall = _ratio(hits, predicted), _ratio(hits, actual)
    specificity = _ratio(total - actual - predicted + hits, total - actual)
    return [
        {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "specificity": float(specificity[index]),
            "rows": int(actual[index]),
            "predicted": int(predicted[index]),
        }
        for index in range(len(confusion))
    ]


def confused_pairs(confusion: Confusion, most: int) -> list[tuple[int, int]]:
    """The pairs of (true, predicted) class that are confused, most rows first; at most so many."""
    wrong = confusion - np.diag(np.diagonal(confusion))
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = zip(*np.unravel_index(pairs, wrong.shape), strict=True)
    return [(int(true), int(predicted)) for true, predicted in found if wrong[true, predicted]]


def _counts(confusion: Confusion) -> tuple[Confusion, Confusion, Confusion, int]:
    """Hits, rows of each class, rows predicted as it, all rows."""
    return np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0), int(confusion.sum())


def _ratio(part: Confusion, whole: Confusion) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _mean(part: Confusion, whole: Confusion) -> float:
    """Mean ratio over the classes for which it is defined; 0 if for none."""
    defined = whole > 0
    return float((part[defined] / whole[defined]).mean()) if defined.any() else 0.0
