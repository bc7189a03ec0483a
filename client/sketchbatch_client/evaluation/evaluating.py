"""Says how good a served model is on labelled drawings: a folder with a file, or a folder of pictures, a label."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing
from ..calls.classification import ModelInfo
from ..calls.client import Client
from ..drawings.readers import BitmapRows, label_of, labelled_files, open_bitmaps, source_of
from ..errors import FileRefused
from ..scoring.plan import ScoreOptions
from ..scoring.rows import Progress, score_rows
from .metrics import Confusion, Metrics, confuse, measure, measure_each


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledDrawings:
    """The drawings of a folder that a model can be judged by."""

    source: str
    """Where they come from."""
    bitmaps: dict[Path, BitmapRows]
    """Files whose label the model knows."""
    passed_over: tuple[str, ...]
    """Labels the model does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How one model did on one folder."""

    model: ModelInfo
    drawings: LabelledDrawings
    confusion: Confusion
    """(classes, classes), rows = true label, columns = predicted label, in the order of the model's labels."""

    @property
    def metrics(self) -> Metrics:
        """The article's five."""
        return measure(self.confusion)

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, specificity and rows, by label."""
        return dict(zip(self.model.labels, measure_each(self.confusion), strict=True))

    def to_json(self) -> dict[str, Any]:
        """The contents of metrics.json."""
        return asdict(self.metrics) | {
            "rows": int(self.confusion.sum()),
            "labels": list(self.model.labels),
            "source": self.drawings.source,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
            "passed_over": list(self.drawings.passed_over),
            "model": {"name": self.model.name, "version": self.model.version, "digest": self.model.digest},
        }

    def write(self, path: Path) -> None:
        """Writes `to_json`, whole or not at all."""
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_labelled(folder: Path, labels: tuple[str, ...]) -> LabelledDrawings:
    """Opens the files of `folder` that are named after one of `labels`.

    Raises:
        FileRefused: There is no such folder, no row in it with one of the labels, or a file is not what it should be.
    """
    files = labelled_files(folder)
    bitmaps = {file: open_bitmaps(file) for label, file in files.items() if label in labels}
    if not sum(map(len, bitmaps.values())):
        raise FileRefused(f"{folder}: expected drawings of {_some(labels)}, got {_some(tuple(files))}")
    return LabelledDrawings(
        source=source_of(folder),
        bitmaps=bitmaps,
        passed_over=tuple(label for label in files if label not in labels),
    )


def evaluate(
    client: Client, model: ModelInfo, drawings: LabelledDrawings, progress: Progress = lambda rows: None
) -> Evaluation:
    """Classifies `drawings` with exactly `model` and counts hits and misses."""
    confusion = np.zeros((len(model.labels),) * 2, np.int64)
    options = ScoreOptions(model_name=model.name, model_version=model.version)
    for file, _, result in score_rows(client, drawings.bitmaps, options):
        true = np.full(len(result), model.labels.index(label_of(file)))
        confusion += confuse(true, result.class_index[:, 0], len(model.labels))
        progress(len(result))
    return Evaluation(model=model, drawings=drawings, confusion=confusion)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
