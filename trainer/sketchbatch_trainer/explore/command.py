"""The command `sketchbatch-train explore`: describe drawings on a page."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from sketchbatch_client.errors import naming_skip_malformed
from sketchbatch_client.output_file import HTML_MARK, check_reports, local_path

from ..extras import importing
from ..progress import console, joined, row_bar, show_files, warn
from ..selection import (
    Classes,
    Data,
    IgnoreOthers,
    SkipMalformed,
    account,
    choose,
    drawings_folder,
    warn_of_ink,
)


def explore(
    output: Annotated[Path, typer.Option(parser=local_path, help="HTML page to write; it needs no other file.")],
    data: Data = None,
    classes: Classes = "",
    rows: Annotated[int | None, typer.Option(min=1, help="Drawings of each file.", show_default="all")] = None,
    json: Annotated[
        Path | None, typer.Option(parser=local_path, help="JSON file for the same figures.", show_default="none")
    ] = None,
    skip_malformed: SkipMalformed = False,
    ignore_others: IgnoreOthers = False,
) -> None:
    """Describe drawings on an HTML page, before any training: counts, countries, times, similar classes."""
    with importing("explore"):
        from .drawing_statistics import BITMAPS
        from .explore_json import JSON_MARK, write_json
        from .explore_page import write_page
        from .exploring import find_files, gather

    folder = drawings_folder(data)
    with naming_skip_malformed(skip_malformed):
        found = find_files(folder, skip_malformed=skip_malformed)
    labels = choose(folder, list(found), classes, is_default=data is None)
    files = {label: found[label] for label in labels}
    inputs = [path for own in files.values() for path in own.values()]
    check_reports([(output, HTML_MARK), (json, JSON_MARK)], inputs)
    passed_over = account(folder, [path for own in found.values() for path in own.values()], labels, ignore_others)
    with row_bar() as progress:
        with naming_skip_malformed(skip_malformed):
            figures = gather(folder, files, rows=rows, skip_malformed=skip_malformed, progress=show_files(progress))
        progress.add_task("drawing the page", total=None)
        write_page(figures, output)
    for label, statistics in figures.with_bitmaps.items():
        if not statistics.is_drawn:
            warn_of_ink(folder, files[label][BITMAPS], statistics.bitmaps)
    skipped = {each.label: sum(own.number for own in each.skipped.values()) for each in figures.classes if each.skipped}
    if skipped:
        warn(f"malformed drawings skipped: {', '.join(f'{label}: {number:,}' for label, number in skipped.items())}")
    if json:
        write_json(replace(figures, passed_over=passed_over), json)
    console.print(f"{joined(tuple(files))}: {figures.drawings:,} drawings -> {output}")
