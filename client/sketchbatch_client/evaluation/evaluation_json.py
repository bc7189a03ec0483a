"""Writes what an evaluation found for programs: metrics.json, described in docs/evaluation.md."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic import replacing
from .evaluating import Comparison, Evaluation, Figures, Recognized
from .stats.calibration import BINS, Calibration
from .stats.drift import Drift, stored_rows
from .stats.mcnemar import Paired
from .stats.metrics import confused_pairs

_PAIRS = 20  # most confused


def write_json(result: Evaluation | Comparison, path: Path) -> None:
    """Writes `as_json`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(as_json(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def as_json(result: Evaluation | Comparison) -> dict[str, Any]:
    """The contents of metrics.json; of a comparison, the first model's, and under `against` the second's."""
    if isinstance(result, Evaluation):
        return _evaluation(result)
    return _evaluation(result.first) | {"against": _evaluation(result.second), "comparison": _paired(result.paired)}


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    model, drawings = evaluation.model, evaluation.drawings
    return asdict(evaluation.metrics) | {
        "rows": evaluation.figures.rows,
        "labels": list(model.labels),
        "source": drawings.source,
        "per_class": _per_class(evaluation),
        "confusion": evaluation.confusion.tolist(),
        "passed_over": list(drawings.passed_over),
        "model": {"name": model.name, "version": model.version, "digest": model.digest},
        "server": evaluation.server,
        "intervals": _intervals(evaluation.figures),
        "top_3": evaluation.top_3,
        "calibration": _calibration(evaluation.calibration) if evaluation.calibration else None,
        "recognized": _recognized(evaluation.recognized) if evaluation.recognized else None,
        "drift": {
            "stored_rows": stored_rows(model.metrics) or None,
            "metrics": {name: _drift(each) for name, each in evaluation.drift.items()},
        },
        "most_confused": _most_confused(evaluation),
        "surest_mistakes": _mistakes(evaluation),
        "malformed": {
            "left_out": drawings.malformed_count,
            "first": [f"{file}:{each.number}: {each.reason}" for file, each in drawings.malformed[:_PAIRS]],
        },
    }


def _per_class(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    intervals = evaluation.class_intervals
    return {
        label: own
        | {"recall_interval": intervals[label][0].interval, "precision_interval": intervals[label][1].interval}
        for label, own in evaluation.per_class.items()
    }


def _figures(figures: Figures) -> dict[str, Any]:
    values = {name: each.value for name, each in figures.measured.items()}
    return values | {"rows": figures.rows, "intervals": _intervals(figures)}


def _intervals(figures: Figures) -> dict[str, tuple[float, float]]:
    return {name: each.interval for name, each in figures.measured.items()}


def _recognized(recognized: Recognized) -> dict[str, Any]:
    return _figures(recognized.recognized) | {"all_known": _figures(recognized.known)}


def _calibration(calibration: Calibration) -> dict[str, Any]:
    return {
        "expected_error": calibration.expected_error,
        "mean_confidence": calibration.mean_confidence,
        "log_loss": calibration.log_loss,
        "brier": calibration.brier,
        "bins": BINS,
        "reliability": [
            {"confidence": confidence, "accuracy": accuracy, "rows": rows}
            for confidence, accuracy, rows in zip(
                calibration.confidence.tolist(), calibration.accuracy.tolist(), calibration.rows.tolist(), strict=True
            )
        ],
    }


def _drift(drift: Drift) -> dict[str, Any]:
    return {
        "stored": drift.stored,
        "measured": drift.measured.value,
        "interval": drift.measured.interval,
        "is_within_interval": drift.is_within,
        "is_within_chance": drift.is_chance,
    }


def _most_confused(evaluation: Evaluation) -> list[dict[str, Any]]:
    labels, confusion = evaluation.model.labels, evaluation.confusion
    return [
        {"label": labels[true], "predicted": labels[said], "rows": int(confusion[true, said])}
        for true, said in confused_pairs(confusion, _PAIRS)
    ]


def _mistakes(evaluation: Evaluation) -> list[dict[str, Any]]:
    places = [evaluation.drawings.place(mistake.file, mistake.row) for mistake in evaluation.mistakes]
    return [
        {
            "source": str(file),
            "row": row,
            "label": mistake.label,
            "predicted": mistake.said,
            "score": mistake.score,
        }
        for (file, row), mistake in zip(places, evaluation.mistakes, strict=True)
    ]


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
