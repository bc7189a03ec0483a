"""Writes the figures of `sketchbatch-train explore` as JSON, for other programs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sketchbatch_client.atomic import replacing

from .figures import NEAR_EMPTY, BitmapFigures, ClassFigures, Figures, StrokeFigures, quantile
from .similarity import NEIGHBOURS


def write_json(figures: Figures, path: Path) -> Path:
    """Writes the file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(as_json(figures), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def as_json(figures: Figures) -> dict[str, Any]:
    """All that was counted; what a missing file would tell is null."""
    return {
        "source": figures.source,
        "drawings": figures.drawings,
        "classes": {each.label: _class(each) for each in figures.classes},
        "copies": _copies(figures),
        "neighbours": _neighbours(figures),
    }


def _class(each: ClassFigures) -> dict[str, Any]:
    return {
        "simplified": _strokes(each.simplified) if each.simplified else None,
        "raw": _strokes(each.raw) if each.raw else None,
        "bitmaps": _bitmaps(each.bitmaps) if each.bitmaps else None,
    }


def _strokes(own: StrokeFigures) -> dict[str, Any]:
    return {
        "drawings": own.drawings,
        "recognised": own.recognised,
        "malformed": own.malformed,
        "strokes": _spread(own.strokes),
        "points": _spread(own.points),
        "seconds": _spread(own.tenths, 0.1) if own.tenths else None,
        "countries": {
            name: {"drawings": number, "recognised": own.recognised_in[name]}
            for name, number in own.countries.most_common()
        },
        "hours_utc": [own.hours[hour] for hour in range(24)],
        "days_utc": dict(sorted(own.days.items())),
    }


def _bitmaps(own: BitmapFigures) -> dict[str, Any]:
    return {
        "drawings": len(own),
        "drawn_from_strokes": own.is_drawn,
        "ink_share": _spread(own.ink, 0.001),
        "near_empty": own.near_empty,
        "near_empty_below": NEAR_EMPTY,
        "mean": own.mean.round(2).tolist(),
        "deviation": own.deviation.round(2).tolist(),
    }


def _spread(counts: Counter[int], scale: float = 1) -> dict[str, float]:
    shares = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    return {name: round(scale * quantile(counts, share), 4) for name, share in shares.items()}


def _copies(figures: Figures) -> dict[str, Any] | None:
    found, labels = figures.copies, [each.label for each in figures.with_bitmaps]
    if not found:
        return None
    return {
        "extra": dict(zip(labels, found.extra, strict=True)),
        "in_several_classes": found.shared,
        "groups": [[{"label": labels[index], "row": row} for index, row in group] for group in found.groups],
    }


def _neighbours(figures: Figures) -> dict[str, Any] | None:
    found, labels = figures.neighbours, [each.label for each in figures.with_bitmaps]
    if not found:
        return None
    return {
        "nearest": NEIGHBOURS,
        "compared": dict(zip(labels, found.compared, strict=True)),
        "labels": labels,
        "shares": found.shares.round(4).tolist(),
        "pairs": [
            {"labels": [labels[pair.first], labels[pair.second]], "share": round(pair.share, 4)} for pair in found.pairs
        ],
    }
