"""Knows Google's Quick, Draw! bucket: its classes, where it keeps them, and what each whole .npy must be.

Knows no HTTP: `download.py` fetches one file, `fetching.py` many.
"""

import csv
import difflib
import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import FetchFailed

BUCKET = "https://storage.googleapis.com/quickdraw_dataset/full"
"""https://github.com/googlecreativelab/quickdraw-dataset#get-the-data"""

SOURCE = "Quick, Draw! drawings by Google (CC BY 4.0)"


@dataclass(frozen=True, slots=True)
class WholeNpy:
    """What the whole .npy of a class must be."""

    size_bytes: int
    drawings: int
    sha256: str


Catalogue = Mapping[str, WholeNpy]  # by class name


def read_catalogue() -> Catalogue:
    """The 345 classes, in order of name.

    Sizes and digests are those of TensorFlow Datasets:
    https://github.com/tensorflow/datasets/blob/333639b/tensorflow_datasets/url_checksums/quickdraw_bitmap.txt
    """
    table = importlib.resources.files(__package__) / "quickdraw_npy_checksums.tsv"
    lines = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return {line["category"]: WholeNpy(int(line["bytes"]), int(line["drawings"]), line["sha256"]) for line in lines}


def known_classes(names: str, catalogue: Catalogue) -> tuple[str, ...]:
    """The classes in `names`, separated by commas, each once; `all` is all of them.

    Raises:
        FetchFailed: A name is none of the catalogue's; the message says which are near.
    """
    if names.strip() == "all":
        return tuple(catalogue)
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in catalogue]
    if unknown or not wanted:
        said = "; ".join(_suggested(name, catalogue) for name in unknown) or "no class named"
        raise FetchFailed(f"{said} (`all` takes all {len(catalogue)} classes)")
    return wanted


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where drawings are kept unless a folder is named: $SKETCHBATCH_DATA, else in the user's cache.

    The user's cache is $XDG_CACHE_HOME, else ~/.cache: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    if folder := environment.get("SKETCHBATCH_DATA"):
        return Path(folder).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sketchbatch" / "quickdraw"


def _suggested(name: str, catalogue: Catalogue) -> str:
    by_lower = {known.lower(): known for known in catalogue}
    near = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower)]
    return f"no class is called {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
