"""Prepares the parts of the page that `sketchbatch-train explore` writes: charts, drawings, and what to say of them.

Each takes the figures and returns what explore.html.j2 shows, or None where the files at hand do not tell it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from . import charts
from .figures import Figures, has_times, quantile, seconds
from .similarity import Place
from .stroke_lines import plain, timed

_MOST_COUNTRIES = 12
_MOST_IN_MATRIX = 20  # classes
_MOST_PAIRS = 9
_TIMED_DRAWINGS = 12
_MOST_EMPTIEST = 18
_DEVIATION = "#8b5cf6"

Part = dict[str, Any] | None


def averages(figures: Figures) -> Part:
    """Mean and deviation of each class, each in its own scale, so that the darkest pixel is the fullest colour."""
    drawn = [(each.label, each.bitmaps) for each in figures.classes if each.bitmaps]
    if not drawn:
        return None
    shades = charts.colours(len(drawn))
    pictures = [
        {
            "label": label,
            "mean": charts.heat(own.mean, shade, 0.2),
            "deviation": charts.heat(own.deviation, _DEVIATION, 0.65),
        }
        for (label, own), shade in zip(drawn, shades, strict=True)
    ]
    varied = sorted(drawn, key=lambda each: float(each[1].deviation.mean()))
    return {"pictures": pictures, "steadiest": varied[0][0], "wildest": varied[-1][0]}


def galleries(figures: Figures) -> list[dict[str, Any]]:
    """Some drawings of each class, fewer where there are many classes."""
    shown = 12 if len(figures.classes) <= 6 else 6 if len(figures.classes) <= 40 else 3
    return [
        {
            "label": each.label,
            "named": [plain(drawing) for drawing in each.strokes.named.drawings[:shown]],
            "unnamed": [plain(drawing) for drawing in each.strokes.unnamed.drawings[: shown // 2]],
            "unnamed_share": 1 - each.strokes.recognised / each.strokes.drawings,
        }
        for each in figures.classes
        if each.strokes
    ]


def in_time(figures: Figures) -> Part:
    """A few drawings with their times; from simplified files, with their order only."""
    timing = bool(figures.counts("tenths"))
    own = [(each.label, each.raw if timing else each.simplified) for each in figures.classes]
    known = [(label, strokes) for label, strokes in own if strokes]
    each_shows = max(1, _TIMED_DRAWINGS // max(1, len(known)))
    drawings = [
        {
            "label": label,
            "strokes": len(drawing.strokes),
            "lasts_s": seconds(drawing) if has_times(drawing) else None,
            "pieces": timed(drawing),
        }
        for label, strokes in known[:_TIMED_DRAWINGS]
        for drawing in strokes.named.drawings[:each_shows]
    ]
    return {"drawings": drawings, "has_times": timing} if drawings else None


def spreads(figures: Figures) -> list[dict[str, str]]:
    """Charts of what differs from drawing to drawing: title, picture and a sentence."""
    kind = "simplified" if any(each.simplified for each in figures.classes) else "raw"
    shown = [
        ("Strokes", figures.counts("strokes"), 1, "strokes a drawing"),
        ("Points", figures.points(kind), 1, f"points a drawing ({kind} files)"),
        ("Time", figures.counts("tenths"), 0.1, "seconds from first to last point"),
        ("Ink", {each.label: each.bitmaps.ink for each in figures.classes if each.bitmaps}, 0.1, "ink, % of the page"),
    ]
    return [
        {
            "title": title,
            "chart": charts.hills(counts, _shades(figures, counts), scale=scale, unit=unit),
            "reading": _compared(counts, scale),
        }
        for title, counts, scale, unit in shown
        if counts
    ]


def _compared(counts: charts.By, scale: float) -> str:
    medians = sorted((round(scale * quantile(each, 0.5), 1), label) for label, each in counts.items())
    (low, least), (high, most) = medians[0], medians[-1]
    return f"Median: {low:g} ({least}) to {high:g} ({most})." if high > low else f"Median: {low:g}."


def countries(figures: Figures) -> Part:
    """Drawings and recognised share of the most frequent."""
    counts = figures.counts("countries")
    if not counts:
        return None
    every, hits = together(counts), together(figures.counts("recognised_in"))
    order = [name for name, _ in every.most_common(_MOST_COUNTRIES)]
    shown, shades = _stacked(figures, counts)
    return {
        "chart": charts.bars(shown, order, shades, "drawings"),
        "recognised": charts.shares(hits, every, order, "recognised, % of the country's drawings"),
        "top": order[:3],
        "top_share": sum(every[name] for name in order[:3]) / sum(every.values()),
        "number": len(every),
        "shown": len(order),
    }


def times(figures: Figures) -> Part:
    """Hours of the day, and dates."""
    hours, days = figures.counts("hours"), figures.counts("days")
    if not hours:
        return None
    by_hour, by_day = together(hours), together(days)
    return {
        "hours": charts.hours(*_stacked(figures, hours)),
        "days": charts.days(*_stacked(figures, days)),
        "busiest_hour": max(by_hour, key=lambda hour: by_hour[hour]),
        "busiest_day": max(by_day, key=lambda day: by_day[day]),
        "first_day": min(by_day),
        "last_day": max(by_day),
    }


def alike(figures: Figures) -> Part:
    """Whose nearest neighbours are whose, with the drawings of the most alike pairs."""
    if not figures.neighbours or not figures.neighbours.pairs:
        return None
    found, labels = figures.neighbours, [each.label for each in figures.with_bitmaps]
    return {
        "matrix": charts.nearness(found.shares, labels) if len(labels) <= _MOST_IN_MATRIX else None,
        "compared": sum(found.compared),
        "own_share": float(found.shares.trace()) / len(labels),
        "pairs": [
            {
                "first": labels[pair.first],
                "second": labels[pair.second],
                "share": pair.share,
                "couples": [[_picture(figures, place) for place in couple] for couple in pair.couples],
            }
            for pair in found.pairs[:_MOST_PAIRS]
        ],
    }


def copies(figures: Figures) -> Part:
    """Bitmaps that occur more than once."""
    found = figures.copies
    if not found:
        return None
    labels = [each.label for each in figures.with_bitmaps]
    groups = [
        {
            "picture": _picture(figures, group[0]),
            "times": len(group),
            "labels": listed(sorted({labels[index] for index, _ in group})),
        }
        for group in found.groups
    ]
    extra = {label: number for label, number in zip(labels, found.extra, strict=True) if number}
    return {"extra": extra, "total": sum(found.extra), "shared": found.shared, "groups": groups}


def emptiest(figures: Figures) -> Part:
    """The bitmaps with least ink, of every class together, and how many of each class are near-empty."""
    places = sorted(
        (ink, (index, row))
        for index, each in enumerate(figures.with_bitmaps)
        if each.bitmaps
        for row, ink in each.bitmaps.emptiest
    )[:_MOST_EMPTIEST]
    if not places:
        return None
    labels = [each.label for each in figures.with_bitmaps]
    return {
        "near_empty": {each.label: each.bitmaps.near_empty for each in figures.with_bitmaps if each.bitmaps},
        "drawings": [
            {"picture": _picture(figures, place), "label": labels[place[0]], "ink": ink} for ink, place in places
        ],
    }


def together(counts: charts.By) -> Counter[Any]:
    """The counts of all classes in one."""
    total: Counter[Any] = Counter()
    for each in counts.values():
        total.update(each)
    return total


def listed(names: Sequence[str]) -> str:
    """Such as: bear, cat and dog."""
    shown = list(names) if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _stacked(figures: Figures, counts: charts.By) -> tuple[charts.By, list[str]]:
    """The counts of each class with its colour, or of all together where there are too many colours to tell apart."""
    if len(figures.classes) <= len(charts.COLOURS):
        return counts, _shades(figures, counts)
    return {"all classes": together(counts)}, [charts.COLOURS[0]]


def _shades(figures: Figures, counts: charts.By) -> list[str]:
    every = dict(zip((each.label for each in figures.classes), charts.colours(len(figures.classes)), strict=True))
    return [every[label] for label in counts]


def _picture(figures: Figures, place: Place) -> str:
    index, row = place
    own = figures.with_bitmaps[index].bitmaps
    assert own is not None
    return charts.picture(own.bitmaps[row])
