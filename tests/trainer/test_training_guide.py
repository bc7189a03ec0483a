"""Run the Python code of docs/training.md, which makes drawings of CSV files."""

import csv
import json
import re

import numpy as np
import pytest
from sketchbatch_client.drawings.readers import labelled_files, open_bitmaps
from sketchbatch_client.drawings.strokes import open_strokes

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def convert(root, tmp_path, monkeypatch):
    """Return a function that runs the code block with the given number of the page, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    blocks = _BLOCK.findall((root / "docs" / "training.md").read_text(encoding="utf-8"))
    return lambda number: exec(blocks[number], {})


def test_mnist_becomes_a_file_of_bitmaps_per_label(tmp_path, convert, noise):
    """The code writes the rows of each label of an MNIST CSV, in order, into a file that the trainer reads."""
    bitmaps = noise(5)
    rows = [[label, *bitmap.ravel()] for label, bitmap in zip((7, 2, 7, 2, 7), bitmaps, strict=True)]
    with (tmp_path / "mnist_train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["label", *(f"pixel{n}" for n in range(784))], *rows])
    convert(0)
    found = labelled_files(tmp_path / "mnist")
    assert list(found) == ["2", "7"]
    assert np.array_equal(open_bitmaps(found["7"])[:], bitmaps[[0, 2, 4]])


def test_the_kaggle_competition_becomes_a_file_of_strokes_per_class(tmp_path, convert):
    """The code writes the strokes of each CSV of the competition, with their flags, into a file that can be read."""
    (tmp_path / "train_simplified").mkdir()
    header = ["countrycode", "drawing", "key_id", "recognized", "timestamp", "word"]
    long = [[list(range(256)) * 100, [0] * 25600]]  # longer than the default limit of the module csv
    lines = [
        ["US", json.dumps([[[0, 255], [0, 9]]]), "6", "True", "2017-03-02 23:25:10.074530", "ice cream"],
        ["SE", json.dumps(long), "7", "False", "2017-03-02 23:25:10.074530", "ice cream"],
    ]
    with (tmp_path / "train_simplified" / "ice cream.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    convert(1)
    first, second = open_strokes(labelled_files(tmp_path / "kaggle")["ice cream"])
    assert (first.strokes, first.is_recognized, first.key_id, first.country) == ([[[0, 255], [0, 9]]], True, 6, "US")
    assert (second.strokes, second.is_recognized) == (long, False)
