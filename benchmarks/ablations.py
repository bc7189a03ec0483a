"""Measure how much accuracy each setting of a recipe adds, and how much a start from a 345-class network adds.

Trains networks for bear, cat and dog. Each network has one setting changed and is trained with three seeds. Evaluates
every network on the same held-out drawings. Keeps the runs in RUNS/ablations. Writes
benchmarks/results/DATE-ablations.json after every training and resumes from the latest file: a training with equal
recipe, initial weights and seed is not repeated. Accuracy does not depend on other work on the machine.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import statistics
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
from sketchbatch_client.atomic import replacing
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset
from sketchbatch_trainer.report.quality import evaluate_scores
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE, Recipe
from sketchbatch_trainer.train.training import TrainingRequest, train
from variants import HERE, cpu_name

LABELS = ("bear", "cat", "dog")
SEEDS = (0, 1, 2)
EPOCHS = 12  # epochs of trainings from random weights; the article's recipe stops after 12 epochs, too
COMPACT_12 = replace(COMPACT, max_epochs=EPOCHS)

JOBS: dict[str, tuple[Recipe, str]] = {  # recipe, and the run whose weights the training starts from
    "article": (ARTICLE, ""),
    "compact": (COMPACT_12, ""),
    "compact, no augmentation": (replace(COMPACT_12, augmentation=None), ""),
    "compact, no label smoothing": (replace(COMPACT_12, label_smoothing=0.0), ""),
    "compact, equal weight per drawing": (replace(COMPACT_12, class_balance=0.0), ""),
    "compact, equal weight per class": (replace(COMPACT_12, class_balance=1.0), ""),
    "compact, no weight averaging": (replace(COMPACT_12, average_decay=0.0), ""),
    "compact, no dropout": (replace(COMPACT_12, network=replace(COMPACT.network, dropout=0.0)), ""),
    "finetune from compact-345": (FINETUNE, "compact-345"),
    "finetune from quickdraw-345": (FINETUNE, "quickdraw-345"),
}


def main() -> None:
    """Run the trainings whose results the results file lacks, and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Drawings in Google's layout.")
    parser.add_argument("--runs", type=Path, required=True, help="Where compact-345 and quickdraw-345 are, trained.")
    arguments = parser.parse_args()
    dataset = read_dataset(DatasetRequest(folder=arguments.data, labels=LABELS))
    latest = max((HERE / "results").glob("*-ablations.json"), default=None)
    path = HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-ablations.json"
    results = read(latest, dataset.digest)
    for name, (recipe, begun) in JOBS.items():
        start_from = Run(arguments.runs / begun) if begun else None
        row = wanted_row(results, name, recipe, start_from)
        for seed in SEEDS:
            if str(seed) not in row["seeds"]:
                request = TrainingRequest(dataset=dataset, recipe=recipe, seed=seed, start_from=start_from)
                folder = arguments.runs / "ablations" / name.replace(",", "").replace(" ", "-") / str(seed)
                row["seeds"][str(seed)] = train_and_evaluate(request, Run(folder))
                with replacing(path) as partial:
                    partial.write_text(json.dumps(results, indent=2) + "\n")
    show(results["runs"])


def read(path: Path | None, digest: str) -> dict[str, Any]:
    """Return the stored results if they have the same drawings, machine and package versions; else empty results."""
    frame = {
        "command": "python -m benchmarks ablations",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        "data_digest": digest,
    }
    found: dict[str, Any] = json.loads(path.read_text()) if path else {}
    return found if found.items() >= frame.items() else {**frame, "runs": {}}


def wanted_row(results: dict[str, Any], name: str, recipe: Recipe, begun: Run | None) -> dict[str, Any]:
    """Return the row `name` of `results`, or a new row if the recipe or the initial weights differ."""
    digest = hashlib.sha256(begun.keras.read_bytes()).hexdigest() if begun else ""
    row = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "recipe": json.loads(json.dumps(asdict(recipe))), "begun": digest}
    found: dict[str, Any] = results["runs"].get(name, {})
    if (found.get("recipe"), found.get("begun")) != (row["recipe"], row["begun"]):
        found = {**row, "seeds": {}}
    results["runs"][name] = found
    return found


def train_and_evaluate(request: TrainingRequest, run: Run) -> dict[str, float]:
    """Train once; return accuracy and balanced accuracy on the held-out drawings."""
    train(request, run, Silent())
    bitmaps, class_index = request.dataset.test.take(slice(None))
    scores = keras.saving.load_model(run.keras, compile=False).predict(bitmaps, verbose=0)
    figures = evaluate_scores(scores, class_index, request.dataset.labels).figures
    return {name: round(figures.measured[name].value, 4) for name in ("accuracy", "balanced_accuracy")}


class Silent:
    """A training listener that shows nothing."""

    def on_start(self, epochs_done: int, steps_done: int, steps: int) -> None:
        """Show nothing."""

    def on_step(self, steps_done: int) -> None:
        """Show nothing."""

    def on_epoch(self, metrics: object) -> None:
        """Show nothing."""


def show(runs: dict[str, dict[str, Any]]) -> None:
    """Print the mean and the range of each metric over the seeds."""
    for name, row in runs.items():
        columns = []
        for metric in ("accuracy", "balanced_accuracy"):
            values = [measured[metric] for measured in row["seeds"].values()]
            columns.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        print(f"{name:<48} {'   '.join(columns)}")


if __name__ == "__main__":
    main()
