"""Writes the page of `sketchbatch-train explore`: figures in, one HTML file out, nothing beside it.

Flow: `Figures` -> what each part of the page shows, with a sentence to read it by -> explore.html.j2. A part that the
files at hand cannot tell is None; the page names it, with the command that fetches what it needs.
"""

import shlex
from pathlib import Path
from typing import Any

from sketchbatch_client.html_page import write_page as write

from . import charts, sections
from .exploring import DRAWN
from .figures import BITMAPS, LONGEST_S, NEAR_EMPTY, RAW, SIMPLIFIED, Figures, StrokeFigures, differ, quantile
from .sections import listed, together
from .similarity import NEIGHBOURS
from .stroke_lines import SIDE, SPEED, TIME_COLOURS

TOLD_BY = {
    SIMPLIFIED: "recognised share, countries, strokes and points, hours and dates, the drawings as they were drawn",
    RAW: "how long people drew, and every line in its own time",
    BITMAPS: "the average drawing, ink, copies, near-empty drawings, look-alikes",
}
"""What the page shows for want of other files only if there are those of a kind."""

_FORMATS = {SIMPLIFIED: "simplified", RAW: "raw", BITMAPS: "npy"}  # as fetch calls them


def write_page(figures: Figures, output: Path) -> Path:
    """Writes the page, whole or not at all."""
    write(
        output,
        "sketchbatch_trainer/explore/explore.html.j2",
        title=listed([each.label for each in figures.classes]),
        is_synthetic=figures.source.startswith("synthetic"),
        figures=figures,
        limits={
            "near_empty": NEAR_EMPTY,
            "neighbours": NEIGHBOURS,
            "longest_s": LONGEST_S,
            "hills": charts.MOST_HILLS,
            "drawn": DRAWN,
        },
        drawing={"side": SIDE, "speed": SPEED, "colours": TIME_COLOURS},
        cards=_cards(figures),
        classes=_classes(figures),
        averages=sections.averages(figures),
        galleries=sections.galleries(figures),
        in_time=sections.in_time(figures),
        spreads=sections.spreads(figures),
        countries=sections.countries(figures),
        times=sections.times(figures),
        alike=sections.alike(figures),
        copies=sections.copies(figures),
        emptiest=sections.emptiest(figures),
        read=_read(figures),
        missing=_missing(figures),
    )
    return output


def _cards(figures: Figures) -> list[tuple[str, str, str]]:
    """Figure, title and meaning of the first things to know."""
    strokes, times = together(figures.counts("strokes")), together(figures.counts("tenths"))
    drawings, countries = figures.with_strokes, together(figures.counts("countries"))
    total = sum(drawings.values())
    with_strokes = f", {total:,} with strokes" if 0 < total < figures.drawings else ""
    cards = [(f"{figures.drawings:,}", "Drawings", f"{len(figures.classes)} classes{with_strokes}")]
    if drawings:
        share = 100 * sum(figures.recognised.values()) / total
        cards.append((f"{share:.1f}\N{NO-BREAK SPACE}%", "Recognised", "by the game, while being drawn"))
        cards.append((f"{quantile(strokes, 0.5)}", "Strokes", "in the median drawing"))
    if times:
        cards.append((f"{quantile(times, 0.5) / 10:.1f}\N{NO-BREAK SPACE}s", "To draw", "the median drawing"))
    if countries:
        cards.append((f"{len(countries)}", "Countries", f"most from {countries.most_common(1)[0][0]}"))
    return cards


def _classes(figures: Figures) -> dict[str, Any]:
    most = max(max(figures.with_strokes.values(), default=0), 1)
    rows: list[dict[str, Any]] = []
    for each, shade in zip(figures.classes, charts.colours(len(figures.classes)), strict=True):
        drawings, recognised = figures.with_strokes.get(each.label, 0), figures.recognised.get(each.label, 0)
        rows.append(
            {
                "label": each.label,
                "shade": shade,
                "bitmaps": len(each.bitmaps.bitmaps) if each.bitmaps else 0,
                "drawings": drawings,
                "share": recognised / drawings if drawings else None,
                "width": 100 * drawings / most,
            }
        )
    known = sorted((row for row in rows if row["drawings"]), key=lambda row: row["share"])
    return {
        "rows": rows,
        "recognised": sum(figures.recognised.values()),
        "drawings": sum(figures.with_strokes.values()),
        "least": known[0] if known else None,
        "best": known[-1] if known else None,
        "differ": differ(list(figures.recognised.values()), list(figures.with_strokes.values())),
    }


def _read(figures: Figures) -> list[dict[str, Any]]:
    """What was read of each kind, and the lines left out of each file."""
    kinds = []
    for kind in TOLD_BY:
        lacking = figures.lacking(kind)
        own = [part for each in figures.classes if (part := each.part(kind)) and each.label not in lacking]
        strokes = [part for part in own if isinstance(part, StrokeFigures)]
        kinds.append(
            {
                "kind": kind,
                "files": len(own),
                "drawings": sum(len(part) for part in own),
                "malformed": sum(part.malformed for part in strokes),
                "left_out": [part for part in strokes if part.malformed],
            }
        )
    return kinds


def _missing(figures: Figures) -> list[dict[str, Any]]:
    """The kinds of file that some class lacks, what they would tell, and the command that fetches them."""
    every = len(figures.classes)
    return [
        {
            "kind": kind,
            "labels": None if len(labels) == every else listed(labels),
            "tells": told,
            "drawn": kind == BITMAPS and any(each.bitmaps for each in figures.classes if each.label in labels),
            "command": f"sketchbatch-train fetch --format {_FORMATS[kind]} --folder {shlex.quote(str(figures.folder))} "
            f"--classes {shlex.quote(','.join(labels))}",
        }
        for kind, told in TOLD_BY.items()
        if (labels := figures.lacking(kind))
    ]
