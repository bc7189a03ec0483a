"""The command `sketchbatch-train fetch`: download drawings from Google's storage bucket."""

from pathlib import Path
from typing import Annotated

import typer
from sketchbatch_client.output_file import local_path

from ..catalogue import read_catalogue
from ..progress import byte_bar, console, joined
from ..selection import cache_folder
from .bucket import BUCKET, known_classes
from .formats import FORMATS, FormatName


def fetch(
    classes: Annotated[str, typer.Option(help="Class names, separated by commas; all = all 345.")] = "bear,cat,dog",
    form: Annotated[FormatName, typer.Option("--format", help="Bitmaps (npy) or strokes.")] = FormatName.NPY,
    rows: Annotated[
        str, typer.Option(metavar="N|all", help="Number of drawings of each class, from the first; all = whole files.")
    ] = "4000",
    folder: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Target folder, in Google's layout: numpy_bitmap/NAME.npy and so on.",
            show_default="$SKETCHBATCH_DATA, or sketchbatch/quickdraw in your cache",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="Number of files to download concurrently.")] = 4,
    base_url: Annotated[str, typer.Option(help="Address of a copy of the bucket.", show_default="Google's")] = "",
) -> None:
    """Download Quick, Draw! drawings from Google's storage bucket (CC BY 4.0).

    Existing drawings are not downloaded again. After an interruption, the same command resumes.
    Whole .npy files are verified against their known SHA-256. One file is about 115 MB, all 345 are 40 GB.
    """
    from .fetch_request import FetchRequest, FetchResult
    from .fetching import fetch as fetch_all

    request = FetchRequest(
        labels=known_classes(classes, read_catalogue()),
        folder=folder or cache_folder(),
        rows=_parse_rows(rows),
        form=FORMATS[form],
        base_url=base_url.rstrip("/") or BUCKET,
        jobs=jobs,
    )
    with byte_bar() as progress:
        task = progress.add_task("fetching", total=sum(map(request.size_bytes_of, request.labels)))

        def report_class(result: FetchResult) -> None:
            excess_bytes = result.received_bytes - request.size_bytes_of(result.label)
            progress.update(task, total=(progress.tasks[0].total or 0) + excess_bytes)
            received = f"{result.received_bytes / 1e6:.1f} MB received" if result.received_bytes else "already complete"
            console.print(f"{result.label}: {result.rows:,} drawings ({received})")

        fetch_all(request, on_bytes=lambda size: progress.advance(task, size), on_class=report_class)
    console.print(f"{joined(request.labels)} -> {request.folder}")


def _parse_rows(text: str) -> int | None:
    """Return the number of rows that `--rows` states; None = all rows."""
    if text != "all" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"must be a number from 1 or all, got {text!r}", param_hint="--rows")
    return None if text == "all" else int(text)
