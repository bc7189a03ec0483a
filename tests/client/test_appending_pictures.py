"""Test `score --append` with pictures and links: each has one row, also if it is mended or removed."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from scored_inputs import rows_of, save_picture

pytestmark = pytest.mark.timeout(60)


def test_a_picture_that_was_half_written_is_scored_by_the_next_run(append, inputs, tmp_path, sketchbatch):
    """A rejected picture that was written anew is scored, and is no reject any more; a change of others is refused."""
    output, later = tmp_path / "o.csv", tmp_path / "later"
    save_picture(inputs / "a.png", 9)
    save_picture(later, 99)
    complete = later.read_bytes()
    (inputs / "b.png").write_bytes(complete[:-30])
    finished = append(output)
    assert finished.code == 3, finished.err
    assert rows_of(output) == [("a.png", 0)]
    (inputs / "b.png").write_bytes(complete)
    save_picture(inputs / "c.png", 5)
    finished = append(output)
    assert finished.code == 0, finished.err
    assert rows_of(output) == [("a.png", 0), ("b.png", 0), ("c.png", 0)]
    manifest = json.loads((tmp_path / "o.csv.manifest.json").read_bytes())
    assert (manifest["rows"], manifest["rejected"]) == (3, 0)
    assert not (tmp_path / "o.csv.rejects.jsonl").exists()
    assert append(output).code == 0
    assert len(rows_of(output)) == 3
    merged = sketchbatch("merge", output, "--output", tmp_path / "all.csv")
    assert merged.code == 0, merged.err
    save_picture(inputs / "c.png", 50)
    refused = append(output)
    assert (refused.code, f"rows of {inputs / 'c.png'} that an earlier run" in refused.err) == (4, True), refused.err


@pytest.mark.parametrize("other", ["mended", "removed"])
def test_a_changed_picture_next_to_one_that_was_mended_or_removed_is_refused(append, inputs, tmp_path, other):
    """The rows of each picture are compared; new times alone are no change."""
    output = tmp_path / "o.csv"
    for name, ink in (("a.png", 9), ("b.png", 30), ("c.png", 60)):
        save_picture(inputs / name, ink)
    complete = (inputs / "b.png").read_bytes()
    if other == "mended":
        (inputs / "b.png").write_bytes(complete[:-30])
    append(output)
    if other == "mended":
        (inputs / "b.png").write_bytes(complete)
        assert append(output).code == 0
    else:
        (inputs / "b.png").unlink()
    for path in inputs.iterdir():
        os.utime(path, ns=(1, 1))
    again = append(output)
    assert (again.code, "0 new rows" in again.err) == (0, True), again.err
    save_picture(inputs / "a.png", 99)
    refused = append(output)
    assert (refused.code, f"rows of {inputs / 'a.png'} that an earlier run" in refused.err) == (4, True), refused.err


@pytest.mark.parametrize("first", ["pictures", "arrays"])
def test_the_first_folder_of_pictures_does_not_hide_other_drawings(append, inputs, tmp_path, noise, first):
    """A folder with a folder per night is searched as before when a night brings another kind of files."""
    for night in ("1", "2", "3"):
        (inputs / night).mkdir()
        if (night == "2") == (first == "arrays"):
            save_picture(inputs / night / "p.png", 9)
        else:
            np.save(inputs / night / "a.npy", noise(1))
        save_picture(inputs / "top.png", 30)
        finished = append(tmp_path / "o.csv")
        assert finished.code == 0, finished.err
    assert len(rows_of(tmp_path / "o.csv")) == 4


def test_a_job_with_a_mended_picture_names_append(append, sketchbatch, tiny_service, inputs, tmp_path):
    """The same command is refused, because its output would change; --append scores the picture."""
    save_picture(inputs / "a.png", 9)
    complete = (inputs / "a.png").read_bytes()
    (inputs / "b.png").write_bytes(complete[:-30])
    words = ("--server", tiny_service.address, "--output", tmp_path / "o.csv")
    assert sketchbatch("score", inputs / "*.png", *words).code == 3
    (inputs / "b.png").write_bytes(complete)
    refused = sketchbatch("score", inputs / "*.png", *words)
    assert refused.code == 4
    assert refused.err.endswith("; --append scores pictures again that were rejected and have been mended\n")
    assert sketchbatch("score", inputs / "*.png", *words, "--append").code == 0
    assert rows_of(tmp_path / "o.csv") == [("a.png", 0), ("b.png", 0)]


def test_pictures_in_two_outputs_are_not_merged(append, inputs, tmp_path, sketchbatch, tiny_service):
    """A folder of pictures is one input of a job, and each of its pictures is one with --append."""
    for name, ink in (("a.png", 9), ("b.png", 30)):
        save_picture(inputs / name, ink)
    grown, whole = tmp_path / "grown.csv", tmp_path / "whole.csv"
    assert append(grown).code == 0
    assert sketchbatch("score", inputs, "--output", whole, "--server", tiny_service.address).code == 0
    for outputs in ((grown, whole), (whole, grown)):
        refused = sketchbatch("merge", *outputs, "--output", tmp_path / "all.csv")
        assert (refused.code, f"got rows of {inputs}/a.png in both" in refused.err) == (4, True), refused.err


def test_new_pictures_of_a_folder_are_added(append, inputs, tmp_path):
    """Each picture counts for itself, wherever its name is among the others."""
    for name in ("b.png", "d.png"):
        Image.new("L", (40, 40), 255 if name == "b.png" else 250).save(inputs / name)
    for name in ("b.png", "d.png"):
        image = Image.new("L", (40, 40), 255)
        image.paste(0, (10, 10, 30, 20))
        image.save(inputs / name)
    assert append(tmp_path / "o.csv").code == 0
    for name in ("a.png", "c.png"):
        (inputs / name).write_bytes((inputs / "b.png").read_bytes())
    assert append(tmp_path / "o.csv").code == 0
    assert rows_of(tmp_path / "o.csv") == [(f"{name}.png", 0) for name in "bdac"]


def test_an_inbox_with_unread_pictures_is_reported(append, inputs, tmp_path, noise):
    """A night without a drawing that is read does not hide files that may have some."""
    np.save(inputs / "a.npy", noise(3))
    assert append(tmp_path / "o.csv").code == 0
    (inputs / "a.npy").rename(inputs / "b.heic")
    (inputs / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    finished = append(tmp_path / "o.csv")
    assert (finished.code, "0 new rows" in finished.err, "b.heic (a HEIC" in finished.err) == (3, True, True)


def test_new_links_to_scored_files_add_no_rows(append, inputs, tmp_path, noise):
    """A second link to a file, or to a folder, does not add the rows again under another name."""
    np.save(tmp_path / "x.npy", noise(3))
    (inputs / "sub" / "deep").mkdir(parents=True)
    np.save(inputs / "sub" / "deep" / "d.npy", noise(2))
    (inputs / "sub" / "link.npy").symlink_to(tmp_path / "x.npy")
    assert append(tmp_path / "o.csv").code == 0
    assert len(rows_of(tmp_path / "o.csv")) == 5
    (inputs / "sub" / "also.npy").symlink_to(tmp_path / "x.npy")
    (inputs / "current").symlink_to("sub/deep")
    again = append(tmp_path / "o.csv")
    assert (again.code, "0 new rows" in again.err) == (0, True), again.err


def test_the_rows_of_a_linked_picture_that_vanished_stay(append, inputs, tmp_path):
    """The target of a link may be removed once it is scored, as a file may be."""
    Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(tmp_path / "t.png")
    (inputs / "l.png").symlink_to(tmp_path / "t.png")
    assert append(tmp_path / "o.csv").code == 0
    (tmp_path / "t.png").unlink()
    again = append(tmp_path / "o.csv")
    assert (again.code, "o.csv has 1 row" in again.err) == (0, True), again.err
