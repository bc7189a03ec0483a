"""Measure how accurate a model for your own five classes is after training on 50 pictures of each class.

Compares a fine-tuning of the shipped models/quickdraw-345 with trainings from random weights, in three tasks: five of
the 345 classes ("known"), five classes that unite several of the 345 ("united"), and five classes of drawings that are
turned by 90 degrees ("turned"). Runs `sketchbatch-train train` on PNG files like a user, with three seeds; each seed
also draws other pictures. All drawings are from the split that quickdraw-345 was not trained on. Writes
benchmarks/results/DATE-own-classes.json.
"""

import argparse
import importlib.metadata
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sketchbatch_client.drawings.images import decode_image
from sketchbatch_client.drawings.readers import Bitmaps
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train import networks  # noqa: F401 - registers the custom layers of saved models
from variants import HERE, cpu_name

SEEDS = (0, 1, 2)
PICTURES = 50  # pictures of each class for training, validation and the test of the command
JUDGED = 150  # other pictures of each class, on which the accuracy is measured
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

COMMANDS: dict[str, tuple[str, ...]] = {
    "finetune from quickdraw-345": ("--recipe", "finetune", "--start-from", str(HERE.parent / "models/quickdraw-345")),
    "compact from random weights": ("--recipe", "compact"),
}
"""Options of `sketchbatch-train train` by name."""


def main() -> None:
    """Train each task with each command and seed; print and store the accuracies and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Drawings in Google's layout.")
    arguments = parser.parse_args()
    results = {
        "command": "python -m benchmarks own-classes --data DATA",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        "pictures_per_class": PICTURES,
        "judged_per_class": JUDGED,
        "seeds": SEEDS,
        "tasks": {name: measure_task(name, arguments.data) for name in TASKS},
    }
    path = HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-own-classes.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"-> {path.relative_to(HERE.parent)}")


def measure_task(name: str, data: Path) -> dict[str, Any]:
    """Return, for each command, the accuracy and the seconds of each seed."""
    found: dict[str, Any] = {command: {"accuracy": [], "wall_s": [], "cpu_s": [], "load": []} for command in COMMANDS}
    for seed in SEEDS:
        with TemporaryDirectory(prefix="own-classes-") as folder:
            judged = write_task(TASKS[name], data, Path(folder) / "pictures", seed, is_turned=name == "turned")
            for command, options in COMMANDS.items():
                run = Run(Path(folder) / command)
                times = train(run, Path(folder) / "pictures", options, seed)
                accuracy = measure_accuracy(run, *judged)
                for key, value in {"accuracy": accuracy, **times, "load": os.getloadavg()[0]}.items():
                    found[command][key].append(round(value, 3))
    for command, row in found.items():
        values = row["accuracy"]
        print(
            f"{name:<8} {command:<42} {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) "
            f"{max(row['wall_s']):.0f} s at most"
        )
    return found


def train(run: Run, pictures: Path, options: Sequence[str], seed: int) -> dict[str, float]:
    """Run `sketchbatch-train train`; return its elapsed seconds and its CPU seconds."""
    program = "from sketchbatch_trainer.cli import main; main()"
    command = [sys.executable, "-c", program, "train", "--run", str(run.folder), "--data", str(pictures)]
    before, started_at = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([*command, "--classes", "all", "--seed", str(seed), *options], check=True, stdout=subprocess.DEVNULL)
    wall_s, after = time.monotonic() - started_at, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall_s, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


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
