"""Measure one model that a service serves, or compare two models, on the same labelled drawings.

Flow: labelled files -> scores from the service -> `Accumulator` -> figures with intervals. Rows are never stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..drawings.readers import BitmapRows, Bitmaps, label_of
from ..errors import RequestRefused, ServerFailed
from ..label_names import listed, nfc, with_suggestions
from ..rpc.classification import ModelInfo, non_finite
from ..rpc.client import Client
from .accumulator import Accumulator, ScoredRows
from .labelled import LabelledDrawings, RecognizedFlags
from .predictions import ServedModel, paired_rows, scored_rows
from .quality import ModelQuality
from .stats.drift import Drift, drift
from .stats.mcnemar import Paired, count_pairs, pair
from .training_digests import TrainedOn, decoded, digest_each, highest, split

Progress = Callable[[int], object]  # called with the number of rows scored since the last call


@dataclass(frozen=True, kw_only=True)
class Evaluation(ModelQuality):
    """How good a served model is on the drawings of one folder."""

    model: ModelInfo
    server: str
    """Target of the client, such as host:port."""
    drawings: LabelledDrawings
    trained_on: TrainedOn | None = None
    """None = the model has no digests of its training drawings."""

    @property
    def name(self) -> str:
        """Name and version of the model, as text."""
        return f"{self.model.name} version {self.model.version}"

    @property
    def drift(self) -> dict[str, Drift]:
        """Drift of each metric that the model file stores."""
        return drift(self.model.metrics, self.figures.measured, self.figures.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How good two models are on the same drawings; each may predict all of its labels, not only the common ones."""

    first: Evaluation
    second: Evaluation
    paired: Paired

    @property
    def named(self) -> list[tuple[str, Evaluation]]:
        """Both evaluations by name; the names include the servers if model and version are equal."""
        is_same_name = self.first.name == self.second.name
        return [
            (f"{each.name} at {each.server}" if is_same_name else each.name, each) for each in (self.first, self.second)
        ]

    @property
    def cautions(self) -> list[str]:
        """Return sentences for users that state what may favour one of the models."""
        cautions = []
        if len({len(each.labels) for _, each in self.named}) > 1:
            numbers = ", ".join(f"{name} has {labels_of(each)}" for name, each in self.named)
            cautions.append(
                f"{numbers}: each model may predict all of its labels, so more labels make the task harder."
            )
        unknown = [name for name, each in self.named if not each.trained_on]
        if unknown:
            cautions.append(
                f"These drawings may be training drawings of {' or '.join(dict.fromkeys(unknown))}: "
                "the model file has no digests of its training drawings. docs/evaluation.md names drawings on which no "
                "shipped model was trained."
            )
        return cautions


def evaluate(
    client: Client, model: ModelInfo, drawings: LabelledDrawings, progress: Progress = lambda rows: None
) -> Evaluation:
    """Classify `drawings` with exactly this model version and measure the result.

    Raises RequestRefused if the model does not know a label of the drawings, FileRefused if a line or picture is
    malformed, ServerFailed if the scores of a drawing are not finite, and
    SketchbatchError if a request failed.
    """
    _check_labels(drawings, model)
    served, accumulator = ServedModel(client, model), Accumulator(model.labels, model.rejection)
    flags = RecognizedFlags(drawings.bitmaps, skip_malformed=drawings.skips_malformed)
    trained_on = _TrainingDrawings([served])
    for scored in scored_rows(served, trained_on.watching(drawings.bitmaps)):
        _check_finite(scored, model, drawings)
        accumulator.add(scored, flags.read(scored.file, scored.rows))
        progress(len(scored.rows))
    return _evaluation(served, drawings, accumulator, trained_on.counted[0])


def compare(
    first: ServedModel, second: ServedModel, drawings: LabelledDrawings, progress: Progress = lambda rows: None
) -> Comparison:
    """Classify `drawings` with both models in one pass; both must know all labels of the drawings.

    Raises the errors of `evaluate`.
    """
    for each in (first, second):
        _check_labels(drawings, each.model)
    accumulators = tuple(Accumulator(each.model.labels, each.model.rejection) for each in (first, second))
    flags = RecognizedFlags(drawings.bitmaps, skip_malformed=drawings.skips_malformed)
    trained_on = _TrainingDrawings([first, second])
    table = np.zeros((2, 2), np.int64)
    for both in paired_rows(first, second, trained_on.watching(drawings.bitmaps), drawings.bitmaps):
        for scored, each in zip(both, (first, second), strict=True):
            _check_finite(scored, each.model, drawings)
        own_flags = flags.read(both[0].file, both[0].rows)
        correct = [each.add(scored, own_flags) for each, scored in zip(accumulators, both, strict=True)]
        table += count_pairs(*correct)
        progress(len(own_flags))
    return Comparison(
        first=_evaluation(first, drawings, accumulators[0], trained_on.counted[0]),
        second=_evaluation(second, drawings, accumulators[1], trained_on.counted[1]),
        paired=pair(table),
    )


def labels_of(evaluation: Evaluation) -> str:
    """Return the number of labels of a model, and of those without drawings here, which the means leave out."""
    labels = len(evaluation.labels)
    text = "1 label" if labels == 1 else f"{labels:,} labels"
    without = labels - evaluation.tested_labels
    return f"{text} ({without:,} without drawings here)" if without else text


def common_labels(first: ModelInfo, second: ModelInfo) -> tuple[str, ...]:
    """Return the labels that both models know, in the first model's order; names are compared in NFC.

    Raises RequestRefused if there is none.
    """
    known = set(map(nfc, second.labels))
    labels = tuple(label for label in first.labels if nfc(label) in known)
    if not labels:
        lists = f"{listed(first.labels)}; and {with_suggestions(second.labels, first.labels)}"
        names = f"{first.name} and {second.name}"
        raise RequestRefused(f"models must share a label, {names} have no label in common: {lists}")
    return labels


def _check_labels(drawings: LabelledDrawings, model: ModelInfo) -> None:
    """Raise RequestRefused if the model does not know a label of the drawings."""
    known = set(map(nfc, model.labels))
    if unknown := [label for file in drawings.bitmaps if (label := label_of(file)) not in known]:
        names = with_suggestions(unknown, model.labels)
        raise RequestRefused(f"drawings must have labels of {model.name}, got {names}; open them with its labels")


def _check_finite(scored: ScoredRows, model: ModelInfo, drawings: LabelledDrawings) -> None:
    """Raise ServerFailed if a drawing has no label because its scores are NaN or infinite.

    Such a drawing is not skipped as malformed drawings may be: without it the model would look better than it is.
    """
    finite = np.isfinite(scored.scores).all(axis=1)
    if not finite.all():
        file, row = drawings.origin(scored.file, scored.rows[int(finite.argmin())])
        raise ServerFailed(f"{file}, row {row}: {non_finite(model.name, model.version)} (NaN or infinity)")


class _TrainingDrawings:
    """Counts the training drawings of models among the judged drawings, while these are read for the requests."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._samples = [split(decoded(_training_digests(each))) for each in models]
        self._counts = [[TrainedOn()] * len(samples) for samples in self._samples]

    @property
    def counted(self) -> list[TrainedOn | None]:
        """The counts of each model with the sample that recognises most; None = without digests."""
        return [highest(counts) if counts else None for counts in self._counts]

    def watching(self, bitmaps: dict[Path, BitmapRows]) -> dict[Path, BitmapRows]:
        """Return the same drawings, which are counted as they are read."""
        return {file: _WatchedRows(rows, self._add) for file, rows in bitmaps.items()} if any(self._counts) else bitmaps

    def _add(self, bitmaps: Bitmaps) -> None:
        digests = digest_each(bitmaps)
        self._counts = [
            [count.add(digests, sample) for count, sample in zip(counts, samples, strict=True)]
            for counts, samples in zip(self._counts, self._samples, strict=True)
        ]


def _training_digests(served: ServedModel) -> bytes:
    """Return the digests of the model, which the service sends only on request; empty if the file has none."""
    own = served.model
    return (
        own.training_digests or served.client.model(own.name, own.version, with_training_digests=True).training_digests
    )


@dataclass(frozen=True, slots=True)
class _WatchedRows:
    """Bitmaps that are passed to a function as they are read."""

    rows: BitmapRows
    watch: Callable[[Bitmaps], None]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Bitmaps:
        bitmaps = self.rows[rows]
        self.watch(bitmaps)
        return bitmaps


def _evaluation(
    served: ServedModel, drawings: LabelledDrawings, accumulator: Accumulator, trained_on: TrainedOn | None
) -> Evaluation:
    return Evaluation(
        **vars(accumulator.quality()),
        model=served.model,
        server=served.client.target,
        drawings=drawings,
        trained_on=trained_on,
    )
