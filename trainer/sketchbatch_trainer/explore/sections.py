"""Prepare the sections of the exploration page: charts, pictures and the values in the text.

Each function returns the values that explore.html.j2 shows, or None if no file has the data of the section.
"""

from collections.abc import Sequence
from typing import Any

from sketchbatch_client.evaluation.figures import picture
from sketchbatch_client.html_page import enumerated

from . import charts
from .drawing_statistics import RAW, SIMPLIFIED, FolderStatistics, duration_s, has_times, quantile, together
from .polylines import plain, timed
from .similarity import Origin

_MAX_COUNTRIES = 12
_MAX_MATRIX_CLASSES = 20
_MAX_PAIRS = 9
_TIMED_DRAWINGS = 12
_EMPTIEST_SHOWN = 18
_DEVIATION_COLOUR = "#8b5cf6"

Section = dict[str, Any] | None


def averages(statistics: FolderStatistics) -> Section:
    """Return mean and standard deviation of each class's bitmaps as pictures, each with its own colour scale."""
    own = statistics.with_bitmaps
    if not own:
        return None
    pictures = [
        {
            "label": label,
            "mean": charts.heat(each.mean, shade, 0.2),
            "deviation": charts.heat(each.deviation, _DEVIATION_COLOUR, 0.65),
        }
        for (label, each), shade in zip(own.items(), charts.colours(len(own)), strict=True)
    ]
    by_deviation = sorted(own, key=lambda label: float(own[label].deviation.mean()))
    return {"pictures": pictures, "least_varied": by_deviation[0], "most_varied": by_deviation[-1]}


def galleries(statistics: FolderStatistics) -> list[dict[str, Any]]:
    """Return some drawings of each class; the more classes there are, the fewer drawings of each."""
    classes = len(statistics.classes)
    shown = 12 if classes <= 6 else 6 if classes <= 40 else 3
    return [
        {
            "label": label,
            "drawings": [plain(drawing) for drawing in own.sample.drawings[:shown]],
            "others": [plain(drawing) for drawing in own.other_sample.drawings[: shown // 2]],
            "other_share": 1 - own.recognized / own.flagged if own.flagged else None,
        }
        for label, own in statistics.with_strokes.items()
    ]


def in_time(statistics: FolderStatistics) -> Section:
    """Return a few drawings coloured by time or, if there are only simplified files, by the order of the points."""
    is_timed = bool(statistics.counts("durations", RAW))
    parts = {each.label: each.raw if is_timed else each.simplified for each in statistics.classes}
    own = {label: part for label, part in parts.items() if part}
    per_class = max(1, _TIMED_DRAWINGS // max(1, len(own)))
    drawings = [
        {
            "label": label,
            "strokes": len(drawing.strokes),
            "lasts_s": duration_s(drawing) if has_times(drawing) else None,
            "lines": timed(drawing),
        }
        for label, part in list(own.items())[:_TIMED_DRAWINGS]
        for drawing in part.sample.drawings[:per_class]
    ]
    return {"drawings": drawings, "is_timed": is_timed} if drawings else None


def distributions(statistics: FolderStatistics) -> list[dict[str, str]]:
    """Return charts of strokes, points, time and ink, each with a title and a sentence on the medians."""
    kind = SIMPLIFIED if any(each.simplified for each in statistics.classes) else RAW
    ink = {label: own.ink for label, own in statistics.with_bitmaps.items()}
    shown = [
        ("Strokes", statistics.counts("strokes"), 1, "strokes per drawing"),
        ("Points", statistics.counts("points", kind), 1, f"points per drawing ({kind} files)"),
        ("Time", statistics.counts("durations", RAW), 0.1, "seconds from first to last point"),
        ("Ink", ink, 0.1, "ink, % of the page"),
    ]
    return [
        {
            "title": title,
            "chart": charts.distributions(counts, _shades(statistics, counts), scale=scale, unit=unit),
            "medians": _medians(counts, scale),
        }
        for title, counts, scale, unit in shown
        if counts
    ]


def countries(statistics: FolderStatistics) -> Section:
    """Return number of drawings and recognised share for the countries with the most drawings."""
    counts = statistics.counts("countries")
    if not counts:
        return None
    every, flagged = together(counts), together(statistics.counts("flagged_in"))
    recognized = together(statistics.counts("recognized_in"))
    order = [name for name, _ in every.most_common(_MAX_COUNTRIES)]
    with_flags = [name for name in order if flagged[name]]
    shown, shades = _stacked(statistics, counts)
    unit = "recognised, % of the country's drawings"
    return {
        "chart": charts.bars(shown, order, shades, "drawings"),
        "recognized": charts.shares(recognized, flagged, with_flags, unit) if with_flags else None,
        "top": order[:3],
        "top_share": sum(every[name] for name in order[:3]) / sum(every.values()),
        "number": len(every),
        "shown": len(order),
    }


def times(statistics: FolderStatistics) -> Section:
    """Return charts of the number of drawings by hour of the day and by date."""
    hours, days = statistics.counts("hours"), statistics.counts("days")
    if not hours:
        return None
    by_day = together(days)
    return {
        "hours": charts.hours(*_stacked(statistics, hours)),
        "days": charts.days(*_stacked(statistics, days)),
        "busiest_hour": together(hours).most_common(1)[0][0],
        "busiest_day": by_day.most_common(1)[0][0],
        "first_day": min(by_day),
        "last_day": max(by_day),
    }


def similar(statistics: FolderStatistics) -> Section:
    """Return a chart of the classes of nearest neighbours, and example drawings of the most similar classes."""
    found, labels = statistics.neighbours, list(statistics.with_bitmaps)
    if not found or not found.pairs:
        return None
    return {
        "matrix": charts.neighbour_matrix(found.shares, labels) if len(labels) <= _MAX_MATRIX_CLASSES else None,
        "compared": sum(found.compared),
        "own_share": float(found.shares.trace()) / len(labels),
        "pairs": [
            {
                "first": labels[pair.first],
                "second": labels[pair.second],
                "share": pair.share,
                "couples": [[_picture(statistics, origin) for origin in couple] for couple in pair.couples],
            }
            for pair in found.pairs[:_MAX_PAIRS]
        ],
    }


def copies(statistics: FolderStatistics) -> Section:
    """Return the bitmaps that occur more than once, and the bitmaps with the least ink."""
    found, own = statistics.copies, statistics.with_bitmaps
    if not found:
        return None
    labels = list(own)
    groups = [
        {
            "picture": _picture(statistics, group[0]),
            "times": len(group),
            "labels": enumerated(sorted({labels[index] for index, _ in group})),
        }
        for group in found.groups
    ]
    emptiest = sorted((ink, (index, row)) for index, each in enumerate(own.values()) for row, ink in each.emptiest)[
        :_EMPTIEST_SHOWN
    ]
    return {
        "extra": {label: number for label, number in zip(labels, found.extra, strict=True) if number},
        "shared": found.shared,
        "groups": groups,
        "near_empty": sum(each.near_empty for each in own.values()),
        "emptiest": [
            {"picture": _picture(statistics, origin), "label": labels[origin[0]], "ink": ink}
            for ink, origin in emptiest
        ],
    }


def _medians(counts: charts.Counts, scale: float) -> str:
    medians = sorted((round(scale * quantile(each, 0.5), 1), label) for label, each in counts.items())
    (low, lowest), (high, highest) = medians[0], medians[-1]
    return f"Median: {low:g} ({lowest}) to {high:g} ({highest})." if high > low else f"Median: {low:g}."


def _stacked(statistics: FolderStatistics, counts: charts.Counts) -> tuple[charts.Counts, list[str]]:
    """Return counts and colours by class, or the sum of all classes if there are more classes than colours."""
    if len(statistics.classes) <= len(charts.COLOURS):
        return counts, _shades(statistics, counts)
    return {"all classes": together(counts)}, [charts.COLOURS[0]]


def _shades(statistics: FolderStatistics, labels: Sequence[str] | charts.Counts) -> list[str]:
    labels_of_all = [each.label for each in statistics.classes]
    shades = dict(zip(labels_of_all, charts.colours(len(labels_of_all)), strict=True))
    return [shades[label] for label in labels]


def _picture(statistics: FolderStatistics, origin: Origin) -> str:
    index, row = origin
    return picture(list(statistics.with_bitmaps.values())[index].bitmaps[row : row + 1][0])
