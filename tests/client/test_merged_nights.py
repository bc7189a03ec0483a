"""Test that outputs which grow by `score --append` are merged, and that `merge` keeps each row once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scored_inputs import rows_of

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("suffix", ["csv", "CSV", "jsonl", "ndjson", "parquet", "npy"])
def test_nights_are_merged(sketchbatch, tiny_service, inputs, tmp_path, noise, suffix):
    """Outputs of several jobs become one, again with each further night; a row in two of them is refused."""

    def score(night: int) -> Path:
        np.save(inputs / f"{night}.npy", noise(night))
        output = tmp_path / f"night-{night}.{suffix}"
        arguments = ["score", inputs / f"{night}.npy", "--output", output, "--server", tiny_service.address]
        assert sketchbatch(*arguments).code == 0
        return output

    nights, target = [score(3), score(5)], tmp_path / f"all.{suffix}"
    assert sketchbatch("merge", *nights, "--output", target).code == 0
    nights.append(score(2))
    finished = sketchbatch("merge", *nights, "--output", target)
    assert finished.code == 0, finished.err
    assert "10 rows from 3 files" in finished.err
    if suffix == "npy":
        assert np.load(target).shape == (10, 3)
    else:
        assert rows_of(target) == [(f"{night}.npy", row) for night in (3, 5, 2) for row in range(night)]
    finished = sketchbatch("merge", *nights, nights[0], "--output", tmp_path / f"twice.{suffix}")
    assert finished.code == 4
    assert "must be named once, got it twice" in finished.err
    copy = tmp_path / f"copy.{suffix}"
    for end in ("", ".manifest.json"):
        shutil.copy(f"{nights[0]}{end}", f"{copy}{end}")
    finished = sketchbatch("merge", *nights, copy, "--output", tmp_path / f"twice.{suffix}")
    assert finished.code == 4
    assert f"must have other rows than {nights[0]}" in finished.err
    finished = sketchbatch("merge", *nights[:2], "--output", target)
    assert (finished.code, "is the output of another job" in finished.err) == (4, True)


def test_a_merged_output_can_grow(append, sketchbatch, tiny_service, inputs, tmp_path, noise):
    """--append continues an output that was merged of nights."""
    for night in (1, 2):
        np.save(inputs / f"{night}.npy", noise(night))
        output = tmp_path / f"night-{night}.csv"
        flags = ["--output", output, "--server", tiny_service.address]
        assert sketchbatch("score", inputs / f"{night}.npy", *flags).code == 0
    nights = [tmp_path / f"night-{night}.csv" for night in (1, 2)]
    assert sketchbatch("merge", *nights, "--output", tmp_path / "all.csv").code == 0
    np.save(inputs / "3.npy", noise(3))
    assert append(tmp_path / "all.csv").code == 0
    assert rows_of(tmp_path / "all.csv") == [(f"{night}.npy", row) for night in (1, 2, 3) for row in range(night)]


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_one_output_that_has_grown_is_merged_with_all_its_rows(append, sketchbatch, inputs, tmp_path, noise, suffix):
    """`merge` of a single output keeps its rows and its history."""
    for name, rows in (("a", 3), ("b", 5)):
        np.save(inputs / f"{name}.npy", noise(rows))
        assert append(tmp_path / f"o.{suffix}").code == 0
    target = tmp_path / f"m.{suffix}"
    assert sketchbatch("merge", tmp_path / f"o.{suffix}", "--output", target).code == 0
    assert target.read_bytes() == (tmp_path / f"o.{suffix}").read_bytes()
    finished = append(target)
    assert (finished.code, "0 new rows" in finished.err) == (0, True)


def test_nights_of_one_file_in_two_working_directories_are_not_merged(
    sketchbatch, tiny_service, inputs, tmp_path, noise, monkeypatch
):
    """The rows of a file are merged once, also if its name depends on the folder in which the command ran."""
    np.save(inputs / "g.npy", noise(3))
    nights = []
    for folder, given in ((tmp_path, "in"), (inputs, ".")):
        monkeypatch.chdir(folder)
        nights.append(tmp_path / f"night-{len(nights)}.csv")
        assert sketchbatch("score", given, "--output", nights[-1], "--server", tiny_service.address).code == 0
    finished = sketchbatch("merge", *nights, "--output", tmp_path / "all.csv")
    assert (finished.code, (tmp_path / "all.csv").exists()) == (4, False)
    assert f"must have other rows than {nights[0]}, got rows of g.npy in both" in finished.err


def test_an_output_that_has_a_file_by_two_names_is_merged(sketchbatch, tiny_service, inputs, tmp_path, noise):
    """A job may name a file twice on purpose; its output is merged as it is."""
    np.save(inputs / "g.npy", noise(3))
    (tmp_path / "link").symlink_to(inputs)
    output = tmp_path / "o.csv"
    assert (
        sketchbatch("score", inputs, tmp_path / "link", "--output", output, "--server", tiny_service.address).code == 0
    )
    merged = sketchbatch("merge", output, "--output", tmp_path / "all.csv")
    assert (merged.code, "6 rows from 1 file" in merged.err) == (0, True), merged.err
