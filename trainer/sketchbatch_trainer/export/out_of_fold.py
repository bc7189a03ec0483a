"""Judge a training on all drawings by a cross-validation: each drawing is scored by a network that did not train on it.

The networks are those of the folds: trainings with the same recipe and drawings that each hold out another part.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import labelled_files, open_bitmaps, read_bitmaps
from sketchbatch_client.evaluation.stats import rejection
from sketchbatch_client.evaluation.stats.calibration import calibrate
from sketchbatch_client.evaluation.stats.metrics import confuse, measure
from sketchbatch_client.evaluation.training_digests import digest_each

from ..dataset import write_bitmaps, write_source
from ..errors import RunRefused
from ..hold_out import TEST, HoldOut
from ..run import Run
from ..train.networks import with_logits
from ..train.recipes import recipe_differences
from ..train.training import load_model
from . import held_out
from .temperature import LEAST_ROWS, Logits, fit, softmax

UNKNOWN_ROWS = 20_000
"""Most drawings of other classes that are scored, in equal numbers per class."""

_EQUAL = {"labels": "the classes", "data_digest": "the drawings"}  # keys of the config, with the words for messages
_CALL_ROWS = 256
_PRINTED = ("accuracy", "balanced_accuracy")  # metrics of the summary


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFold:
    """The logits of networks for drawings that they did not train on."""

    logits: NDArray[np.float32]
    """(rows, labels), of the drawings in the test folder of the run, in the order of `held_out.read_held_out`."""
    class_index: NDArray[np.int32]
    """(rows,): the index of each drawing's label."""
    fold: NDArray[np.int32]
    """(rows,): the fold, from 0, whose network computed the logits."""
    unknown: NDArray[np.float32]
    """(unknown rows, labels), of drawings of other classes; no rows if none were given."""
    unknown_fold: NDArray[np.int32]
    """(unknown rows,)"""

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def temperature(self) -> float:
        """Return the temperature for the network of all drawings."""
        return fit(self.logits, self.class_index)

    def scores(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the scores of both kinds of drawings; the temperature of each fold was fitted on the other folds.

        If `temperature` is 1 because there are too few drawings, that of each fold is 1, too; otherwise the thresholds
        for these scores would not fit those of the exported network.
        """
        known, unknown = np.empty_like(self.logits), np.empty_like(self.unknown)
        least_rows = 1 if len(self.logits) >= LEAST_ROWS else LEAST_ROWS
        for fold in range(self.folds):
            is_own = self.fold == fold
            temperature = fit(self.logits[~is_own], self.class_index[~is_own], least_rows=least_rows)
            known[is_own] = softmax(self.logits[is_own] / temperature)
            is_own = self.unknown_fold == fold
            unknown[is_own] = softmax(self.unknown[is_own] / temperature)
        return known, unknown

    def summary(self) -> str:
        """Return the main metrics as text, such as "accuracy 0.842, balanced accuracy 0.839, ...".

        The area under the ROC curve tells drawings of the labels from those of other classes by their highest score.
        """
        known, unknown = self.scores()
        metrics = measure(confuse(self.class_index, known.argmax(axis=1), known.shape[1])).defined
        parts = [f"{key.replace('_', ' ')} {metrics[key]:.3f}" for key in _PRINTED if key in metrics]
        parts.append(f"expected calibration error {calibrate(known, self.class_index).expected_error:.3f}")
        if len(unknown):
            parts.append(f"AUROC against other classes {rejection.auroc(known.max(axis=1), unknown.max(axis=1)):.3f}")
        return ", ".join(parts)


def read_out_of_fold(run: Run) -> OutOfFold | None:
    """Return the result of the cross-validation of a run; None = it has none."""
    if not run.out_of_fold.exists():
        return None
    with np.load(run.out_of_fold) as saved:
        return OutOfFold(**saved)


def write_out_of_fold(run: Run, result: OutOfFold) -> None:
    """Replace the result of the cross-validation of a run atomically."""
    with replacing(run.out_of_fold) as partial, partial.open("wb") as file:
        np.savez(file, **{name: getattr(result, name) for name in OutOfFold.__slots__})


def cross_validate(
    folds: Sequence[Run],
    run: Run,
    unknown: Path | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> OutOfFold:
    """Score the drawings of `run`, each with the fold that held it out, and store the drawings and logits in `run`.

    Of more than `held_out.MAX_ROWS` drawings, the first ones of each class and fold are scored.

    Args:
        folds: The trained folds, one for each part of the drawings, in any order.
        run: The training on all drawings.
        unknown: Folder of drawings; those of other classes than the labels are scored, too.
        progress: Called with the number of scored drawings.

    Raises:
        RunIncomplete: A fold or `run` has no model.
        RunRefused: `run` did not train on all drawings, the folds are not complete, or one of them differs from `run`
            in its drawings, classes or recipe; or `unknown` has no drawings of other classes.
    """
    config = run.read_config()
    run.need(run.keras)
    ordered = _ordered(folds, run)
    files = _unknown_files(unknown, set(config["labels"])) if unknown else []
    bitmaps: dict[str, list[NDArray[np.uint8]]] = {label: [] for label in config["labels"]}
    logits: dict[str, list[Logits]] = {label: [] for label in config["labels"]}
    other_logits, flags = [], []
    most = held_out.MAX_ROWS // (
        len(ordered) * len(bitmaps)
    )  # of each class and fold; `read_held_out` reads all of them
    for number, fold in enumerate(ordered):
        network = with_logits(load_model(fold))
        flags += _shifted_flags(fold, {label: sum(map(len, parts)) for label, parts in bitmaps.items()}, most)
        for label in bitmaps:
            bitmaps[label].append(read_bitmaps(fold.test / f"{label}.npy")[:most])
            logits[label].append(_score(network, bitmaps[label][-1]))
            progress(len(bitmaps[label][-1]))
        for path in files:
            rows = _first(path, UNKNOWN_ROWS // len(files))
            is_own = HoldOut(number + 1, len(ordered)).assign(digest_each(rows), needs_validation=False) == TEST
            other_logits.append(_score(network, rows[is_own]))
            progress(int(is_own.sum()))
    for label, parts in bitmaps.items():
        write_bitmaps(run.test / f"{label}.npy", np.concatenate(parts))
    write_source(run.test, config["source"])
    with replacing(run.recognized) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("label", "row", "is_recognized"), *flags])
    return _save(run, logits, other_logits)


def _ordered(folds: Sequence[Run], run: Run) -> list[Run]:
    """Return the folds by number, after checking that they are complete and belong to `run`."""
    config = run.read_config()
    if config.get("hold_out") != "none":
        raise RunRefused(f"{run.folder}: expected a training on all drawings; train it with --hold-out none")
    by_number: dict[str, Run] = {}
    for fold in folds:
        own = fold.read_config()
        different = [words for key, words in _EQUAL.items() if own[key] != config[key]]
        if values := recipe_differences(own, config, is_same_rows=False):
            different.append(f"the recipe: {', '.join(values)}")
        if different:
            raise RunRefused(
                f"{fold.folder}: differs from {run.folder} in {' and '.join(different)}; "
                "train all runs with the same drawings and options"
            )
        by_number[own.get("hold_out", "test")] = fold
    numbers = {name.partition("/")[2] for name in by_number}  # of folds, as each run states it
    number_of_folds = int(numbers.pop() or len(folds)) if len(numbers) == 1 else len(folds)
    expected = [f"{number + 1}/{number_of_folds}" for number in range(number_of_folds)]
    if sorted(by_number) != sorted(expected):
        raise RunRefused(f"expected one run each with --hold-out {', '.join(expected)}, got {', '.join(by_number)}")
    return [by_number[name] for name in expected]


def _unknown_files(folder: Path, known: set[str]) -> list[Path]:
    files = [path for label, path in labelled_files(folder).items() if label not in known]
    if not files:
        raise RunRefused(f"{folder}: expected drawings of other classes than {', '.join(sorted(known))}, got none")
    return files


def _first(path: Path, rows: int) -> NDArray[np.uint8]:
    opened = open_bitmaps(path, skip_malformed=True)
    return opened[: min(rows, len(opened))]


def _score(network: keras.Model, bitmaps: NDArray[np.uint8]) -> Logits:
    starts = range(0, len(bitmaps), _CALL_ROWS)
    parts = [np.asarray(network(bitmaps[start : start + _CALL_ROWS], training=False)) for start in starts]
    return np.concatenate([np.empty((0, network.output.shape[1]), np.float32), *parts])


def _shifted_flags(fold: Run, rows_before: dict[str, int], most: int) -> list[tuple[str, int, str]]:
    """Return the recognised flags of a fold's first `most` drawings per class, with their rows in the whole run."""
    with fold.recognized.open(encoding="utf-8", newline="") as file:
        return [
            (line["label"], rows_before[line["label"]] + int(line["row"]), line["is_recognized"])
            for line in csv.DictReader(file)
            if int(line["row"]) < most
        ]


def _save(run: Run, logits: dict[str, list[Logits]], other_logits: list[Logits]) -> OutOfFold:
    def numbers(parts: Sequence[Logits]) -> NDArray[np.int32]:
        return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])

    folds = len(next(iter(logits.values())))
    per_fold = len(other_logits) // folds
    rows = [sum(map(len, parts)) for parts in logits.values()]
    result = OutOfFold(
        logits=np.concatenate([part for parts in logits.values() for part in parts]),
        class_index=np.repeat(np.arange(len(logits), dtype=np.int32), rows),
        fold=np.concatenate([numbers(parts) for parts in logits.values()]),
        unknown=np.concatenate([np.empty((0, len(logits)), np.float32), *other_logits]),
        unknown_fold=numbers(other_logits) // max(1, per_fold),
    )
    write_out_of_fold(run, result)
    return result
