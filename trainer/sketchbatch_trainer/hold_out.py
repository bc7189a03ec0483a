"""Decide which drawings train, which are for validation and which are held out for the test.

The decision depends only on the bitmap (BLAKE2b of the 784 bytes). Every run, machine and choice of classes therefore
makes the same decision about a drawing, and copies of one bitmap are in the same split.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.evaluation.training_digests import Digests

TEST_PERCENT = 10
VALIDATION_PERCENT = 10
MOST_FOLDS = 10
"""Largest number of folds of a cross-validation."""

TRAIN, VALIDATION, TEST = range(3)
"""The numbers of the splits."""

Splits = NDArray[np.int8]  # (rows,), TRAIN, VALIDATION or TEST


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Which drawings a training leaves out; by default a tenth for validation and a tenth for the test."""

    fold: int = 0
    """Fold that is held out for the test, from 1; the other folds train. 0 = no cross-validation."""
    folds: int = 0
    """Number of folds; 0 = no cross-validation."""
    is_nothing: bool = False
    """True = all drawings train."""

    @classmethod
    def parse(cls, text: str) -> "HoldOut":
        """Return the division that a text names: "test", "none", or a fold such as "2/5".

        Raises:
            ValueError: The text names none of these; the message states what was expected.
        """
        if text in ("test", "none"):
            return cls(is_nothing=text == "none")
        fold, _, folds = text.partition("/")
        if fold.isdecimal() and folds.isdecimal() and 2 <= int(folds) <= MOST_FOLDS and 1 <= int(fold) <= int(folds):
            return cls(int(fold), int(folds))
        raise ValueError(f"must be test, none, or one of 2 to {MOST_FOLDS} folds, such as 2/5; got {text!r}")

    def __str__(self) -> str:
        return "none" if self.is_nothing else f"{self.fold}/{self.folds}" if self.folds else "test"

    def assign(self, digests: Digests, *, needs_validation: bool) -> Splits:
        """Return the split of each drawing of a class by the digest of its bitmap.

        A fold is a fifth, or the like, of the drawings. The other folds train; with `needs_validation`, a tenth of
        their drawings is for validation instead. By default, every split receives at least one drawing if the class
        has three different ones.
        """
        if self.is_nothing:
            return np.full(len(digests), TRAIN, np.int8)
        percent = digests % 100
        if self.folds:
            others = np.where((digests // 100 % 10 == 0) & needs_validation, VALIDATION, TRAIN)
            return np.where(percent * self.folds // 100 == self.fold - 1, TEST, others).astype(np.int8)
        is_test, is_train = percent < TEST_PERCENT, percent >= TEST_PERCENT + VALIDATION_PERCENT
        splits = np.select([is_test, is_train], [TEST, TRAIN], VALIDATION).astype(np.int8)
        _fill_empty_splits(splits, digests)
        return splits


HELD_OUT_TENTH = HoldOut()
"""A tenth of the drawings is for validation, and a tenth for the test."""


def _fill_empty_splits(splits: Splits, digests: Digests) -> None:
    """Move a bitmap, with its copies, from the largest split to each empty split: the one with the lowest digest."""
    for empty in np.setdiff1d(np.arange(3), splits):
        different = [len(np.unique(digests[splits == split])) for split in range(3)]
        if max(different) > 1:
            splits[digests == digests[splits == np.argmax(different)].min()] = empty
