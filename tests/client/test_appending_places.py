"""Test `score --append` with empty and missing folders, other spellings of a path and other working directories."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scored_inputs import rows_of

pytestmark = pytest.mark.timeout(60)


def test_another_spelling_of_a_path_is_refused(append, sketchbatch, tiny_service, inputs, tmp_path, noise, monkeypatch):
    """The rows of a file are not scored again because its path was relative and is now absolute."""
    np.save(inputs / "a.npy", noise(3))
    monkeypatch.chdir(tmp_path)
    flags = ["--append", "--server", tiny_service.address, "--output", tmp_path / "o.csv"]
    assert sketchbatch("score", "in/a.npy", *flags).code == 0
    finished = append(tmp_path / "o.csv")
    assert finished.code == 4
    assert f"{inputs}/a.npy is in/a.npy of an earlier run; write its path as then" in finished.err


@pytest.mark.parametrize("left", ["nothing", "note", "rows", "folder", "table"])
@pytest.mark.parametrize("given", [".", "*.npy"])
def test_an_inbox_without_new_files_has_no_new_rows(
    sketchbatch, tiny_service, inputs, tmp_path, noise, monkeypatch, left, given
):
    """Programs often remove files from an inbox once they are scored; the next night has then nothing to do."""
    monkeypatch.chdir(inputs)
    np.save(inputs / "a.npy", noise(3))
    flags = ["--append", "--server", tiny_service.address, "--output", tmp_path / "o.csv"]
    assert sketchbatch("score", given, *flags).code == 0
    before = (tmp_path / "o.csv").read_bytes()
    (inputs / "a.npy").unlink()
    if left == "note":
        (inputs / "notes.txt").write_text("scored")
    if left == "rows":
        np.save(inputs / "b.npy", noise(3)[:0])
    if left == "folder":
        (inputs / "2026").mkdir()
    if left == "table":
        parquet.write_table(pa.table({"x": pa.array([], pa.null())}), inputs / "b.parquet")
    finished = sketchbatch("score", given, *flags)
    assert finished.code == 0, finished.err
    assert "0 new rows in " in finished.err
    assert f"{tmp_path / 'o.csv'} has 3 rows" in finished.err
    assert (tmp_path / "o.csv").read_bytes() == before
    np.save(inputs / "c.npy", noise(2))
    assert sketchbatch("score", given, *flags).code == 0
    assert rows_of(tmp_path / "o.csv") == [("a.npy", 0), ("a.npy", 1), ("a.npy", 2), ("c.npy", 0), ("c.npy", 1)]


@pytest.mark.parametrize("flags", [("--append",), ()])
def test_an_empty_folder_is_refused_in_one_line(sketchbatch, tiny_service, inputs, tmp_path, flags):
    """In the first night, and without --append, an empty folder is probably the wrong one."""
    words = ["--output", tmp_path / "o.csv", "--server", tiny_service.address, *flags]
    finished = sketchbatch("score", inputs, *words)
    assert finished.code == 4
    assert finished.err.endswith(f"{inputs}: expected drawings, got an empty folder\n"), finished.err
    finished = sketchbatch("score", inputs / "*.npy", *words)
    assert (finished.code, f"{inputs}/*.npy: no file matches this pattern" in finished.err) == (4, True)
    (inputs / "notes.txt").write_text("notes")
    (inputs / "pictures").mkdir()
    finished = sketchbatch("score", inputs, *words)
    assert finished.err.endswith(f"expected drawings, got none; not read: {inputs}/notes.txt (another kind of file)\n")
    (inputs / "pictures" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    finished = sketchbatch("score", inputs, *words)
    assert f"not read: 1 file or folder that may have drawings: {inputs}/pictures/a.heic (a HEIC" in finished.err


def test_a_folder_that_is_missing_is_no_empty_one(append, sketchbatch, tiny_service, inputs, tmp_path, noise):
    """A wrong name, or a volume that is not mounted, is an error in every night."""
    np.save(inputs / "a.npy", noise(3))
    assert append(tmp_path / "o.csv").code == 0
    flags = ["--append", "--server", tiny_service.address, "--output", tmp_path / "o.csv"]
    for given, message in (("none", "no such file"), ("none/*.npy", "no file matches"), ("in/b.npy", "no such file")):
        finished = sketchbatch("score", tmp_path / given, *flags)
        assert (finished.code, message in finished.err) == (4, True), finished.err


def test_an_empty_table_blocks_no_night(append, inputs, tmp_path, noise):
    """A data frame without rows has columns of any type, and keys for which the output has no column."""
    np.save(inputs / "a.npy", noise(3))
    assert append(tmp_path / "o.csv").code == 0
    parquet.write_table(
        pa.table({"key_id": pa.array([], pa.null()), "x": pa.array([], pa.null())}), inputs / "e.parquet"
    )
    np.save(inputs / "b.npy", noise(4))
    finished = append(tmp_path / "o.csv")
    assert (finished.code, "4 new rows" in finished.err) == (0, True), finished.err
    assert rows_of(tmp_path / "o.csv") == [("a.npy", row) for row in range(3)] + [("b.npy", row) for row in range(4)]


@pytest.mark.parametrize("given", [".", "g.npy", "*.npy", "link"])
def test_another_working_directory_scores_no_row_again(
    sketchbatch, tiny_service, inputs, tmp_path, noise, monkeypatch, given
):
    """A file is the same one if the command runs in its folder, or if a link leads to its folder."""
    np.save(inputs / "g.npy", noise(3))
    (tmp_path / "link").symlink_to(inputs)
    flags = ["--append", "--server", tiny_service.address, "--output", tmp_path / "o.csv"]
    monkeypatch.chdir(tmp_path)
    assert sketchbatch("score", "in", *flags).code == 0
    before = (tmp_path / "o.csv").read_bytes()
    if given != "link":
        monkeypatch.chdir(inputs)
    finished = sketchbatch("score", given, *flags)
    assert (finished.code, finished.err.count("\n")) == (4, 1), finished.err
    name, where = ("link/g.npy", "") if given == "link" else ("g.npy", f", which ran in {tmp_path}")
    assert f"{name} is in/g.npy of an earlier run{where}; write its path as then" in finished.err
    assert (tmp_path / "o.csv").read_bytes() == before


def test_a_manifest_without_a_working_directory_is_continued(
    sketchbatch, tiny_service, inputs, tmp_path, noise, monkeypatch
):
    """Manifests of older clients do not have it; their relative names belong to the working directory of today."""
    np.save(inputs / "a.npy", noise(3))
    monkeypatch.chdir(tmp_path)
    flags = ["--append", "--server", tiny_service.address, "--output", tmp_path / "o.csv"]
    assert sketchbatch("score", "in", *flags).code == 0
    path = tmp_path / "o.csv.manifest.json"
    manifest = json.loads(path.read_bytes())
    assert manifest["plan"].pop("folder") == str(tmp_path)
    path.write_text(json.dumps(manifest))
    np.save(inputs / "b.npy", noise(4))
    finished = sketchbatch("score", "in", *flags)
    assert (finished.code, "4 new rows" in finished.err) == (0, True), finished.err
    assert sketchbatch("score", inputs, *flags).code == 4


def test_a_file_of_the_same_name_in_another_folder_is_compared(sketchbatch, tiny_service, tmp_path, noise, monkeypatch):
    """Size and time of another file may be equal; its rows are no longer taken for rows that were scored."""
    flags = ["--append", "--server", tiny_service.address, "--output", tmp_path / "o.csv"]
    finished = []
    for folder, rows in (("first", noise(3)), ("copy", noise(3)), ("other", noise(4)[1:])):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "g.npy", rows)
        os.utime(tmp_path / folder / "g.npy", ns=(1, 1))
        monkeypatch.chdir(tmp_path / folder)
        finished.append(sketchbatch("score", "g.npy", *flags))
    assert [each.code for each in finished] == [0, 0, 4], finished
    assert "0 new rows" in finished[1].err
    assert "rows of g.npy that an earlier run read have changed" in finished[2].err


def test_a_finished_job_keeps_its_working_directory(sketchbatch, tiny_service, tmp_path, noise, monkeypatch):
    """A command that finds its rows scored does not move them: their names belong to the folder of the first run."""
    words = ["score", "g.npy", "--output", tmp_path / "o.csv", "--server", tiny_service.address]
    for folder in ("first", "copy"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "g.npy", noise(3))
        monkeypatch.chdir(tmp_path / folder)
        assert sketchbatch(*words).code == 0
    manifest = json.loads((tmp_path / "o.csv.manifest.json").read_bytes())
    assert manifest["plan"]["folder"] == str(tmp_path / "first")
