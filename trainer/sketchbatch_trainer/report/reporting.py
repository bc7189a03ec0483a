"""Writes report.html: how good a run's model is, what it costs, and how runs compare, side by side.

Judges the float32 model of each run on the drawings that its training held out: by the scores that `sketchbatch score`
left in the run, if it did, else by ONNX Runtime here. One file, nothing beside it, so that it can be mailed.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sketchbatch_client.evaluation.stats.metrics import TITLES, measure_each
from sketchbatch_client.html_page import write_page

from ..export.held_out import HeldOut, Scores, onnx_scores, read_held_out
from ..run import Run, Variant
from . import cost, report_plots
from .quality import Quality, judge

_SHOWN = 24  # drawings in each gallery
_CLASSES_SHOWN = 40  # in the table of classes: the worst


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """One run, judged."""

    run: Run
    config: dict[str, Any]
    properties: dict[str, str]
    """What the model file says of itself."""
    held_out: HeldOut
    scores: Scores
    quality: Quality
    recognized: Quality | None
    """On those drawings alone that the game recognised; None where that is not known of any."""
    known: Quality | None
    """On all drawings of which it is known, recognised or not: what `recognized` is to be held against."""
    is_served: bool
    """Whether the scores came over gRPC from the running service."""

    @property
    def title(self) -> str:
        """Name of the model and recipe."""
        name, recipe = self.config["name"], self.config["recipe"]["name"]
        return name if name == recipe else f"{name}, {recipe}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One model file of the table side by side."""

    title: str
    variant: Variant
    judged: _Judged
    quality: Quality
    size_mb: float
    parameters: int
    mflop: float
    rows_per_s: float
    times_first: float
    """Rows a second over those of the first line."""


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Writes the page, whole or not at all: in full on the first run, and all of them in one table.

    Raises:
        RunIncomplete: A step before it was not run; says which.
    """
    judged = [_judge(run) for run in runs]
    first = judged[0]
    write_page(
        output,
        "sketchbatch_trainer/report/report.html.j2",
        title=_and(first.config["labels"]),
        is_synthetic=any(each.config["source"].startswith("synthetic") for each in judged),
        first=first,
        config=first.config,
        recipe=_named_values(first.config["recipe"]),
        model=_described(first),
        cards=[(*TITLES[name], first.quality.metrics[name]) for name in TITLES],
        metric_names={name: title for name, (title, _) in TITLES.items()},
        curves=report_plots.learning_curves(_read_history(first.run), _kept_epoch(first)),
        reliability=report_plots.reliability(first.quality.reliability),
        confusion=_confusion(first),
        classes=_classes(first),
        lines=_lines(judged),
        is_one_test=len({each.config["data_digest"] for each in judged}) == 1,
        **_galleries(first),
    )


def _judge(run: Run) -> _Judged:
    config = run.read_config()
    graph = onnx.load(run.need(run.onnx, "export"))
    held_out = read_held_out(run, config["labels"])
    scores = _served_scores(run, held_out, config["labels"])
    is_served = scores is not None
    if scores is None:
        scores = onnx_scores(graph, held_out.bitmaps)
    flags = _read_recognized(run, config["labels"], held_out)
    is_known, is_recognized = flags >= 0, flags == 1
    return _Judged(
        run=run,
        config=config,
        properties={prop.key: prop.value for prop in graph.metadata_props},
        held_out=held_out,
        scores=scores,
        quality=judge(scores, held_out.class_index),
        recognized=_judge_some(scores, held_out, is_recognized),
        known=_judge_some(scores, held_out, is_known),
        is_served=is_served,
    )


def _judge_some(scores: Scores, held_out: HeldOut, some: NDArray[np.bool_]) -> Quality | None:
    return judge(scores[some], held_out.class_index[some]) if some.any() else None


def _served_scores(run: Run, held_out: HeldOut, labels: list[str]) -> Scores | None:
    """What `sketchbatch score RUN/test --all-scores --output RUN/scores.csv` wrote; None where it was not run."""
    if not run.scores.exists():
        return None
    places = {(label, row): place for place, (label, row) in enumerate(_names(held_out, labels))}
    scores = np.full((len(held_out.bitmaps), len(labels)), np.nan, np.float32)
    with run.scores.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            place = places.get((Path(line["source"]).stem, int(line["row"])))
            if place is None or any(f"score_{label}" not in line for label in labels):
                return None  # of other drawings, or without the scores of every class
            scores[place] = [float(line[f"score_{label}"]) for label in labels]
    return None if np.isnan(scores).any() else scores


def _names(held_out: HeldOut, labels: list[str]) -> list[tuple[str, int]]:
    """Label and row in its file of each held-out drawing."""
    counts = np.bincount(held_out.class_index, minlength=len(labels))
    return [(label, row) for label, rows in zip(labels, counts, strict=True) for row in range(rows)]


def _read_recognized(run: Run, labels: list[str], held_out: HeldOut) -> NDArray[np.int8]:
    """For each held-out drawing: 1 = the game recognised it, 0 = not, -1 = not known."""
    if not run.recognized.exists():
        return np.full(len(held_out.bitmaps), -1, np.int8)
    with run.recognized.open(encoding="utf-8", newline="") as file:
        flags = {(line["label"], int(line["row"])): int(line["is_recognized"]) for line in csv.DictReader(file)}
    return np.array([flags.get(name, -1) for name in _names(held_out, labels)], np.int8)


def _lines(judged: list[_Judged]) -> list[_Line]:
    """Every model file of every run, its variants too, with rows a second taken in turn."""
    files = [(each, variant) for each in judged for variant in Variant if each.run.exported(variant).exists()]
    files.sort(key=lambda file: file[1] is not Variant.FLOAT32)  # variants after all float32 models
    bitmaps = judged[0].held_out.bitmaps
    speeds = cost.rows_per_s([each.run.exported(variant) for each, variant in files], bitmaps)
    return [
        _line(each, variant, rows_per_s, rows_per_s / speeds[0])
        for (each, variant), rows_per_s in zip(files, speeds, strict=True)
    ]


def _line(judged: _Judged, variant: Variant, rows_per_s: float, times_first: float) -> _Line:
    path = judged.run.exported(variant)
    graph, original = onnx.load(path), onnx.load(judged.run.onnx)
    is_float32 = variant is Variant.FLOAT32
    return _Line(
        title=judged.title,
        variant=variant,
        judged=judged,
        quality=judged.quality
        if is_float32
        else judge(onnx_scores(graph, judged.held_out.bitmaps), judged.held_out.class_index),
        size_mb=path.stat().st_size / 1e6,
        parameters=cost.parameters(original),
        mflop=cost.flops(original) / 1e6,
        rows_per_s=rows_per_s,
        times_first=times_first,
    )


def _classes(judged: _Judged) -> list[dict[str, Any]]:
    """Figures of each class, with what it is most often taken for; the worst where there are many."""
    labels, confusion = judged.config["labels"], judged.quality.confusion
    wrong = confusion - np.diag(np.diagonal(confusion))
    lines = [
        {**own, "label": label, "taken_for": labels[int(wrong[index].argmax())] if wrong[index].any() else ""}
        for index, (label, own) in enumerate(zip(labels, measure_each(confusion), strict=True))
    ]
    return lines if len(lines) <= _CLASSES_SHOWN else sorted(lines, key=lambda own: own["recall"])[:_CLASSES_SHOWN]


def _confusion(judged: _Judged) -> str:
    """The matrix, of the classes most often taken for one another where there are many."""
    labels, confusion = judged.config["labels"], judged.quality.confusion
    if len(labels) > report_plots.MOST_WRITTEN:
        wrong = confusion - np.diag(np.diagonal(confusion))
        worst = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)))[: report_plots.MOST_WRITTEN])
        labels, confusion = [labels[index] for index in worst], confusion[np.ix_(worst, worst)]
    return report_plots.confusion_matrix(confusion, labels)


def _galleries(judged: _Judged) -> dict[str, Any]:
    """The worst mistakes, surest first, and some drawings named right."""
    labels, truth, best = judged.config["labels"], judged.held_out.class_index, judged.scores.argmax(axis=1)
    sure = judged.scores.max(axis=1)
    wrong = np.flatnonzero(best != truth)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    right = np.flatnonzero(best == truth)
    spread = right[:: max(1, len(right) // _SHOWN)][:_SHOWN]  # evenly, so that every class is seen
    said_wrong = [f"{labels[truth[row]]}\nsaid {labels[best[row]]} {sure[row]:.0%}" for row in wrong[:_SHOWN]]
    said_right = [f"{labels[best[row]]}\n{sure[row]:.0%}" for row in spread]
    bitmaps = judged.held_out.bitmaps
    return {
        "wrong_count": len(wrong),
        "wrong": report_plots.gallery(bitmaps[wrong[:_SHOWN]], said_wrong, report_plots.WRONG) if len(wrong) else "",
        "right": report_plots.gallery(bitmaps[spread], said_right, report_plots.RIGHT) if len(right) else "",
    }


def _described(judged: _Judged) -> dict[str, Any]:
    """What the model file says of itself, and its size in MB."""
    named = {key.removeprefix("sketchbatch."): value for key, value in judged.properties.items()}
    return {**named, "size_mb": judged.run.onnx.stat().st_size / 1e6}


def _named_values(recipe: dict[str, Any]) -> dict[str, str]:
    """The values of a recipe, in words."""
    own = {name: value for name, value in recipe.items() if name not in ("network", "augmentation")}
    flat = own | recipe["network"] | (recipe["augmentation"] or {"augmentation": "none"})
    return {
        name.replace("_", " "): " and ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in flat.items()
    }


def _read_history(run: Run) -> dict[str, list[float]]:
    with run.need(run.history).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [float(line[name]) for line in lines] for name in lines[0]}


def _kept_epoch(judged: _Judged) -> int:
    """The epoch, from 1, whose weights were kept."""
    losses = _read_history(judged.run)["val_loss"]
    return int(np.argmin(losses)) + 1 if judged.config["recipe"]["patience"] is not None else len(losses)


def _and(names: list[str]) -> str:
    """Such as: bear, cat and dog."""
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"
