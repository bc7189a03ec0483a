"""Write the page of `sketchbatch-train explore` as one self-contained HTML file.

Flow: `FolderStatistics` -> values of each section -> explore.html.j2. If a kind of file is missing, the page leaves out
the sections of this kind, and shows the folder that has the missing files, or the command that fetches them.
"""

import shlex
from pathlib import Path
from typing import Any

from sketchbatch_client import html_page
from sketchbatch_client.drawings.folders import files_with_suffix
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.html_page import enumerated

from ..catalogue import read_catalogue
from ..folder_contents import GOOGLE_FOLDERS
from . import charts, sections
from .drawing_statistics import (
    BITMAPS,
    MAX_DURATION_S,
    NEAR_EMPTY,
    RAW,
    SIMPLIFIED,
    FolderStatistics,
    differ,
    quantile,
    together,
)
from .exploring import MAX_DRAWN, find_files
from .polylines import SIDE, SPEED, TIME_COLOURS
from .similarity import NEIGHBOURS

CONTENTS = {
    SIMPLIFIED: "recognised share, countries, strokes and points, hours and dates, drawings as strokes",
    RAW: "drawing times, and the time of every line",
    BITMAPS: "average drawings, ink, copies, near-empty drawings, similar classes",
}
"""For each kind of file, the content that the page shows only if there are such files."""

_KIND_NAMES = {SIMPLIFIED: "simplified strokes", RAW: "raw strokes", BITMAPS: "bitmaps or pictures"}
_FORMATS = {SIMPLIFIED: "simplified", RAW: "raw", BITMAPS: "npy"}  # names for `sketchbatch-train fetch --format`


def write_page(statistics: FolderStatistics, output: Path) -> Path:
    """Write the exploration page atomically."""
    html_page.write_page(
        output,
        "sketchbatch_trainer/explore/explore.html.j2",
        title=enumerated([each.label for each in statistics.classes]),
        is_synthetic=statistics.source.startswith("synthetic"),
        statistics=statistics,
        limits={
            "near_empty": NEAR_EMPTY,
            "neighbours": NEIGHBOURS,
            "duration_s": MAX_DURATION_S,
            "histograms": charts.MAX_HISTOGRAMS,
            "drawn": MAX_DRAWN,
        },
        drawing={"side": SIDE, "speed": SPEED, "colours": TIME_COLOURS},
        cards=_cards(statistics),
        classes=_classes(statistics),
        averages=sections.averages(statistics),
        galleries=sections.galleries(statistics),
        in_time=sections.in_time(statistics),
        distributions=sections.distributions(statistics),
        countries=sections.countries(statistics),
        times=sections.times(statistics),
        similar=sections.similar(statistics),
        copies=sections.copies(statistics),
        kinds=[_kind(statistics, kind) for kind in CONTENTS],
        missing=_missing(statistics),
        drawn=_drawn(statistics),
        target=_target(statistics.folder),
    )
    return output


def _cards(statistics: FolderStatistics) -> list[tuple[str, str, str]]:
    """Return figure, title and meaning of each card at the top of the page."""
    own, durations = statistics.with_strokes, together(statistics.counts("durations", RAW))
    countries = together(statistics.counts("countries"))
    total = sum(map(len, own.values()))
    with_strokes = f", {total:,} with strokes" if 0 < total < statistics.drawings else ""
    cards = [(f"{statistics.drawings:,}", "Drawings", f"{len(statistics.classes)} classes{with_strokes}")]
    if own:
        if flagged := sum(each.flagged for each in own.values()):
            share = 100 * sum(each.recognized for each in own.values()) / flagged
            cards.append((f"{share:.1f}\N{NO-BREAK SPACE}%", "Recognised", "by the game, during drawing"))
        median = quantile(together(statistics.counts("strokes")), 0.5)
        cards.append((f"{median}", "Strokes", "in the median drawing"))
    if durations:
        cards.append((f"{quantile(durations, 0.5) / 10:.1f}\N{NO-BREAK SPACE}s", "Drawing time", "median"))
    if countries:
        cards.append((f"{len(countries)}", "Countries", f"most drawings from {countries.most_common(1)[0][0]}"))
    return cards


def _classes(statistics: FolderStatistics) -> dict[str, Any]:
    own = statistics.with_strokes
    most = max(map(len, own.values()), default=0)
    rows: list[dict[str, Any]] = []
    for each, shade in zip(statistics.classes, charts.colours(len(statistics.classes)), strict=True):
        strokes = own.get(each.label)
        rows.append(
            {
                "label": each.label,
                "shade": shade,
                "bitmaps": len(each.bitmaps) if each.bitmaps else 0,
                "drawings": len(strokes) if strokes else 0,
                "share": strokes.recognized / strokes.flagged if strokes and strokes.flagged else None,
                "width": 100 * len(strokes) / most if strokes else 0,
            }
        )
    known = sorted((row for row in rows if row["share"] is not None), key=lambda row: float(row["share"]))
    with_flags = [each for each in own.values() if each.flagged]
    recognized, flagged = [each.recognized for each in with_flags], [each.flagged for each in with_flags]
    return {
        "rows": rows,
        "recognized": sum(recognized),
        "flagged": sum(flagged),
        "lowest": known[0] if known else None,
        "highest": known[-1] if known else None,
        "differ": differ(recognized, flagged),
    }


def _kind(statistics: FolderStatistics, kind: str) -> dict[str, Any]:
    """Return the numbers of classes, drawings and malformed drawings of one kind, and the files with such drawings."""
    lacking = statistics.lacking(kind)
    own = [part for each in statistics.classes if (part := each.part(kind)) and each.label not in lacking]
    skipped = [each.skipped[kind] for each in statistics.classes if kind in each.skipped]
    return {
        "name": _KIND_NAMES[kind],
        "classes": len(own),
        "drawings": sum(map(len, own)),
        "malformed": sum(each.number for each in skipped),
        "skipped": skipped,
    }


def _missing(statistics: FolderStatistics) -> list[dict[str, Any]]:
    """Return each kind of file that some class lacks, with a description and how to obtain the files.

    Bitmaps that were drawn from strokes are not missing. A kind that cannot be obtained is left out.
    """
    lacking = {
        kind: [label for label in statistics.lacking(kind) if kind != BITMAPS or label not in statistics.with_bitmaps]
        for kind in CONTENTS
    }
    kinds = [_kind_to_fetch(statistics, kind, labels) for kind, labels in lacking.items() if labels]
    return [each for each in kinds if each["command"] or each["nearby"]]


def _drawn(statistics: FolderStatistics) -> dict[str, Any] | None:
    """Return the classes whose bitmaps were drawn from strokes, and how to obtain their bitmaps; None = none."""
    labels = [label for label, bitmaps in statistics.with_bitmaps.items() if bitmaps.is_drawn]
    return _kind_to_fetch(statistics, BITMAPS, labels) if labels else None


def _kind_to_fetch(statistics: FolderStatistics, kind: str, labels: list[str]) -> dict[str, Any]:
    """Return the description of a kind of file that `labels` lack, and how to obtain the files.

    `nearby` says which of them are in another of Google's folders, next to the explored folder. `command` fetches the
    others. Both may be empty.
    """
    target, catalogue = _target(statistics.folder), read_catalogue()
    there = _labels_in(target, kind) if target and target != statistics.folder else set[str]()
    nearby = [label for label in labels if label in there]
    known = [label for label in labels if label in catalogue and label not in there]
    command = f"sketchbatch-train fetch --format {_FORMATS[kind]} --folder {shlex.quote(str(target))} "
    return {
        "kind": kind,
        "labels": None if len(labels) == len(statistics.classes) else enumerated(labels),
        "contents": CONTENTS[kind],
        "nearby": "" if not nearby else "them" if nearby == labels else f"those of {enumerated(nearby)}",
        "command": f"{command}--classes {shlex.quote(','.join(known))}" if target and known else "",
    }


def _labels_in(folder: Path, kind: str) -> set[str]:
    """Return the labels of which `explore` reads a file of this kind in a folder with Google's folders."""
    kinds = {kind, RAW} if kind == SIMPLIFIED else {kind}  # strokes of raw files are simplified
    try:
        return {label for label, files in find_files(folder).items() if kinds & files.keys()}
    except FileRefused:  # `explore` cannot read the folder
        return set()


def _target(folder: Path) -> Path | None:
    """Return the folder to name to `fetch`, so that `explore` reads fetched files and those of `folder` together.

    None = there is none: strokes, pictures or Parquet lie outside of Google's layout, which `explore` reads first.
    """
    if any((folder / kind).is_dir() for kind in GOOGLE_FOLDERS):
        return folder
    if folder.resolve().name in GOOGLE_FOLDERS:
        return folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    return folder if files_with_suffix(folder, (".npy",)) else None
