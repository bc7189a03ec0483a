"""Google's storage bucket of drawings: its address, its classes, and the size and digest of each whole .npy file.

This module contains no HTTP code: `download.py` fetches one file, and `fetching.py` fetches many files.
"""

import csv
import difflib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import FetchFailed

BUCKET = "https://storage.googleapis.com/quickdraw_dataset/full"
"""The address is stated in https://github.com/googlecreativelab/quickdraw-dataset#get-the-data"""

SOURCE = "Quick, Draw! drawings by Google (CC BY 4.0)"


@dataclass(frozen=True, slots=True)
class ExpectedNpy:
    """Published size, number of drawings and digest of the whole .npy file of one class."""

    size_bytes: int
    drawings: int
    sha256: str


Catalogue = Mapping[str, ExpectedNpy]  # the expected .npy file of each class, by class name


def read_catalogue() -> Catalogue:
    """Return the expected .npy file of each of the 345 classes, sorted by class name.

    Sizes and digests come from TensorFlow Datasets:
    https://github.com/tensorflow/datasets/blob/333639b/tensorflow_datasets/url_checksums/quickdraw_bitmap.txt
    """
    table = importlib.resources.files(__package__) / "quickdraw_npy_checksums.tsv"
    lines = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return {line["category"]: ExpectedNpy(int(line["bytes"]), int(line["drawings"]), line["sha256"]) for line in lines}


def known_classes(names: str, catalogue: Catalogue) -> tuple[str, ...]:
    """Return the class names in `names`, split at commas and without repetitions; `all` means the whole catalogue.

    Raises:
        FetchFailed: A name is not in the catalogue; the message suggests similar names.
    """
    if names.strip() == "all":
        return tuple(catalogue)
    labels = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in labels if name not in catalogue]
    if unknown or not labels:
        problems = "; ".join(_suggest(name, catalogue) for name in unknown) or "no class named"
        raise FetchFailed(f"{problems} (`all` stands for all {len(catalogue)} classes)")
    return labels


def _suggest(name: str, catalogue: Catalogue) -> str:
    by_lower = {known.lower(): known for known in catalogue}
    similar = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower)]
    return f"no class is called {name!r}" + (f"; did you mean {' or '.join(similar)}?" if similar else "")
