"""Measure how accurate a model for your own five classes is after training on 50 pictures of each class.

Compares a fine-tuning of the shipped models/quickdraw-345 with trainings from random weights, in three tasks: five of
the 345 classes ("known"), five classes that unite several of the 345 ("united"), and five classes of drawings that are
turned by 90 degrees ("turned"). Trains on PNG files with three seeds; each seed also draws other pictures. The seconds
do not include the import of TensorFlow. All drawings are from the split that quickdraw-345 was not trained on. Writes
benchmarks/results/DATE-own-classes.json after each task.
"""

import argparse
import importlib.metadata
import io
import json
import os
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
from ablations import Silent
from numpy.typing import NDArray
from PIL import Image
from sketchbatch_client.drawings.images import decode_image
from sketchbatch_client.drawings.readers import Bitmaps, labelled_files
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train.recipes import COMPACT, FINETUNE, Recipe, fit_rows
from sketchbatch_trainer.train.starting_point import find_start, fit_recipe
from sketchbatch_trainer.train.training import TrainingRequest, train
from variants import HERE, cpu_name

SEEDS = (0, 1, 2)
PICTURES = 50  # pictures of each class, which the trainer divides into training, validation and test split
JUDGED = 100  # other pictures of each class, on which the accuracy is measured
_ENLARGED = 8  # pixels of a picture per pixel of a bitmap, along each side

Task = dict[str, tuple[str, ...]]
"""The classes of Quick, Draw! that make up each class of the task."""

TASKS: dict[str, Task] = {
    "known": {name: (name,) for name in ("bird", "cat", "dog", "fish", "flower")},
    "united": {
        "animal": ("bird", "cat", "dog", "fish"),
        "food": ("apple", "banana", "lollipop"),
        "furnishing": ("alarm clock", "book", "house"),
        "shape": ("bowtie", "diamond", "rainbow"),
        "vehicle": ("airplane", "bicycle"),
    },
    "turned": {f"turned {name}": (name,) for name in ("bird", "cat", "dog", "fish", "flower")},
}

TRAININGS: dict[str, tuple[Recipe, Path | None]] = {  # recipe and starting point
    "finetune from quickdraw-345": (FINETUNE, HERE.parent / "models/quickdraw-345"),
    "compact from random weights": (COMPACT, None),
}


def main() -> None:
    """Train each task with each recipe and seed; print and store the accuracies and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Drawings in Google's layout.")
    parser.add_argument("--task", choices=TASKS, action="append", help="Only this task; may be repeated.")
    arguments = parser.parse_args()
    frame = {
        "command": "python -m benchmarks own-classes --data DATA",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        "pictures_per_class": PICTURES,
        "judged_per_class": JUDGED,
        "seeds": list(SEEDS),
    }
    path = HERE / "results" / f"{frame['date']}-own-classes.json"
    for name in arguments.task or TASKS:
        measured = measure_task(name, arguments.data)
        found = json.loads(path.read_text()) if path.exists() else {}
        tasks = found["tasks"] if found.items() >= frame.items() else {}  # keeps the other tasks of the same day
        path.write_text(json.dumps({**frame, "tasks": {**tasks, name: measured}}, indent=2) + "\n")
        print(f"-> {path.relative_to(HERE.parent)}", flush=True)


def measure_task(name: str, data: Path) -> dict[str, Any]:
    """Return, for each training, the accuracy and the seconds of each seed."""
    columns = ("accuracy", "wall_s", "cpu_s", "load")
    found: dict[str, Any] = {training: {column: [] for column in columns} for training in TRAININGS}
    for seed in SEEDS:
        with TemporaryDirectory(prefix="own-classes-") as folder:
            pictures = Path(folder) / "pictures"
            judged = write_task(TASKS[name], data, pictures, seed, is_turned=name == "turned")
            for training in TRAININGS:
                run = Run(Path(folder) / training)
                values = train_once(training, run, pictures, seed)
                values |= {"accuracy": measure_accuracy(run, *judged), "load": os.getloadavg()[0]}
                for key, value in values.items():
                    found[training][key].append(round(value, 3))
                print(f"{name} {training} seed {seed}: {values}", flush=True)
    for training, row in found.items():
        values = row["accuracy"]
        print(f"{name:<8} {training:<28} {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return found


def train_once(training: str, run: Run, pictures: Path, seed: int) -> dict[str, float]:
    """Read the pictures and train as `sketchbatch-train train` does; return the elapsed seconds and the CPU seconds."""
    recipe, place = TRAININGS[training]
    started_at, cpu_before = time.monotonic(), time.process_time()
    labels = tuple(labelled_files(pictures))
    dataset = read_dataset(DatasetRequest(folder=pictures, labels=labels, rasterized=run.rasterized))
    start = find_start(place) if place else None
    recipe = fit_rows(fit_recipe(recipe, None, start), len(dataset.train))
    train(TrainingRequest(dataset=dataset, recipe=recipe, seed=seed, start_from=start), run, Silent())
    return {"wall_s": time.monotonic() - started_at, "cpu_s": time.process_time() - cpu_before}


def measure_accuracy(run: Run, bitmaps: Bitmaps, class_index: NDArray[np.int64]) -> float:
    """Return the share of `bitmaps` whose highest score is that of their class."""
    scores = keras.saving.load_model(run.keras, compile=False).predict(bitmaps, verbose=0)
    return float((scores.argmax(axis=1) == class_index).mean())


def write_task(
    task: Task, data: Path, pictures: Path, seed: int, *, is_turned: bool
) -> tuple[Bitmaps, NDArray[np.int64]]:
    """Write PICTURES pictures of each class; return the bitmaps and class indices of the judged pictures."""
    names = tuple(sorted({name for members in task.values() for name in members}))
    held_out = read_dataset(DatasetRequest(folder=data, labels=names)).test
    random = np.random.default_rng(seed)
    judged: list[Bitmaps] = []
    for label, members in sorted(task.items()):
        rows = [random.permutation(np.flatnonzero(held_out.class_index == names.index(name))) for name in members]
        mixed = interleave([held_out.take(each)[0] for each in rows])[: PICTURES + JUDGED]
        files = [picture(np.rot90(bitmap) if is_turned else bitmap) for bitmap in mixed]
        folder = pictures / label
        folder.mkdir(parents=True)
        for number, contents in enumerate(files[:PICTURES]):
            (folder / f"{number:03}.png").write_bytes(contents)
        judged.append(np.stack([decode_image(contents, label) for contents in files[PICTURES:]]))
    class_index = np.repeat(np.arange(len(judged)), [len(bitmaps) for bitmaps in judged])
    return np.concatenate(judged), class_index


def interleave(groups: Sequence[Bitmaps]) -> list[NDArray[np.uint8]]:
    """Return the bitmaps of all groups in turn: the first of each group, then the second of each group, and so on."""
    return [bitmap for bitmaps in zip(*groups, strict=False) for bitmap in bitmaps]


def picture(bitmap: NDArray[np.uint8]) -> bytes:
    """Return the PNG file of a bitmap, with dark lines on white paper and an empty margin."""
    side = bitmap.shape[0] * _ENLARGED
    image = Image.fromarray(255 - bitmap).resize((side, side), Image.Resampling.BICUBIC)
    page = Image.new("L", (side + 80, side + 80), 255)
    page.paste(image, (40, 40))
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
