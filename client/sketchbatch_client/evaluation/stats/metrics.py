"""Compute metrics from a confusion matrix: five of the whole model, and those of each class.

A class that is neither the true nor the predicted label of any row is left out of the means over classes. Tests compare
the metrics with scikit-learn.
"""

from dataclasses import dataclass
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
    """The five metrics; 1 = perfect. The lowest Matthews correlation is -1; the other metrics are at least 0."""

    accuracy: float  # share of rows predicted correctly
    balanced_accuracy: float  # mean recall of the classes
    specificity: float  # mean over classes of: share of the rows of other classes that are not predicted as this class
    matthews_corrcoef: float  # multiclass Matthews correlation (Gorodkin 2004); 0 where it is undefined
    jaccard: float  # mean over classes of: hits / (rows of the class + rows predicted as the class - hits)


def confuse(true: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int) -> Confusion:
    """Return the number of rows for each pair of a true and a predicted class index; both arguments: (rows,)."""
    cell = true.astype(np.int64) * classes + predicted
    return np.bincount(cell, minlength=classes * classes).reshape(classes, classes)


def measure(confusion: Confusion) -> Metrics:
    """Return the five metrics of a confusion matrix that counts at least one row."""
    hits, actual, predicted, total = _counts(confusion)
    occurs = actual + predicted > 0
    correct = hits.sum()
    covariance = correct * total - (actual * predicted).sum()
    spread = np.sqrt(float(total**2 - (predicted**2).sum())) * np.sqrt(float(total**2 - (actual**2).sum()))
    return Metrics(
        accuracy=float(correct / total),
        balanced_accuracy=_mean(hits, actual),
        specificity=_mean((total - actual - predicted + hits)[occurs], (total - actual)[occurs]),
        matthews_corrcoef=float(covariance / spread) if spread else 0.0,
        jaccard=_mean(hits, actual + predicted - hits),
    )


def measure_each(confusion: Confusion) -> list[dict[str, Any]]:
    """Return the metrics of each class: precision, recall, specificity, and numbers of true and predicted rows.

    A metric is 0 where it is undefined.
    """
    hits, actual, predicted, total = _counts(confusion)
    figures = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, actual),
        "specificity": _ratio(total - actual - predicted + hits, total - actual),
        "rows": actual,
        "predicted": predicted,
    }
    return [
        dict(zip(figures, values, strict=True))
        for values in zip(*(figure.tolist() for figure in figures.values()), strict=True)
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


def _ratio(part: Confusion, whole: Confusion) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _mean(part: Confusion, whole: Confusion) -> float:
    """Return the mean ratio over the classes with a defined ratio, or 0."""
    defined = whole > 0
    return float((part[defined] / whole[defined]).mean()) if defined.any() else 0.0
