"""Describe how good a model is on labelled drawings; all metrics are computed from counts, not from stored rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sketchbatch.rejection import RejectionThreshold

from .stats.calibration import Calibration
from .stats.intervals import Measured, wilson, with_intervals
from .stats.metrics import Confusion, Metrics, confused_pairs, measure, measure_each
from .stats.rejection import RiskCoverage

MIN_RECOGNIZED_ROWS = 100
"""Fewest recognised drawings whose metrics a page shows; with fewer drawings, intervals are too wide to be useful."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A drawing that the model classified wrongly."""

    file: Path
    row: int
    """Row in the file's bitmaps, from 0."""
    label: str
    """True label."""
    predicted: str
    """Label with the highest score."""
    score: float
    """Score of the predicted label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The five metrics of `Metrics`, measured on `rows` drawings, with their intervals."""

    rows: int
    measured: dict[str, Measured]
    """Metrics of `Metrics` by name, with intervals."""

    @classmethod
    def of(cls, confusion: Confusion) -> "Figures":
        """Compute the metrics of a confusion matrix that counts at least one row."""
        return cls(rows=int(confusion.sum()), measured=with_intervals(confusion))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """Compares the metrics on the drawings that the game recognised with the metrics on these and the unrecognised."""

    known: Figures
    """Metrics on all drawings of which it is known whether the game recognised them."""
    recognized: Figures
    """Metrics on the recognised drawings only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredThreshold:
    """A threshold that the model file stores, and what it does to the drawings of an evaluation."""

    stored: RejectionThreshold
    coverage: float
    """Share of the drawings that the threshold keeps, 0 to 1."""
    accuracy: float | None
    """Share of the kept drawings whose label is correct; None = no drawing is kept."""


@dataclass(frozen=True, kw_only=True)
class ModelQuality:
    """How good one model is on one set of labelled drawings."""

    labels: tuple[str, ...]
    """Labels of the model, by class index."""
    confusion: Confusion
    """(classes, classes), rows = true class, columns = predicted class."""
    figures: Figures
    """Metrics on all drawings."""
    recognized: Recognized | None
    """None if no flag is known, or if every drawing was recognised."""
    top_3: float
    """Share of rows whose label has one of the three highest scores."""
    calibration: Calibration | None
    """None if the scores are not probabilities."""
    mistakes: tuple[Mistake, ...]
    """Mistakes with the highest scores, highest first."""
    risk_coverage: RiskCoverage
    """Accuracy of the drawings with the highest scores; scores in one bin of `ScoreHistogram` count as equal."""
    thresholds: tuple[MeasuredThreshold, ...] = ()
    """The thresholds that the model file stores, by falling coverage; empty if it stores none."""

    @property
    def metrics(self) -> Metrics:
        """The five metrics on all drawings; NaN = not defined."""
        return measure(self.confusion)

    @property
    def shown_recognized(self) -> Recognized | None:
        """`recognized` if at least MIN_RECOGNIZED_ROWS drawings were recognised, else None."""
        is_shown = self.recognized and self.recognized.recognized.rows >= MIN_RECOGNIZED_ROWS
        return self.recognized if is_shown else None

    @property
    def tested_labels(self) -> int:
        """Number of classes that have drawings; the means over classes leave out all others."""
        return int(np.count_nonzero(self.confusion.sum(axis=1)))

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """Figures of each class by label: `recall_interval`, `precision_interval` and the figures of `measure_each`.

        The intervals are Wilson's, as (low, high); None = the metric is not defined.
        """
        figures = measure_each(self.confusion)
        for share, number in (("recall", "rows"), ("precision", "predicted")):
            low, high = wilson(*np.array([[own[share] or 0.0, own[number]] for own in figures]).T)
            for own, *interval in zip(figures, low.tolist(), high.tolist(), strict=True):
                own[f"{share}_interval"] = tuple(interval) if own[number] else None
        return dict(zip(self.labels, figures, strict=True))

    @property
    def tested_classes(self) -> dict[str, dict[str, Any]]:
        """The figures of `per_class` of the classes that have drawings."""
        return {label: own for label, own in self.per_class.items() if own["rows"]}

    def confused_pairs(self, limit: int) -> list[dict[str, Any]]:
        """Return at most `limit` confused pairs of classes, those with the most rows first."""
        return [
            {
                "label": self.labels[true],
                "predicted": self.labels[predicted],
                "rows": int(self.confusion[true, predicted]),
            }
            for true, predicted in confused_pairs(self.confusion, limit)
        ]
