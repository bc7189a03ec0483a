"""Measures what each part of the compact recipe gives, and what a start from 345 classes gives, over three seeds.

Trains bear, cat and dog again and again, each time with one thing changed, and judges every network on the drawings
that all of them held out. Writes benchmarks/results/DATE-ablations.json after every training, and goes on from it when
it is started again; prints the table. Not a matter of speed: other work on the machine does not disturb it.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sketchbatch_client.atomic import replacing
from sketchbatch_trainer.drawings import Wanted, read_drawings
from sketchbatch_trainer.report.quality import judge
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE
from variants import HERE, cpu_name

LABELS = ("bear", "cat", "dog")
SEEDS = (0, 1, 2)
EPOCHS = 12  # of those that begin with nothing; 12 is where the article's stops, too
COMPACT_12 = replace(COMPACT, max_epochs=EPOCHS)

FROM_NOTHING = {
    "article": ARTICLE,
    "compact": COMPACT_12,
    "compact, drawings as they are": replace(COMPACT_12, augmentation=None),
    "compact, no label smoothing": replace(COMPACT_12, label_smoothing=0.0),
    "compact, every drawing counts the same": replace(COMPACT_12, class_balance=0.0),
    "compact, every class counts the same": replace(COMPACT_12, class_balance=1.0),
    "compact, last weights instead of their average": replace(COMPACT_12, average_decay=0.0),
    "compact, no dropout": replace(COMPACT_12, network=replace(COMPACT.network, dropout=0.0)),
}


def main() -> None:
    """Trains what the results file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Drawings in Google's layout.")
    parser.add_argument("--start-from", type=Path, required=True, help="The trained run of 345 classes.")
    parser.add_argument("--teacher", type=Path, action="append", default=[], help="A run on bear, cat and dog.")
    arguments = parser.parse_args()
    drawings = read_drawings(Wanted(folder=arguments.data, labels=LABELS))
    begun, teachers = Run(arguments.start_from), tuple(map(Run, arguments.teacher))
    jobs: dict[str, dict[str, Any]] = {name: {"recipe": recipe} for name, recipe in FROM_NOTHING.items()}
    jobs["finetune from 345 classes"] = {"recipe": FINETUNE, "start_from": begun}
    if teachers:
        jobs["finetune from 345 classes, taught"] = {"recipe": FINETUNE, "start_from": begun, "teachers": teachers}
    path = max((HERE / "results").glob("*-ablations.json"), default=None)
    results = read(path, drawings.digest)
    path = path if path and results["runs"] else HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-ablations.json"
    for name, job in jobs.items():
        for seed in SEEDS:
            if str(seed) not in results["runs"].setdefault(name, {}):
                results["runs"][name][str(seed)] = train_and_judge(job | {"drawings": drawings, "seed": seed})
                with replacing(path) as partial:
                    partial.write_text(json.dumps(results, indent=2) + "\n")
    show(results["runs"])


def read(path: Path | None, digest: str) -> dict[str, Any]:
    """What was measured already of the same recipes on the same drawings, or the frame of it."""
    frame = {
        "command": "make bench-ablations",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        "data_digest": digest,
        "recipes": json.loads(json.dumps({recipe.name: asdict(recipe) for recipe in (ARTICLE, COMPACT_12, FINETUNE)})),
    }
    found: dict[str, Any] = json.loads(path.read_text()) if path else {}
    return found if found.items() >= frame.items() else {**frame, "runs": {}}


def train_and_judge(job: dict[str, Any]) -> dict[str, float]:
    """One training: accuracy and balanced accuracy of its network on what was held out."""
    import keras
    from sketchbatch_trainer.train.training import Job, train

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        train(Job(**job), run, Silent())
        bitmaps, class_index = job["drawings"].test.take(slice(None))
        scores = keras.saving.load_model(run.keras, compile=False).predict(bitmaps, verbose=0)
    quality = judge(np.asarray(scores), class_index)
    return {name: round(quality.metrics[name].value, 4) for name in ("accuracy", "balanced_accuracy")}


class Silent:
    """A watcher that shows nothing."""

    def begins(self, epochs_done: int, steps_done: int, steps: int) -> None:
        """Nothing."""

    def steps_done(self, steps: int) -> None:
        """Nothing."""

    def epoch_done(self, epoch: object) -> None:
        """Nothing."""


def show(runs: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints mean and range over the seeds."""
    for name, by_seed in runs.items():
        columns = []
        for metric in ("accuracy", "balanced_accuracy"):
            values = [measured[metric] for measured in by_seed.values()]
            columns.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        print(f"{name:<48} {'   '.join(columns)}")


if __name__ == "__main__":
    main()
