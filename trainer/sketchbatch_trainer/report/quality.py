"""Evaluate the model of a run on its held-out drawings."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sketchbatch.rejection import KEY, Rejection, decode
from sketchbatch_client.evaluation.accumulator import Accumulator, ScoredRows
from sketchbatch_client.evaluation.figures import picture
from sketchbatch_client.evaluation.labelled import UNKNOWN, Flags
from sketchbatch_client.evaluation.quality import Mistake, ModelQuality
from sketchbatch_client.label_names import nfc

from ..export.held_out import HeldOut, Scores, onnx_scores, read_held_out
from ..export.out_of_fold import read_out_of_fold
from ..run import Run, Variant, exported_properties


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRun:
    """A run with the quality of its float32 model."""

    run: Run
    config: dict[str, Any]
    metadata: dict[str, str]
    """Metadata of the model file, with keys without the prefix `sketchbatch.`."""
    held_out: HeldOut
    scores: Scores
    quality: ModelQuality
    is_served: bool
    """Whether the scores came from a running service over gRPC."""
    folds: int
    """Number of folds of the cross-validation that judged the model; 0 = its own scores were judged."""

    @property
    def title(self) -> str:
        """Name of the model and name of its recipe."""
        name, recipe = self.config["name"], self.config["recipe"]["name"]
        return name if name == recipe else f"{name}, {recipe}"

    def agreement_of(self, variant: Variant) -> float:
        """Return the share of `held_out` with the same label from a variant and float32, as its export measured it."""
        properties = exported_properties(self.run.exported(variant))
        return float(json.loads(properties["sketchbatch.metrics"])["agreement"])

    def quality_of(self, variant: Variant) -> ModelQuality | None:
        """Return the quality of a variant scored by ONNX Runtime, without metrics for recognised drawings.

        None = the drawings trained the model, so its scores for them would be too good. The folds of a
        cross-validation judged float32 only.
        """
        if variant is Variant.FLOAT32:
            return self.quality
        if self.held_out.has_trained:
            return None
        scores = onnx_scores(onnx.load(self.run.exported(variant)), self.held_out.bitmaps)
        return evaluate_scores(scores, self.held_out.class_index, self.quality.labels)

    def show(self, mistake: Mistake) -> tuple[str, str]:
        """Return the picture of a mistake, as the source of an <img> element, and its origin as text."""
        class_index = self.config["labels"].index(mistake.label)
        row = np.flatnonzero(self.held_out.class_index == class_index)[mistake.row]
        return picture(self.held_out.bitmaps[row]), f"{mistake.file}, row {mistake.row}"


def evaluate_scores(
    scores: Scores,
    class_index: NDArray[np.integer],
    labels: Sequence[str],
    flags: Flags | None = None,
    rejection: Rejection | None = None,
) -> ModelQuality:
    """Return the quality of the model that computed `scores`, (rows, classes), for at least one row.

    `class_index` and `flags`, (rows,), are the true class and the recognised flag of each row. `rejection` has the
    thresholds of the model file; None = it stores none.
    """
    flags = np.full(len(scores), UNKNOWN, np.int8) if flags is None else flags
    accumulator = Accumulator(labels, rejection)
    for index in np.unique(class_index):
        is_own = class_index == index
        accumulator.add(ScoredRows(Path(f"{labels[index]}.npy"), 0, scores[is_own]), flags[is_own])
    return accumulator.quality()


def evaluate_run(run: Run) -> EvaluatedRun:
    """Evaluate the float32 model of a run.

    The scores come from the run's cross-validation; or else from a file that `sketchbatch score` wrote into the run;
    or else from ONNX Runtime.

    Raises:
        RunIncomplete: The run has no exported model; the message names the command that exports it.
    """
    config = run.read_config()
    labels = config["labels"]
    graph = onnx.load(run.need(run.onnx, "export"))
    held_out = read_held_out(run, labels)
    out_of_fold = read_out_of_fold(run)
    served = None if out_of_fold else _served_scores(run, held_out, labels)
    if out_of_fold:
        scores = out_of_fold.scores()[0]
    else:
        scores = onnx_scores(graph, held_out.bitmaps) if served is None else served
    return EvaluatedRun(
        run=run,
        config=config,
        metadata={prop.key.removeprefix("sketchbatch."): prop.value for prop in graph.metadata_props},
        held_out=held_out,
        scores=scores,
        quality=evaluate_scores(
            scores, held_out.class_index, labels, _recognized_flags(run, held_out, labels), _rejection(graph)
        ),
        is_served=served is not None,
        folds=out_of_fold.folds if out_of_fold else 0,
    )


def _rejection(model: onnx.ModelProto) -> Rejection | None:
    """Return the rejection thresholds that the model file stores; None if it stores none."""
    return next((decode(prop.value) for prop in model.metadata_props if prop.key == KEY), None)


def _served_scores(run: Run, held_out: HeldOut, labels: list[str]) -> Scores | None:
    """Return the scores of `sketchbatch score RUN/test --all-scores --output RUN/scores.csv`.

    Return None if scores.csv does not exist, has other drawings, or lacks the scores of a class.
    """
    if not run.scores.exists():
        return None
    indices = {(nfc(label), row): index for index, (label, row) in enumerate(_origins(held_out, labels))}
    scores = np.full((len(held_out.bitmaps), len(labels)), np.nan, np.float32)
    with run.scores.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            index = indices.get((nfc(Path(line["source"]).stem), int(line["row"])))
            if index is None or any(f"score_{label}" not in line for label in labels):
                return None
            scores[index] = [float(line[f"score_{label}"]) for label in labels]
    return None if np.isnan(scores).any() else scores


def _recognized_flags(run: Run, held_out: HeldOut, labels: list[str]) -> Flags:
    if not run.recognized.exists():
        return np.full(len(held_out.bitmaps), UNKNOWN, np.int8)
    with run.recognized.open(encoding="utf-8", newline="") as file:
        flags = {(line["label"], int(line["row"])): int(line["is_recognized"]) for line in csv.DictReader(file)}
    return np.array([flags.get(origin, UNKNOWN) for origin in _origins(held_out, labels)], np.int8)


def _origins(held_out: HeldOut, labels: list[str]) -> Iterator[tuple[str, int]]:
    """Yield the label of each held-out drawing and the drawing's row in the label's file."""
    for label, rows in zip(labels, np.bincount(held_out.class_index, minlength=len(labels)), strict=True):
        yield from ((label, row) for row in range(rows))
