"""Write the statistics of `sketchbatch-train explore` as JSON, for other programs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sketchbatch_client.atomic import replacing
from sketchbatch_client.strict_json import encode

from .drawing_statistics import (
    BITMAPS,
    NEAR_EMPTY,
    RAW,
    SIMPLIFIED,
    BitmapStatistics,
    FolderStatistics,
    Skipped,
    StrokeStatistics,
    quantile,
)
from .similarity import NEIGHBOURS

JSON_MARK = b'\n  "classes": {'
"""Is near the beginning of the JSON files of `explore`; later commands may replace them."""


def write_json(statistics: FolderStatistics, path: Path) -> Path:
    """Write the result of `as_json` to a file atomically."""
    with replacing(path) as partial:
        text = encode(as_json(statistics), indent=2) + "\n"
        partial.write_bytes(text.encode(errors="backslashreplace"))  # a name that is not UTF-8 as an escape of JSON
    return path


def as_json(statistics: FolderStatistics) -> dict[str, Any]:
    """Return all statistics as JSON values; the value for a missing file is None."""
    return {
        "source": statistics.source,
        "drawings": statistics.drawings,
        "passed_over": dict(statistics.passed_over),
        "classes": {
            each.label: {
                "simplified": _part(_strokes, each.simplified, each.skipped.get(SIMPLIFIED)),
                "raw": _part(_strokes, each.raw, each.skipped.get(RAW)),
                "bitmaps": _part(_bitmaps, each.bitmaps, each.skipped.get(BITMAPS)),
            }
            for each in statistics.classes
        },
        "copies": _copies(statistics),
        "neighbours": _neighbours(statistics),
    }


def _part(describe: Callable[[Any], dict[str, Any]], own: Any, skipped: Skipped | None) -> dict[str, Any] | None:
    """Return the statistics of one kind of file; None if there is no file of this kind, or if it is empty."""
    if not own and not skipped:
        return None
    return {**(describe(own) if own else {"drawings": 0}), "malformed": skipped.number if skipped else 0}


def _strokes(own: StrokeStatistics) -> dict[str, Any]:
    return {
        "drawings": own.drawings,
        "with_recognised_flag": own.flagged,
        "recognised": own.recognized,
        "strokes": _quartiles(own.strokes),
        "points": _quartiles(own.points),
        "seconds": _quartiles(own.durations, 0.1) if own.durations else None,
        "countries": {
            name: {
                "drawings": number,
                "with_recognised_flag": own.flagged_in[name],
                "recognised": own.recognized_in[name],
            }
            for name, number in own.countries.most_common()
        },
        "hours_utc": [own.hours[hour] for hour in range(24)],
        "days_utc": dict(sorted(own.days.items())),
    }


def _bitmaps(own: BitmapStatistics) -> dict[str, Any]:
    return {
        "drawings": len(own),
        "drawn_from_strokes": own.is_drawn,
        "ink_share": _quartiles(own.ink, 0.001),
        "near_empty": own.near_empty,
        "near_empty_below": NEAR_EMPTY,
        "mean": own.mean.round(2).tolist(),
        "deviation": own.deviation.round(2).tolist(),
    }


def _quartiles(counts: Counter[int], scale: float = 1) -> dict[str, float]:
    shares = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    return {name: round(scale * quantile(counts, share), 4) for name, share in shares.items()}


def _copies(statistics: FolderStatistics) -> dict[str, Any] | None:
    found, labels = statistics.copies, list(statistics.with_bitmaps)
    if not found:
        return None
    return {
        "extra": dict(zip(labels, found.extra, strict=True)),
        "in_several_classes": found.shared,
        "groups": [[{"label": labels[index], "row": row} for index, row in group] for group in found.groups],
    }


def _neighbours(statistics: FolderStatistics) -> dict[str, Any] | None:
    found, labels = statistics.neighbours, list(statistics.with_bitmaps)
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
