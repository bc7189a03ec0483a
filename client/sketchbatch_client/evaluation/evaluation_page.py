"""Writes what an evaluation found for people: one HTML file, nothing beside it, without a script.

In full on the first model; of a second, the figures side by side and the test that pairs them.
"""

from pathlib import Path
from typing import Any

from ..html_page import write_page as write
from .evaluating import Comparison, Evaluation
from .figures import MOST_WRITTEN, confusion_picture, confusion_table, picture, reliability_bars
from .stats.calibration import Calibration
from .stats.drift import stored_rows
from .stats.intervals import RESAMPLES
from .stats.mcnemar import spoken
from .stats.metrics import TITLES, confused_pairs

_CLASSES_SHOWN = 40  # at once: the worst; the others unfold
_PAIRS_SHOWN = 12


def write_page(result: Evaluation | Comparison, output: Path) -> None:
    """Writes the page, whole or not at all. Reads the drawings named wrong, a few, from their files again."""
    paired = result.paired if isinstance(result, Comparison) else None
    beside = result.beside if isinstance(result, Comparison) else [(result.name, result)]
    names, evaluations = [name for name, _ in beside], [each for _, each in beside]
    first = evaluations[0]
    write(
        output,
        "sketchbatch_client/evaluation/evaluation.html.j2",
        title=f"{names[0]} on {first.figures.rows:,} drawings",
        is_synthetic=first.drawings.source.startswith("synthetic"),
        first=first,
        names=names,
        titles={name: title for name, (title, _) in TITLES.items()},
        cards=[(*TITLES[name], measured) for name, measured in first.figures.measured.items()],
        resamples=RESAMPLES,
        beside=beside,
        paired=paired,
        p_value=spoken(paired.p_value) if paired else "",
        verdict=paired.verdict(names[0], names[1]) if paired else "",
        stored_rows=stored_rows(first.model.metrics),
        labels_met=int(first.confusion.any(axis=1).sum()),
        pairs=_pairs(first),
        confusion=confusion_table(first.confusion, first.model.labels),
        confusion_picture=confusion_picture(first.confusion) if _occurring(first) > MOST_WRITTEN else "",
        classes=_classes(evaluations),
        classes_shown=_CLASSES_SHOWN,
        calibration_verdict=_verdict(first.calibration, first.metrics.accuracy) if first.calibration else "",
        bars=reliability_bars(first.calibration) if first.calibration else [],
        mistakes=_mistakes(first),
    )


def _verdict(calibration: Calibration, accuracy: float) -> str:
    """Of at least a point of difference."""
    gap = calibration.mean_confidence - accuracy
    if abs(gap) < 0.01:
        return "On the whole it is about as sure as it is right."
    return (
        "On the whole it is surer than it is right." if gap > 0 else "On the whole it is right more often than it says."
    )


def _occurring(evaluation: Evaluation) -> int:
    """How many labels occur, as what a drawing is or what it was called."""
    return int((evaluation.confusion.any(axis=0) | evaluation.confusion.any(axis=1)).sum())


def _pairs(evaluation: Evaluation) -> list[dict[str, Any]]:
    labels, confusion = evaluation.model.labels, evaluation.confusion
    return [
        {
            "label": labels[true],
            "said": labels[said],
            "rows": int(confusion[true, said]),
            "share": confusion[true, said] / confusion[true].sum(),
        }
        for true, said in confused_pairs(confusion, _PAIRS_SHOWN)
    ]


def _classes(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """Figures of each label that occurs, the worst first where they are many; with the recall of a second model."""
    first, *others = evaluations
    taken_for = {
        first.model.labels[true]: first.model.labels[said]
        for true, said in reversed(confused_pairs(first.confusion, first.confusion.size))
    }
    intervals = first.class_intervals
    other = others[0].class_intervals if others else {}
    lines = [
        {
            **own,
            "label": label,
            "recall": intervals[label][0],
            "precision": intervals[label][1],
            "other_recall": other[label][0] if label in other else None,
            "taken_for": taken_for.get(label, ""),
        }
        for label, own in first.per_class.items()
        if own["rows"] or own["predicted"]
    ]
    return lines if len(lines) <= _CLASSES_SHOWN else sorted(lines, key=lambda line: line["recall"].value)


def _mistakes(evaluation: Evaluation) -> list[dict[str, Any]]:
    drawings = evaluation.drawings
    return [
        {
            "mistake": mistake,
            "picture": picture(drawings.bitmaps[mistake.file][mistake.row : mistake.row + 1][0]),
            "place": "{}, row {}".format(*drawings.place(mistake.file, mistake.row)),
        }
        for mistake in evaluation.mistakes
    ]
