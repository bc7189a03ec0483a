"""Prepare the values of quality.html.j2, the part of a page that `evaluate --html` and the trainer's report share."""

from collections.abc import Callable
from typing import Any

from . import figures
from .quality import Mistake, ModelQuality
from .stats.calibration import Calibration
from .stats.intervals import RESAMPLES
from .stats.metrics import TITLES

_CLASSES_SHOWN = 40  # most rows of the class table that are visible before a click
_PAIRS_SHOWN = 12


def quality_values(
    quality: ModelQuality, show: Callable[[Mistake], tuple[str, str]], other: ModelQuality | None = None
) -> dict[str, Any]:
    """Return the values of quality.html.j2.

    `other` is the quality of a second model on the same drawings; the page shows only its recall of each class.
    `show` returns the picture of a mistake, as the source of an <img> element, and its origin as text.
    """
    occurs = quality.confusion.any(axis=0) | quality.confusion.any(axis=1)
    is_large = int(occurs.sum()) > figures.MAX_WRITTEN_CLASSES
    calibration = quality.calibration
    return {
        "quality": quality,
        "titles": {name: title for name, (title, _) in TITLES.items()},
        "cards": [(*TITLES[name], measured) for name, measured in quality.figures.measured.items()],
        "resamples": RESAMPLES,
        "tested_labels": quality.tested_labels,
        "recognized": quality.shown_recognized,
        "confusion": figures.confusion_matrix(quality.confusion, quality.labels),
        "overview": figures.confusion_overview(quality.confusion) if is_large else "",
        "pairs": quality.confused_pairs(_PAIRS_SHOWN),
        "classes": _classes(quality, other),
        "classes_shown": _CLASSES_SHOWN,
        "reliability": figures.reliability(calibration) if calibration else "",
        "calibration_verdict": _verdict(calibration, quality.metrics.accuracy) if calibration else "",
        "risk_coverage": figures.risk_coverage(quality.risk_coverage, quality.thresholds),
        "mistake_count": int(quality.confusion.sum() - quality.confusion.trace()),
        "mistakes": [(mistake, *show(mistake)) for mistake in quality.mistakes],
    }


def _classes(quality: ModelQuality, other: ModelQuality | None) -> list[dict[str, Any]]:
    """Return the metrics of each class that has drawings; if there are many classes, the lowest recall is first."""
    pairs = quality.confused_pairs(quality.confusion.size)
    confused_with = {pair["label"]: pair["predicted"] for pair in reversed(pairs)}
    others = other.per_class if other else {}
    rows = [
        {**own, "label": label, "other": others.get(label), "confused_with": confused_with.get(label, "")}
        for label, own in quality.tested_classes.items()
    ]
    return rows if len(rows) <= _CLASSES_SHOWN else sorted(rows, key=lambda row: float(row["recall"]))


def _verdict(calibration: Calibration, accuracy: float) -> str:
    """Compare the mean score with the accuracy; a difference below one percentage point is ignored."""
    gap = calibration.mean_confidence - accuracy
    if abs(gap) < 0.01:
        return "On average, the scores agree with the accuracy."
    return f"On average, the scores are {'higher' if gap > 0 else 'lower'} than the accuracy."
