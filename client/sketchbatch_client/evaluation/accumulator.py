"""Counts how a model does, answer by answer, so that no row is kept: what is counted grows with classes only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..drawings.readers import label_of
from .labelled import UNKNOWN, Flags
from .predictions import Answer
from .stats.calibration import Calibration, Scores, are_shares, calibrate
from .stats.mcnemar import Rights
from .stats.metrics import Confusion, confuse

MISTAKES_KEPT = 24
"""The surest."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A drawing named wrong."""

    file: Path
    row: int
    """Of the file's bitmaps, from 0."""
    label: str
    """What it is."""
    said: str
    """What the model called it."""
    score: float
    """How sure it was, 0 to 1."""


class Tally:
    """What has been counted of one model's answers."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        shape = (len(labels), len(labels))
        self.confusion: Confusion = np.zeros(shape, np.int64)
        """All rows."""
        self.known: Confusion = np.zeros(shape, np.int64)
        """Those of which it is known whether the game recognised them."""
        self.recognized: Confusion = np.zeros(shape, np.int64)
        """Those that it did."""
        self.in_top_3 = 0
        """Rows with at most two scores above that of the true label."""
        self.calibration: Calibration | None = None
        """None also once scores came that are not shares."""
        self.mistakes: list[Mistake] = []
        """The surest, first of all; of those as sure, in the order of the rows."""
        self._has_calibration = True

    def add(self, answer: Answer, flags: Flags) -> Rights:
        """Counts the answer to some rows, with their flags; says which of them it named right."""
        scores = answer.result.scores
        assert scores is not None  # all were asked for
        true = self._labels.index(label_of(answer.file))
        truth = np.full(len(scores), true)
        said = answer.result.class_index[:, 0]
        self.confusion += confuse(truth, said, len(self._labels))
        for counted, of_these in ((self.known, flags != UNKNOWN), (self.recognized, flags == 1)):
            counted += confuse(truth[of_these], said[of_these], len(self._labels))
        self.in_top_3 += int(((scores > scores[:, true, None]).sum(axis=1) < 3).sum())
        self._calibrate(scores, truth)
        is_wrong: Rights = said != truth
        self._keep_surest(answer, is_wrong)
        return ~is_wrong

    def _calibrate(self, scores: Scores, truth: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        self._has_calibration = self._has_calibration and are_shares(scores)
        if not self._has_calibration:
            self.calibration = None
            return
        of_these = calibrate(scores, truth)
        self.calibration = self.calibration + of_these if self.calibration else of_these

    def _keep_surest(self, answer: Answer, is_wrong: Rights) -> None:
        file, _, result = answer
        wrong = np.flatnonzero(is_wrong)
        surest = wrong[np.argsort(-result.score[wrong, 0], kind="stable")][:MISTAKES_KEPT]
        found = [
            Mistake(
                file=file,
                row=answer.rows[place],
                label=label_of(file),
                said=self._labels[result.class_index[place, 0]],
                score=float(result.score[place, 0]),
            )
            for place in surest
        ]
        self.mistakes = sorted(self.mistakes + found, key=lambda mistake: -mistake.score)[:MISTAKES_KEPT]
