"""Compare recipes for bear, cat and dog by a 5-fold cross-validation over all drawings, in pairs on the same drawings.

Each recipe is trained on each fold with one or more seeds; the networks of several seeds are averaged. The starting
points did not train on bears, cats or dogs, so no fold is known to them. Keeps the runs in RUNS/cross-validation, and
resumes from them. Writes benchmarks/results/DATE-cross-validation.json after every recipe. Accuracy does not depend on
other work on the machine.
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ablations import Silent
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.evaluation.stats.calibration import calibrate
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset
from sketchbatch_trainer.export.temperature import fit, softmax
from sketchbatch_trainer.hold_out import HoldOut
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train.averaging import average
from sketchbatch_trainer.train.networks import with_logits
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE, Recipe, with_network
from sketchbatch_trainer.train.starting_point import find_start
from sketchbatch_trainer.train.training import TrainingRequest, load_model, train
from variants import HERE, cpu_name

LABELS = ("bear", "cat", "dog")
FOLDS = 5
_NORMAL = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A recipe to compare."""

    recipe: Recipe
    start: str = ""
    """Name of the starting point in the folder --starts; empty = random weights."""
    seeds: int = 1
    """Number of networks whose weights are averaged."""
    similar: tuple[str, ...] = ()
    """Other classes that the network also learns; their outputs are dropped before it is judged."""

    @property
    def folder(self) -> str:
        """The name of the folder of its runs: jobs that differ only by the number of seeds share their networks."""
        return hashlib.blake2b(repr((self.recipe, self.start, self.similar)).encode(), digest_size=6).hexdigest()


LIGHT = with_network(FINETUNE, "light")
ANIMALS = ("duck", "fish", "frog", "lion", "monkey", "rabbit", "sheep")
JOBS: dict[str, Job] = {
    "article": Job(recipe=ARTICLE),
    "compact, 12 epochs, random weights": Job(recipe=replace(COMPACT, max_epochs=12)),
    "version 1: light, three seeds": Job(recipe=LIGHT, start="light-335-again", seeds=3),
    "light, one seed": Job(recipe=LIGHT, start="light-335-again"),
    "compact, from the first training": Job(recipe=FINETUNE, start="compact-335"),
    "compact, one seed": Job(recipe=FINETUNE, start="compact-335-again"),
    "compact, three seeds": Job(recipe=FINETUNE, start="compact-335-again", seeds=3),
    "compact, ten animals": Job(recipe=FINETUNE, start="compact-335-again", similar=ANIMALS),
    "compact, ten animals, three seeds": Job(recipe=FINETUNE, start="compact-335-again", similar=ANIMALS, seeds=3),
}
"""The recipes by name; differences are those to the recipe `BASELINE`."""
BASELINE = "version 1: light, three seeds"


def main() -> None:
    """Train and judge the chosen recipes, and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Drawings in Google's layout.")
    parser.add_argument("--runs", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--starts", type=Path, required=True, help="Folder of the trained starting points.")
    parser.add_argument("--jobs", default=";".join(JOBS), help="Names of recipes, separated by semicolons.")
    arguments = parser.parse_args()
    path = HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-cross-validation.json"
    results: dict[str, Any] = {
        "command": "python -m benchmarks cross-validation",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        "folds": FOLDS,
        "recipes": {},
    }
    judged: dict[str, Judged] = {}
    for name in arguments.jobs.split(";"):
        job, folder = JOBS[name], arguments.runs / "cross-validation" / JOBS[name].folder
        start = arguments.starts / job.start if job.start else None
        judged[name] = judge([train_fold(job, fold, arguments.data, start, folder) for fold in range(FOLDS)])
        results["recipes"][name] = {"recipe": asdict(job.recipe), "start": job.start, "seeds": job.seeds}
        for own_name, own in judged.items():
            results["recipes"][own_name] |= own.figures() | own.against(judged.get(BASELINE))
        with replacing(path) as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
        show(name, results["recipes"][name])


def train_fold(job: Job, fold: int, data: Path, start: Path | None, folder: Path) -> Run:
    """Train all seeds of a fold, and average them if there are several; return the run of the fold."""
    request = DatasetRequest(
        folder=data,
        labels=(*LABELS, *job.similar),
        hold_out=HoldOut(fold + 1, FOLDS),
        needs_validation=job.recipe.patience is not None,
    )
    dataset = read_dataset(request)
    runs = [Run(folder / f"fold-{fold + 1}" / f"seed-{seed}") for seed in range(job.seeds)]
    for seed, run in enumerate(runs):
        start_from = find_start(start) if start else None
        train(TrainingRequest(dataset=dataset, recipe=job.recipe, seed=seed, start_from=start_from), run, Silent())
    if len(runs) == 1:
        return runs[0]
    averaged = Run(folder / f"fold-{fold + 1}" / "average")
    average(runs, averaged)
    return averaged


@dataclass(frozen=True, slots=True)
class Judged:
    """The out-of-fold scores of a recipe; the drawings have the same order for each recipe."""

    class_index: NDArray[np.int64]
    """(rows,)"""
    scores: NDArray[np.float64]
    """(rows, classes), with the temperature of the other folds."""

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """(rows,): whether the label with the highest score is the true one."""
        right: NDArray[np.bool_] = self.scores.argmax(axis=1) == self.class_index
        return right

    def figures(self) -> dict[str, Any]:
        """Return the metrics; `standard_error` is that of the balanced accuracy."""
        recalls = [self.is_right[self.class_index == index] for index in range(len(LABELS))]
        variance = sum(each.var() / len(each) for each in recalls) / len(LABELS) ** 2
        own = calibrate(self.scores.astype(np.float32), self.class_index)
        return {
            "rows": len(self.scores),
            "accuracy": round(float(self.is_right.mean()), 4),
            "balanced_accuracy": round(float(np.mean([each.mean() for each in recalls])), 4),
            "standard_error": round(math.sqrt(variance), 4),
            "recalls": {label: round(float(each.mean()), 4) for label, each in zip(LABELS, recalls, strict=True)},
            "log_loss": round(own.log_loss, 4),
            "calibration_error": round(own.expected_error, 4),
        }

    def against(self, baseline: "Judged | None") -> dict[str, Any]:
        """Return the difference in balanced accuracy to the baseline, in pairs, with its 95 % interval."""
        if baseline is None or baseline is self:
            return {}
        changes = self.is_right.astype(float) - baseline.is_right
        own = [changes[self.class_index == index] for index in range(len(LABELS))]
        mean = float(np.mean([each.mean() for each in own]))
        error = math.sqrt(sum(each.var() / len(each) for each in own)) / len(LABELS)
        interval = [round(mean - _NORMAL * error, 4), round(mean + _NORMAL * error, 4)]
        return {"difference": round(mean, 4), "difference_interval": interval}


def judge(folds: list[Run]) -> Judged:
    """Score the drawings that each fold held out."""
    logits, class_index = [], []
    for run in folds:
        network = with_logits(load_model(run))
        drawings = [np.load(run.test / f"{label}.npy").reshape(-1, 28, 28) for label in LABELS]
        logits.append(network.predict(np.concatenate(drawings), verbose=0)[:, : len(LABELS)])
        class_index.append(np.repeat(np.arange(len(LABELS)), [len(each) for each in drawings]))
    scores = []
    for fold, own in enumerate(logits):
        others = [index for index in range(len(folds)) if index != fold]
        known, truth = (np.concatenate([parts[index] for index in others]) for parts in (logits, class_index))
        scores.append(softmax(own / fit(known, truth)))
    return Judged(np.concatenate(class_index), np.concatenate(scores))


def show(name: str, row: dict[str, Any]) -> None:
    """Print the figures of a recipe."""
    difference = f"   difference {row['difference']:+.4f} {row['difference_interval']}" if "difference" in row else ""
    print(
        f"{name:<40} balanced accuracy {row['balanced_accuracy']:.4f} (standard error {row['standard_error']:.4f})   "
        f"accuracy {row['accuracy']:.4f}   loss {row['log_loss']:.4f}   ECE {row['calibration_error']:.4f}{difference}",
        flush=True,
    )


if __name__ == "__main__":
    main()
