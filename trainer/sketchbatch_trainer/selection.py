"""The options that select drawings, and what `explore` and `train` print about the selection."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import typer
from sketchbatch_client.drawings.bitmap_arrays import ink_warning
from sketchbatch_client.drawings.passed_over import is_hidden
from sketchbatch_client.drawings.readers import BitmapRows
from sketchbatch_client.output_file import local_path

from .errors import DrawingsRefused
from .folder_contents import choose_labels, describe_choice, find_others
from .progress import console, warn

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=local_path,
        help="Folder of drawings: a folder of pictures (PNG, JPEG, WebP, BMP, GIF, TIFF) for each class, LABEL/; or "
        "files LABEL.npy, LABEL.ndjson, LABEL.bin or LABEL.parquet; or Google's layout (numpy_bitmap/, simplified/, "
        "binary/, raw/).",
        show_default="the folder of fetch",
    ),
]
SkipMalformed = Annotated[
    bool,
    typer.Option("--skip-malformed", help="Skip malformed lines, rows and pictures; otherwise the file is refused."),
]
IgnoreOthers = Annotated[
    bool,
    typer.Option(
        "--ignore-others",
        help="Accept that files which may have drawings are not read; otherwise the command ends before it starts.",
    ),
]
Classes = Annotated[
    str,
    typer.Option(
        help="Class names, separated by commas; all = every class in the folder.",
        show_default="bear,cat,dog; without them in --data, all",
    ),
]

INK_ROWS = 1000
"""Bitmaps of each class that are examined for inverted bitmaps and for the values 0 and 1."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the default folder of drawings: $SKETCHBATCH_DATA, else sketchbatch/quickdraw in the user's cache.

    The user's cache is $XDG_CACHE_HOME, else ~/.cache: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    if folder := environment.get("SKETCHBATCH_DATA"):
        return Path(folder).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sketchbatch" / "quickdraw"


def drawings_folder(data: Path | None) -> Path:
    """Return the folder that `--data` names, or else the default folder.

    Raises:
        DrawingsRefused: There is no default folder, because nothing was fetched.
    """
    folder = data or cache_folder()
    if data is None and not (folder.is_dir() and any(not is_hidden(each.name) for each in folder.iterdir())):
        raise DrawingsRefused(
            f"{folder}: has no drawings yet; name another folder with --data, or first run: sketchbatch-train fetch"
        )
    return folder


def choose(folder: Path, found: list[str], classes: str, *, is_default: bool) -> tuple[str, ...]:
    """Return the chosen labels of a folder, and print them unless the user named them."""
    if classes and not classes.strip(" ,"):
        raise typer.BadParameter(f"must be class names separated by commas, got {classes!r}", param_hint="--classes")
    labels = choose_labels(folder, found, classes, is_default=is_default)
    if not classes or classes == "all":
        console.print(describe_choice(folder, labels, found))
    return labels


def account(
    folder: Path, taken: Collection[Path], labels: Collection[str], ignore_others: bool, excluded: Path | None = None
) -> dict[str, int]:
    """Print which files of a folder are passed over, and return their number by ending.

    Raises:
        DrawingsRefused: One of them looks like a drawing, and `ignore_others` is false.
    """
    others = find_others(folder, taken, labels, excluded=excluded)
    if not ignore_others:
        others.check(folder)
    if text := str(others):
        warn(text)
    return others.counts()


def warn_of_ink(folder: Path, path: Path, bitmaps: BitmapRows) -> None:
    """Print a warning if the first bitmaps of a file or folder in `folder` look inverted or have the values 0 and 1."""
    if text := ink_warning(bitmaps[:INK_ROWS]):
        warn(f"{path.relative_to(folder)}: {text}")
