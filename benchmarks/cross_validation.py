"""Compare recipes for bear, cat and dog by a 5-fold cross-validation over all drawings, in pairs on the same drawings.

Each recipe is trained on each fold with one or more seeds, by `sketchbatch-train`; the networks of several seeds are
averaged. The starting points did not train on the ten animals, so no fold is known to them; train them first:
`make runs/models/{compact,light}-335-again/model.keras DATA=FOLDER`. Keeps the runs in RUNS/cross-validation and
RUNS/averages, where `make models` finds those of the shipped files. Trained runs are not repeated. Writes
benchmarks/results/DATE-cross-validation.json after every recipe. Accuracy does not depend on other work on the machine.
"""

import argparse
import importlib.metadata
import json
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.evaluation.stats.calibration import calibrate
from sketchbatch_trainer.cli import app
from sketchbatch_trainer.export.temperature import fit, softmax
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train.networks import with_logits
from sketchbatch_trainer.train.training import load_model
from variants import HERE, cpu_name

THREE = ("bear", "cat", "dog")
TEN = (*THREE, "duck", "fish", "frog", "lion", "monkey", "rabbit", "sheep")
FOLDS = 5
SOURCE = "Quick, Draw! drawings by Google (CC BY 4.0)"
_CALL_ROWS = 256
_NORMAL = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A recipe to compare."""

    folder: str
    """Name of the folder of its runs; jobs that differ only by the number of seeds share their networks."""
    options: str
    """Options of `sketchbatch-train train`. RUNS stands for the folder of all runs, FOLD for the name of the fold."""
    seeds: int = 1
    """Number of networks whose weights are averaged."""
    trained: tuple[str, ...] = THREE
    """The classes that the network learns."""
    judged: tuple[str, ...] = THREE
    """The first classes of `trained`; the outputs of the others are dropped before the network is judged."""


_LIGHT = Job(folder="light", options="--recipe finetune --start-from RUNS/light-335-again")
_COMPACT = Job(folder="compact", options="--recipe finetune --start-from RUNS/compact-335-again")
_TEN = replace(_COMPACT, folder="animals-10", trained=TEN, judged=TEN)
JOBS: dict[str, Job] = {
    "article": Job(folder="article", options="--recipe article"),
    "compact, 12 epochs, random weights": Job(folder="compact-12", options="--recipe compact --epochs 12"),
    "light, one seed": _LIGHT,
    "version 1: light, three seeds": replace(_LIGHT, seeds=3),
    "compact, one seed": _COMPACT,
    "compact, three seeds": replace(_COMPACT, seeds=3),
    "compact, ten animals": replace(_TEN, judged=THREE),
    "light, taught by compact": Job(
        folder="light-taught", options=f"{_LIGHT.options} --teacher RUNS/averages/compact/FOLD"
    ),
    "ten classes": _TEN,
    "ten classes, three seeds": replace(_TEN, seeds=3),
}
"""The recipes by name."""
BASELINES = {THREE: "version 1: light, three seeds", TEN: "ten classes"}
"""The recipe of version 1 of each file, by its classes; differences are those to this recipe."""


def main() -> None:
    """Train and judge the chosen recipes, and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Drawings in Google's layout.")
    parser.add_argument("--runs", type=Path, required=True, help="Folder of the starting points and the new runs.")
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
        job = JOBS[name]
        judged[name] = judge([train_fold(job, fold, arguments.data, arguments.runs) for fold in range(FOLDS)], job)
        results["recipes"][name] = {"classes": len(job.trained), "options": job.options, "seeds": job.seeds}
        for own_name, own in judged.items():
            baseline = judged.get(BASELINES[JOBS[own_name].judged])
            results["recipes"][own_name] |= own.figures() | own.against(baseline)
        with replacing(path) as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
        show(name, results["recipes"][name])


def train_fold(job: Job, fold: int, data: Path, runs: Path) -> Run:
    """Train all seeds of a fold, and average them if there are several; return the run of the fold."""
    name = f"fold-{fold + 1}"
    folder = runs / "cross-validation" / job.folder / name
    options = [each.replace("RUNS", str(runs)).replace("FOLD", name) for each in shlex.split(job.options)]
    members = [Run(folder / f"seed-{seed}") for seed in range(job.seeds)]
    for seed, member in enumerate(members):
        own = ["--hold-out", f"{fold + 1}/{FOLDS}", "--seed", str(seed), "--name", job.folder, "--source", SOURCE]
        train(member, "train", ["--data", str(data), "--classes", ",".join(job.trained), *own, *options])
    if len(members) == 1:
        return members[0]
    average = Run(runs / "averages" / job.folder / name)
    train(average, "average", [part for each in members for part in ("--of", str(each.folder))])
    return average


def train(run: Run, command: str, options: Sequence[str]) -> None:
    """Run a command of `sketchbatch-train` that writes `run`, unless it is trained."""
    if not run.keras.exists():
        app([command, "--run", str(run.folder), *options], standalone_mode=False)


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
        recalls = [self.is_right[self.class_index == index] for index in range(self.scores.shape[1])]
        variance = sum(each.var() / len(each) for each in recalls) / self.scores.shape[1] ** 2
        own = calibrate(self.scores.astype(np.float32), self.class_index)
        return {
            "rows": len(self.scores),
            "accuracy": round(float(self.is_right.mean()), 4),
            "balanced_accuracy": round(float(np.mean([each.mean() for each in recalls])), 4),
            "standard_error": round(math.sqrt(variance), 4),
            "recalls": {label: round(float(each.mean()), 4) for label, each in zip(TEN, recalls, strict=False)},
            "log_loss": round(own.log_loss, 4),
            "calibration_error": round(own.expected_error, 4),
        }

    def against(self, baseline: "Judged | None") -> dict[str, Any]:
        """Return the difference in balanced accuracy to the baseline, in pairs, with its 95 % interval."""
        if baseline is None or baseline is self:
            return {}
        changes = self.is_right.astype(float) - baseline.is_right
        own = [changes[self.class_index == index] for index in range(self.scores.shape[1])]
        mean = float(np.mean([each.mean() for each in own]))
        error = math.sqrt(sum(each.var() / len(each) for each in own)) / self.scores.shape[1]
        interval = [round(mean - _NORMAL * error, 4), round(mean + _NORMAL * error, 4)]
        return {"difference": round(mean, 4), "difference_interval": interval}


def judge(folds: list[Run], job: Job) -> Judged:
    """Score the drawings that each fold held out, with the outputs of the judged classes."""
    labels = job.judged
    logits, class_index = [], []
    for run in folds:
        network = with_logits(load_model(run))
        drawings = [np.load(run.test / f"{label}.npy").reshape(-1, 28, 28) for label in labels]
        bitmaps = np.concatenate(drawings)
        parts = [
            network(bitmaps[start : start + _CALL_ROWS], training=False) for start in range(0, len(bitmaps), _CALL_ROWS)
        ]
        logits.append(np.concatenate(parts)[:, : len(labels)])
        class_index.append(np.repeat(np.arange(len(labels)), [len(each) for each in drawings]))
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
