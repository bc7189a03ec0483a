"""Count a model's predictions, block by block; memory grows with the number of classes, not of rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sketchbatch.rejection import Rejection

from ..drawings.readers import label_of
from ..label_names import nfc
from .labelled import UNKNOWN, Flags
from .quality import Figures, MeasuredThreshold, Mistake, ModelQuality, Recognized
from .stats.calibration import Calibration, Scores, are_probabilities, calibrate
from .stats.mcnemar import Correct
from .stats.metrics import Confusion, confuse
from .stats.score_histogram import ScoreHistogram

MISTAKES_KEPT = 24  # most mistakes that are kept; mistakes with the highest scores have priority


class ScoredRows(NamedTuple):
    """Consecutive rows of one labelled file, with their scores."""

    file: Path  # `label_of(file)` is the true label of all rows
    first_row: int  # index in the file of the first of these rows, from 0
    scores: Scores

    @property
    def rows(self) -> range:
        """Indices of these rows in the file, from 0."""
        return range(self.first_row, self.first_row + len(self.scores))


class Accumulator:
    """Counts one model's correct and wrong predictions and computes its quality from the counts.

    `rejection` has the thresholds that the model file stores; None = it stores none.
    """

    def __init__(self, labels: Sequence[str], rejection: Rejection | None = None) -> None:
        self._thresholds = rejection.thresholds if rejection else ()
        self._histogram = ScoreHistogram([each.score for each in self._thresholds])
        self._labels = tuple(labels)
        self._class_of = {nfc(label): index for index, label in enumerate(labels)}
        shape = (len(labels), len(labels))
        self._confusion: Confusion = np.zeros(shape, np.int64)
        self._known: Confusion = np.zeros(shape, np.int64)  # rows of which it is known whether the game recognised them
        self._recognized: Confusion = np.zeros(shape, np.int64)
        self._in_top_3 = 0
        self._calibration: Calibration | None = None
        self._has_probabilities = True
        self._mistakes: list[Mistake] = []

    def add(self, scored: ScoredRows, flags: Flags) -> Correct:
        """Count some rows and return which of them are classified correctly; `flags` has one flag per row."""
        scores, classes = scored.scores, len(self._labels)
        true_class = self._class_of[label_of(scored.file)]
        truth = np.full(len(scores), true_class)
        predicted = scores.argmax(axis=1)
        self._confusion += confuse(truth, predicted, classes)
        for counted, is_counted in ((self._known, flags != UNKNOWN), (self._recognized, flags == 1)):
            counted += confuse(truth[is_counted], predicted[is_counted], classes)
        self._in_top_3 += int(((scores > scores[:, true_class, None]).sum(axis=1) < 3).sum())
        self._calibrate(scores, truth)
        is_correct: Correct = predicted == truth
        self._histogram.add(scores.max(axis=1), is_correct)
        self._keep_mistakes(scored, predicted, np.flatnonzero(~is_correct))
        return is_correct

    def quality(self) -> ModelQuality:
        """Return the quality of the model on all rows that were added, at least one."""
        return ModelQuality(
            labels=self._labels,
            confusion=self._confusion,
            figures=Figures.of(self._confusion),
            recognized=self._recognized_figures(),
            top_3=self._in_top_3 / int(self._confusion.sum()),
            calibration=self._calibration,
            mistakes=tuple(self._mistakes),
            risk_coverage=self._histogram.curve(),
            thresholds=self._measured_thresholds(),
        )

    def _measured_thresholds(self) -> tuple[MeasuredThreshold, ...]:
        all_rows = int(self._confusion.sum())
        return tuple(
            MeasuredThreshold(stored=stored, coverage=rows / all_rows, accuracy=correct / rows if rows else None)
            for stored, (rows, correct) in zip(self._thresholds, self._histogram.kept, strict=True)
        )

    def _recognized_figures(self) -> Recognized | None:
        """Return the metrics of recognised drawings; None if none, or all with a flag, were recognised."""
        if not self._recognized.any() or (self._recognized == self._known).all():
            return None
        return Recognized(known=Figures.of(self._known), recognized=Figures.of(self._recognized))

    def _calibrate(self, scores: Scores, truth: NDArray[np.int64]) -> None:
        self._has_probabilities = self._has_probabilities and are_probabilities(scores)
        if not self._has_probabilities:
            self._calibration = None
            return
        counted = calibrate(scores, truth)
        self._calibration = self._calibration + counted if self._calibration else counted

    def _keep_mistakes(self, scored: ScoredRows, predicted: NDArray[np.int64], wrong: NDArray[np.int64]) -> None:
        best_score = scored.scores.max(axis=1)
        candidates = wrong[np.argsort(-best_score[wrong], kind="stable")][:MISTAKES_KEPT]
        found = [
            Mistake(
                file=scored.file,
                row=scored.rows[index],
                label=self._labels[self._class_of[label_of(scored.file)]],
                predicted=self._labels[predicted[index]],
                score=float(best_score[index]),
            )
            for index in candidates
        ]
        self._mistakes = sorted(self._mistakes + found, key=lambda mistake: -mistake.score)[:MISTAKES_KEPT]
