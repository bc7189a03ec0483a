"""Write an evaluation as metrics.json, whose keys docs/evaluation.md describes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..drawings.readers import describe_malformed
from ..strict_json import encode
from .evaluating import Comparison, Evaluation
from .labelled import LabelledDrawings
from .quality import Figures, MeasuredThreshold, Mistake, Recognized
from .stats.calibration import BINS, Calibration
from .stats.drift import Drift, stored_rows
from .stats.mcnemar import Paired
from .stats.rejection import RiskCoverage

_MAX_PAIRS = 20  # most pairs of confused classes in the file
_MAX_MALFORMED = 20
_CURVE_POINTS = 100  # most points of the risk-coverage curve in the file


def write_json(result: Evaluation | Comparison, path: Path) -> None:
    """Write `as_json` to a file atomically."""
    with replacing(path) as partial:
        text = encode(as_json(result), indent=2) + "\n"
        partial.write_bytes(text.encode(errors="backslashreplace"))  # a name that is not UTF-8 as an escape of JSON


def as_json(result: Evaluation | Comparison) -> dict[str, Any]:
    """Return the contents of metrics.json; for a comparison, `against` holds the contents for the second model."""
    if isinstance(result, Evaluation):
        return _evaluation(result)
    return _evaluation(result.first) | {"against": _evaluation(result.second), "comparison": _paired(result.paired)}


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    model, drawings = evaluation.model, evaluation.drawings
    return _values(evaluation.figures) | {
        "rows": evaluation.figures.rows,
        "labels": list(evaluation.labels),
        "source": drawings.source,
        "per_class": evaluation.per_class,
        "confusion": evaluation.confusion.tolist(),
        "passed_over": list(drawings.passed_over),
        "model": {"name": model.name, "version": model.version, "digest": model.digest},
        "server": evaluation.server,
        **_intervals(evaluation.figures),
        "classes_without_drawings": len(evaluation.labels) - evaluation.tested_labels,
        "top_3": evaluation.top_3,
        "calibration": _calibration(evaluation.calibration) if evaluation.calibration else None,
        "risk_coverage": _risk_coverage(evaluation.risk_coverage)
        | {"thresholds": [_threshold(each) for each in evaluation.thresholds]},
        "recognized": _recognized(evaluation.recognized) if evaluation.recognized else None,
        "trained_on": asdict(trained_on) | {"share": trained_on.share}
        if (trained_on := evaluation.trained_on)
        else None,
        "drift": {
            "stored_rows": stored_rows(model.metrics) or None,
            "metrics": {name: _drift(each) for name, each in evaluation.drift.items()},
        },
        "most_confused": evaluation.confused_pairs(_MAX_PAIRS),
        "surest_mistakes": [_mistake(each, drawings) for each in evaluation.mistakes],
        "malformed": {
            "left_out": drawings.malformed_count,
            "first": [describe_malformed(file, each) for file, each in drawings.malformed[:_MAX_MALFORMED]],
        },
    }


def _recognized(recognized: Recognized) -> dict[str, Any]:
    return _figures(recognized.recognized) | {"all_known": _figures(recognized.known)}


def _figures(figures: Figures) -> dict[str, Any]:
    return _values(figures) | {"rows": figures.rows} | _intervals(figures)


def _values(figures: Figures) -> dict[str, float | None]:
    return {name: each.value if each.is_defined else None for name, each in figures.measured.items()}


def _intervals(figures: Figures) -> dict[str, Any]:
    measured = figures.measured.items()
    return {
        "intervals": {name: each.interval for name, each in measured},
        "not_defined": {name: each.note for name, each in measured if not each.is_defined},
        "no_interval": {name: each.note for name, each in measured if each.is_defined and not each.interval},
    }


def _calibration(calibration: Calibration) -> dict[str, Any]:
    figures = {name: getattr(calibration, name) for name in ("expected_error", "mean_confidence", "log_loss", "brier")}
    columns = {name: getattr(calibration, name).tolist() for name in ("confidence", "accuracy", "rows")}
    reliability = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return figures | {"bins": BINS, "reliability": reliability}


def _risk_coverage(curve: RiskCoverage) -> dict[str, Any]:
    points = curve.points(_CURVE_POINTS)
    columns = {name: getattr(curve, name)[points].tolist() for name in ("coverage", "accuracy", "score")}
    return {
        "area": curve.area,
        "points": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
    }


def _threshold(threshold: MeasuredThreshold) -> dict[str, Any]:
    return {"coverage": threshold.coverage, "accuracy": threshold.accuracy, "stored": asdict(threshold.stored)}


def _drift(drift: Drift) -> dict[str, Any]:
    return {
        "stored": drift.stored,
        "measured": drift.measured.value,
        "interval": drift.measured.interval,
        "is_within_interval": drift.is_within,
        "is_within_chance": drift.is_chance,
    }


def _mistake(mistake: Mistake, drawings: LabelledDrawings) -> dict[str, Any]:
    file, row = drawings.origin(mistake.file, mistake.row)
    origin = {"source": str(file), "row": row}
    return origin | {"label": mistake.label, "predicted": mistake.predicted, "score": mistake.score}


def _paired(paired: Paired) -> dict[str, Any]:
    return {
        "rows": int(paired.table.sum()),
        "both_right": int(paired.table[1, 1]),
        "only_first_right": paired.only_first,
        "only_second_right": paired.only_second,
        "both_wrong": int(paired.table[0, 0]),
        "accuracy_difference": paired.difference.value,
        "accuracy_difference_interval": paired.difference.interval,
        "test": "McNemar, exact" if paired.is_exact else "McNemar, chi-square with continuity correction",
        "p_value": paired.p_value,
    }
