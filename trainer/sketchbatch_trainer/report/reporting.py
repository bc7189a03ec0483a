"""Write report.html: the quality of a run's model, its cost, and a comparison with other runs.

The float32 model of each run is evaluated on the drawings that its training held out. The page is one self-contained
file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from sketchbatch_client.evaluation.figures import picture
from sketchbatch_client.evaluation.quality import ModelQuality
from sketchbatch_client.evaluation.quality_page import quality_values
from sketchbatch_client.html_page import enumerated, write_page

from ..dataset import MEASURED_TEST_ROWS
from ..run import Run, Variant
from . import cost
from .learning_curves import curve_names, has_split, learning_curve, read_history
from .quality import EvaluatedRun, evaluate_run

_CORRECT_SHOWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelFile:
    """One model file in the table of costs and the table of metrics."""

    title: str
    variant: Variant
    quality: ModelQuality | None
    """None = the model trained on all drawings, and the folds judged its float32 model only."""
    agreement: float
    """Share of the drawings for which the file and the float32 model predict the same label."""
    agreement_rows: int
    """Number of these drawings."""
    size_mb: float
    parameters: int
    mflop: float
    rows_per_s: float
    relative_speed: float
    """Rows per second divided by the rows per second of the first model file."""


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Write the report page atomically: the first run in full, and the model files of all runs in one table.

    Raises:
        RunIncomplete: A run lacks a file of an earlier step; the message names the command that writes it.
    """
    evaluated = [evaluate_run(run) for run in runs]
    first = evaluated[0]
    history = read_history(first.run.need(first.run.history))
    keeps_best = first.config["recipe"]["patience"] is not None
    model_files = _model_files(evaluated)
    write_page(
        output,
        "sketchbatch_trainer/report/report.html.j2",
        **quality_values(first.quality, first.show),
        title=enumerated(first.config["labels"]),
        is_synthetic=any(each.config["source"].startswith("synthetic") for each in evaluated),
        is_served=first.is_served,
        folds=first.folds,
        config=first.config,
        recipe=_named_values(first.config["recipe"]),
        model=first.metadata,
        size_mb=first.run.onnx.stat().st_size / 1e6,
        curves={name: learning_curve(history, name, keeps_best=keeps_best) for name in ("loss", "accuracy")},
        keeps_best=keeps_best,
        has_validation=has_split(history, "val"),
        curve_names=enumerated(curve_names(history)),
        measured_test_rows=min(MEASURED_TEST_ROWS, first.config["rows"]["test"]) if has_split(history, "test") else 0,
        model_files=model_files,
        has_recognized=any(each.quality and each.quality.shown_recognized for each in model_files),
        is_same_test=len(set(map(_test_drawings, evaluated))) == 1,
        correct=_correct(first),
    )


def _model_files(evaluated: list[EvaluatedRun]) -> list[_ModelFile]:
    """Return every model file of every run, float32 models first, with speeds from interleaved measurements."""
    files = [(own, variant) for own in evaluated for variant in Variant if own.run.has_export(variant)]
    files.sort(key=lambda file: file[1] is not Variant.FLOAT32)
    bitmaps = evaluated[0].held_out.bitmaps
    speeds = cost.rows_per_s([own.run.exported(variant) for own, variant in files], bitmaps)
    titles = Counter(own.title for own in evaluated)
    return [
        _ModelFile(
            title=own.title if titles[own.title] == 1 else f"{own.title} ({own.run.folder})",
            variant=variant,
            quality=own.quality_of(variant),
            agreement=1.0 if variant is Variant.FLOAT32 else own.agreement_of(variant),
            agreement_rows=len(own.held_out.bitmaps),
            size_mb=own.run.exported(variant).stat().st_size / 1e6,
            parameters=cost.parameters(original := onnx.load(own.run.onnx)),
            mflop=cost.flops(original) / 1e6,
            rows_per_s=speed,
            relative_speed=speed / speeds[0],
        )
        for (own, variant), speed in zip(files, speeds, strict=True)
    ]


def _test_drawings(own: EvaluatedRun) -> tuple[Any, ...]:
    """Return what decides on which drawings a run is evaluated."""
    return own.config["data_digest"], own.config.get("hold_out", "test"), frozenset(own.config["labels"])


def _correct(own: EvaluatedRun) -> list[dict[str, Any]]:
    """Return some correctly classified drawings: in turn one of each class, until they are enough."""
    labels, predicted = own.quality.labels, own.scores.argmax(axis=1)
    is_correct = predicted == own.held_out.class_index
    by_class = [np.flatnonzero(is_correct & (predicted == index)) for index in np.unique(predicted[is_correct])]
    spread = np.linspace(0, len(by_class) - 1, min(len(by_class), _CORRECT_SHOWN)).astype(int)
    in_turn = (row for rows in zip_longest(*(by_class[index] for index in spread)) for row in rows if row is not None)
    return [
        {
            "label": labels[predicted[row]],
            "score": float(own.scores[row].max()),
            "picture": picture(own.held_out.bitmaps[row]),
        }
        for row in sorted(islice(in_turn, _CORRECT_SHOWN))
    ]


def _named_values(recipe: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a recipe by name, each value as text."""
    own = {name: value for name, value in recipe.items() if name not in ("network", "augmentation")}
    flat = own | recipe["network"] | (recipe["augmentation"] or {"augmentation": "none"})
    return {name.removeprefix("is_").replace("_", " "): _as_text(value) for name, value in flat.items()}


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
