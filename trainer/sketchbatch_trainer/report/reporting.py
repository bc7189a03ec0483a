"""Write report.html: the quality of a run's model, its cost, and a comparison with other runs.

The float32 model of each run is evaluated on the drawings that its training held out. The page is one self-contained
file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from sketchbatch_client.evaluation.figures import picture
from sketchbatch_client.evaluation.quality import ModelQuality
from sketchbatch_client.evaluation.quality_page import quality_values
from sketchbatch_client.html_page import enumerated, write_page

from ..export.held_out import onnx_scores
from ..run import Run, Variant
from . import cost
from .learning_curves import learning_curves, read_history
from .quality import EvaluatedRun, evaluate_run, evaluate_scores

_CORRECT_SHOWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelFile:
    """One model file in the table of costs and the table of metrics."""

    title: str
    variant: Variant
    quality: ModelQuality
    size_mb: float
    parameters: int
    mflop: float
    rows_per_s: float
    relative_speed: float
    """Rows per second divided by those of the first model file."""


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Write the page atomically: the first run in full, and the model files of all runs in one table.

    Raises:
        RunIncomplete: A previous step is missing; the message names the command.
    """
    evaluated = [evaluate_run(run) for run in runs]
    first = evaluated[0]
    history = read_history(first.run.need(first.run.history, "sketchbatch-train train"))
    model_files = _model_files(evaluated)
    write_page(
        output,
        "sketchbatch_trainer/report/report.html.j2",
        **quality_values(first.quality, first.show),
        title=enumerated(first.config["labels"]),
        is_synthetic=any(each.config["source"].startswith("synthetic") for each in evaluated),
        is_served=first.is_served,
        config=first.config,
        recipe=_named_values(first.config["recipe"]),
        model=_described(first),
        curves=learning_curves(history, keeps_best=first.config["recipe"]["patience"] is not None),
        model_files=model_files,
        has_recognized=any(each.quality.shown_recognized for each in model_files),
        is_same_test=len({each.config["data_digest"] for each in evaluated}) == 1,
        correct=_correct(first),
    )


def _model_files(evaluated: list[EvaluatedRun]) -> list[_ModelFile]:
    """Return every model file of every run, float32 models first, with speeds measured in turn."""
    files = [(each, variant) for each in evaluated for variant in Variant if each.run.exported(variant).exists()]
    files.sort(key=lambda file: file[1] is not Variant.FLOAT32)
    bitmaps = evaluated[0].held_out.bitmaps
    speeds = cost.rows_per_s([each.run.exported(variant) for each, variant in files], bitmaps)
    return [
        _model_file(each, variant, speed, speed / speeds[0])
        for (each, variant), speed in zip(files, speeds, strict=True)
    ]


def _model_file(own: EvaluatedRun, variant: Variant, rows_per_s: float, relative_speed: float) -> _ModelFile:
    path, original = own.run.exported(variant), onnx.load(own.run.onnx)
    quality = own.quality
    if variant is not Variant.FLOAT32:
        scores = onnx_scores(onnx.load(path), own.held_out.bitmaps)
        quality = evaluate_scores(scores, own.held_out.class_index, own.quality.labels)
    return _ModelFile(
        title=own.title,
        variant=variant,
        quality=quality,
        size_mb=path.stat().st_size / 1e6,
        parameters=cost.parameters(original),
        mflop=cost.flops(original) / 1e6,
        rows_per_s=rows_per_s,
        relative_speed=relative_speed,
    )


def _correct(own: EvaluatedRun) -> list[dict[str, Any]]:
    """Return some correctly classified drawings, evenly spaced over the classes."""
    labels, predicted = own.quality.labels, own.scores.argmax(axis=1)
    correct = np.flatnonzero(predicted == own.held_out.class_index)
    return [
        {
            "label": labels[predicted[row]],
            "score": float(own.scores[row].max()),
            "picture": picture(own.held_out.bitmaps[row]),
        }
        for row in correct[:: max(1, len(correct) // _CORRECT_SHOWN)][:_CORRECT_SHOWN]
    ]


def _described(own: EvaluatedRun) -> dict[str, Any]:
    """Return the metadata of the model file, and its size in MB."""
    metadata = {key.removeprefix("sketchbatch."): value for key, value in own.properties.items()}
    return {**metadata, "size_mb": own.run.onnx.stat().st_size / 1e6}


def _named_values(recipe: dict[str, Any]) -> dict[str, str]:
    """Return the values of a recipe as text, by name."""
    own = {name: value for name, value in recipe.items() if name not in ("network", "augmentation")}
    flat = own | recipe["network"] | (recipe["augmentation"] or {"augmentation": "none"})
    return {
        name.replace("_", " "): " and ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in flat.items()
    }
