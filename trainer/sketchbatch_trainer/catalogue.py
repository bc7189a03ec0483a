"""The classes of Quick, Draw!, with the size and digest of the whole .npy file of each."""

import csv
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass


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
