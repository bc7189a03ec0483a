"""Says how good served models are on labelled drawings: one, or two side by side on the same.

Flow: labelled files -> answers of the service -> counts -> figures with their intervals. Rows are never kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import RequestRefused
from ..rpc.classification import ModelInfo
from ..rpc.client import Client
from .accumulator import Mistake, Tally
from .labelled import LabelledDrawings, RecognizedFlags
from .predictions import Served, answers, answers_in_step
from .stats.calibration import Calibration
from .stats.drift import Drift, drift
from .stats.intervals import Measured, wilson, with_intervals
from .stats.mcnemar import Paired, count, pair
from .stats.metrics import Confusion, Metrics, measure, measure_each

Progress = Callable[[int], object]
"""Called with the number of rows scored since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How good a model is on some drawings."""

    rows: int
    measured: dict[str, Measured]
    """The five metrics by name (`Metrics`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """How good it is where the game recognised the drawing."""

    known: Figures
    """On all drawings of which that is known: what `recognized` is to be held against."""
    recognized: Figures
    """On those alone that the game recognised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How one model did on one folder."""

    model: ModelInfo
    server: str
    """host:port, or whatever the client was told."""
    drawings: LabelledDrawings
    confusion: Confusion
    """(classes, classes), rows = true label, columns = predicted label, in the order of the model's labels."""
    figures: Figures
    """On all drawings."""
    recognized: Recognized | None
    """None where the flag is not known of any drawing, or all were recognised."""
    top_3: float
    """Share of rows whose label is among the three best scores."""
    calibration: Calibration | None
    """None if the scores are not shares that sum to 1."""
    mistakes: tuple[Mistake, ...]
    """The surest, first of all; a few."""

    @property
    def name(self) -> str:
        """Of model and version."""
        return f"{self.model.name} version {self.model.version}"

    @property
    def metrics(self) -> Metrics:
        """The article's five."""
        return measure(self.confusion)

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, specificity, rows, and rows predicted as it, by label."""
        return dict(zip(self.model.labels, measure_each(self.confusion), strict=True))

    @property
    def class_intervals(self) -> dict[str, tuple[Measured, Measured]]:
        """Recall and precision of each label, with their intervals; 0 to 1 where there is nothing to go by."""
        own = self.per_class.values()
        recall = _shares([each["recall"] for each in own], [each["rows"] for each in own])
        precision = _shares([each["precision"] for each in own], [each["predicted"] for each in own])
        return dict(zip(self.model.labels, zip(recall, precision, strict=True), strict=True))

    @property
    def drift(self) -> dict[str, Drift]:
        """Each metric that the model stores of its training, beside the one measured here."""
        return drift(self.model.metrics, self.figures.measured, self.figures.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two models did on the same drawings, each naming what scores highest among its own labels."""

    first: Evaluation
    second: Evaluation
    paired: Paired

    @property
    def beside(self) -> list[tuple[str, Evaluation]]:
        """Both, with what to call them: their servers, too, where model and version are the same."""
        both = self.first, self.second
        is_twin = self.first.name == self.second.name
        return [(f"{each.name} at {each.server}" if is_twin else each.name, each) for each in both]


def evaluate(
    client: Client, model: ModelInfo, drawings: LabelledDrawings, progress: Progress = lambda rows: None
) -> Evaluation:
    """Classifies `drawings` with exactly `model` and counts hits and misses.

    Raises:
        FileRefused: A line or picture is malformed.
        SketchbatchError: The service did not answer.
    """
    served, tally, flags = Served(client, model), Tally(model.labels), RecognizedFlags(drawings)
    for answer in answers(served, drawings.bitmaps):
        tally.add(answer, flags(answer.file, answer.rows))
        progress(len(answer.rows))
    return _evaluation(served, drawings, tally)


def compare(
    first: Served, second: Served, drawings: LabelledDrawings, progress: Progress = lambda rows: None
) -> Comparison:
    """Classifies `drawings`, whose labels both models know, with both at the same time; errors as `evaluate`."""
    tallies, flags = (Tally(first.model.labels), Tally(second.model.labels)), RecognizedFlags(drawings)
    table = np.zeros((2, 2), np.int64)
    for both in answers_in_step(first, second, drawings.bitmaps):
        of_these = flags(both[0].file, both[0].rows)
        table += count(*(tally.add(answer, of_these) for tally, answer in zip(tallies, both, strict=True)))
        progress(len(of_these))
    return Comparison(
        first=_evaluation(first, drawings, tallies[0]),
        second=_evaluation(second, drawings, tallies[1]),
        paired=pair(table),
    )


def common_labels(first: ModelInfo, second: ModelInfo) -> tuple[str, ...]:
    """The labels that both models know, in the order of the first.

    Raises:
        RequestRefused: There are none.
    """
    labels = tuple(label for label in first.labels if label in second.labels)
    if not labels:
        raise RequestRefused(
            f"{first.name} and {second.name} have no label in common: there is nothing to compare them on"
        )
    return labels


def _evaluation(served: Served, drawings: LabelledDrawings, tally: Tally) -> Evaluation:
    figures = _figures(tally.confusion)
    return Evaluation(
        model=served.model,
        server=served.client.target,
        drawings=drawings,
        confusion=tally.confusion,
        figures=figures,
        recognized=_recognized(tally),
        top_3=tally.in_top_3 / figures.rows,
        calibration=tally.calibration,
        mistakes=tuple(tally.mistakes),
    )


def _figures(confusion: Confusion) -> Figures:
    return Figures(rows=int(confusion.sum()), measured=with_intervals(confusion))


def _recognized(tally: Tally) -> Recognized | None:
    """Not where all were recognised: strokes of other people's carry no flag, and count as recognised."""
    if not tally.recognized.any() or (tally.recognized == tally.known).all():
        return None
    return Recognized(known=_figures(tally.known), recognized=_figures(tally.recognized))


def _shares(values: list[float], numbers: list[float]) -> list[Measured]:
    low, high = wilson(np.array(values), np.array(numbers, np.float64))
    return [Measured(*each) for each in zip(values, low.tolist(), high.tolist(), strict=True)]
