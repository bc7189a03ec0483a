"""Writes a run's report.html: five metrics, learning curves, confusion matrix, drawings right and wrong.

Reads what training, export, `sketchbatch score` and `sketchbatch evaluate` left in the run. One file, nothing beside
it, so that it can be mailed.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import onnx
from sketchbatch_client.atomic import replacing
from sketchbatch_client.readers import read_bitmaps

from . import plots
from .run import Run

METRICS = {
    "accuracy": ("Accuracy", "drawings named right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "specificity": ("Specificity", "others not taken for the class, mean"),
    "matthews_corrcoef": ("Matthews correlation", "1 = perfect, 0 = chance"),
    "jaccard": ("Jaccard", "hits / (true + predicted - hits), mean"),
}
"""The article's five: title and meaning."""

_SHOWN = 24  # drawings in each gallery


@dataclass(frozen=True, slots=True)
class _Guess:
    """What the service said of one held-out drawing."""

    file: Path
    row: int
    label: str
    score: float

    @property
    def is_right(self) -> bool:
        return self.label == self.file.stem

    @property
    def caption(self) -> str:
        return (
            f"{self.label} {self.score:.0%}"
            if self.is_right
            else f"{self.file.stem}, said {self.label} {self.score:.0%}"
        )


def write_report(run: Run) -> Path:
    """Writes the page, whole or not at all.

    Raises:
        RunIncomplete: A step before it was not run; says which.
    """
    config = run.read_config()
    metrics = _read_metrics(run)
    guesses = _read_guesses(run)
    right = [guess for guess in guesses if guess.is_right]
    wrong = sorted((guess for guess in guesses if not guess.is_right), key=lambda guess: -guess.score)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("sketchbatch_trainer", "."), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        title=_and(config["labels"]),
        is_synthetic=metrics["source"].startswith("synthetic"),
        config=config,
        metrics=metrics,
        cards=[(*METRICS[name], metrics[name]) for name in METRICS],
        model=_read_model(run),
        curves=plots.learning_curves(_read_history(run)),
        confusion=plots.confusion_matrix(np.array(metrics["confusion"]), metrics["labels"]),
        right=_gallery(_spread(right), plots.RIGHT),
        wrong=_gallery(wrong[:_SHOWN], plots.WRONG),
        wrong_count=len(wrong),
    )
    with replacing(run.report) as partial:
        partial.write_text(page, encoding="utf-8")
    return run.report


def _and(names: list[str]) -> str:
    """Such as: bear, cat and dog."""
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _read_metrics(run: Run) -> dict[str, Any]:
    made_by = f"sketchbatch evaluate {run.test} --json {run.metrics}"
    metrics: dict[str, Any] = json.loads(run.need(run.metrics, made_by).read_text(encoding="utf-8"))
    return metrics


def _read_guesses(run: Run) -> list[_Guess]:
    made_by = f"sketchbatch score {run.test} --output {run.scores}"
    with run.need(run.scores, made_by).open(encoding="utf-8", newline="") as file:
        return [
            _Guess(run.test / Path(line["source"]).name, int(line["row"]), line["label"], float(line["score"]))
            for line in csv.DictReader(file)
        ]


def _read_history(run: Run) -> dict[str, list[float]]:
    with run.need(run.history, "sketchbatch-train train").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [float(line[name]) for line in lines] for name in lines[0]}


def _read_model(run: Run) -> dict[str, Any]:
    """What the model file says of itself, and its size in bytes."""
    path = run.need(run.onnx, f"sketchbatch-train export --run {run.folder}")
    properties = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    return {
        "name": properties["sketchbatch.name"],
        "version": properties["sketchbatch.version"],
        "created": properties["sketchbatch.created"],
        "parity": json.loads(properties["sketchbatch.metrics"])["parity_max_difference"],
        "size_mb": path.stat().st_size / 1e6,
    }


def _spread(guesses: list[_Guess]) -> list[_Guess]:
    """As many as are shown, evenly from all of them, so that every class is seen."""
    step = max(1, len(guesses) // _SHOWN)
    return guesses[::step][:_SHOWN]


def _gallery(guesses: list[_Guess], colour: str) -> str:
    if not guesses:
        return ""
    bitmaps = np.stack([read_bitmaps(guess.file)[guess.row] for guess in guesses])
    return plots.gallery(bitmaps, [guess.caption for guess in guesses], colour)
