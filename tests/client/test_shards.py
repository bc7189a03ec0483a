"""Test shards: which rows a shard scores, when shards belong to one job, and how their outputs are merged."""

import os
import shutil

import numpy as np
import pytest
from onnx_models import write_model
from sketchbatch_client.errors import DiskFull
from sketchbatch_client.file_stamp import file_stamp
from sketchbatch_client.scoring.manifest import Manifest
from sketchbatch_client.scoring.outputs import KINDS
from sketchbatch_client.scoring.parts import Parts

ROWS, PART = 6000, 512

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def drawings(tmp_path):
    """Write two files of bitmaps, which have 6,000 rows together; return their folder."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    rows = np.random.default_rng(5).integers(0, 256, (ROWS, 784), np.uint8)
    np.save(folder / "a.npy", rows[:4000])
    np.save(folder / "b.npy", rows[4000:])
    return folder


@pytest.fixture
def score(sketchbatch, tiny_service, drawings):
    """Return a function that scores `drawings` with the tiny service."""
    return lambda *words: sketchbatch("score", drawings, *words, "--server", tiny_service.address)


@pytest.mark.parametrize(("name", "code"), [("o.log", 2), ("o.csv", 2), ("o.NDJSON", 0)])
def test_shards_are_named_by_their_format(score, tmp_path, name, code):
    """`merge` reads the format from the names, so `score` refuses other names before it sends a request."""
    finished = score("--output", tmp_path / name, "--format", "jsonl", "--shard", "0/2")
    assert finished.code == code
    if code:
        assert "must end in .jsonl" in " ".join(finished.err.replace("\u2502", "").split())
        assert [path.name for path in tmp_path.iterdir()] == ["drawings"]


@pytest.mark.parametrize("part_rows", [[], ["--part-rows", PART]])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_shards_equal_the_output_of_one_process(score, sketchbatch, tmp_path, monkeypatch, kind, part_rows):
    """Merged shards are byte-identical to the output of one process; a missing shard is named in the error."""
    whole, output = tmp_path / f"whole.{kind}", tmp_path / f"o.{kind}"
    assert score("--output", whole, *part_rows).code == 0
    for number in (2, 0):
        assert score("--output", output, "--shard", f"{number}/3", *part_rows).code == 0
    missing = sketchbatch("merge", *tmp_path.glob(f"o-*.{kind}"), "--output", output)
    assert (missing.code, output.exists()) == (1, False)
    assert "1 of 3 shards are missing, the first is number 1" in missing.err
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert score("--output", output, "--shard", "/3", *part_rows).code == 0
    shards = sorted(tmp_path.glob(f"o-*.{kind}"), reverse=True)
    assert [shard.name for shard in shards] == [f"o-0000{number}-of-00003.{kind}" for number in (2, 1, 0)]
    assert all(Manifest.read(shard).rows > 0 for shard in shards)
    assert sketchbatch("merge", *shards, "--output", output).code == 0
    assert output.read_bytes() == whole.read_bytes()
    merged = file_stamp(output)
    assert score("--output", output, *part_rows).code == 0
    assert file_stamp(output) == merged  # a finished job is not scored again


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "/2"])
def test_an_impossible_shard_is_rejected(score, tmp_path, monkeypatch, shard):
    """An impossible shard is rejected with exit code 2 and a message that names the option."""
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    refused = score("--output", tmp_path / "o.csv", "--shard", shard)
    assert refused.code == 2
    assert "--shard" in refused.err


@pytest.mark.parametrize("index", ["", "x", "8", "08", "-1", " 7", "7.0"])
def test_an_impossible_index_of_kubernetes_is_rejected(score, tmp_path, monkeypatch, index):
    """Without a valid JOB_COMPLETION_INDEX, `--shard /8` ends with exit code 2 and scores no shard."""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    refused = score("--output", tmp_path / "o.csv", "--shard", "/8")
    assert (refused.code, list(tmp_path.glob("o*"))) == (2, [])
    assert "--shard" in refused.err


def test_a_shard_that_is_given_twice_is_not_merged(score, sketchbatch, tmp_path):
    """Otherwise its rows would be in the output twice."""
    for number in range(2):
        assert score("--output", tmp_path / "o.csv", "--shard", f"{number}/2").code == 0
    shards = sorted(tmp_path.glob("o-*.csv"))
    finished = sketchbatch("merge", *shards, shards[0], "--output", tmp_path / "all.csv")
    assert (finished.code, (tmp_path / "all.csv").exists()) == (4, False)
    assert "got shard 0 twice" in finished.err


def change_a_row(drawings, row):
    """Change the pixels of one of the 6,000 rows; the number of rows and the size of the file stay the same."""
    name, row = ("a.npy", row) if row < 4000 else ("b.npy", row - 4000)
    bitmaps = np.load(drawings / name)
    bitmaps[row, 0] ^= 255
    np.save(drawings / name, bitmaps)


def write_later(file):
    """Set a later modification time for a file, as a new copy of the file would have."""
    modified_ns = file.stat().st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(modified_ns, modified_ns))


def test_a_shard_is_refused_if_an_input_changed_after_another_shard(score, drawings, tmp_path):
    """If rows that a finished shard has scored have changed since, the next shard is refused before its first request.

    The exit code is 4.
    """
    output = tmp_path / "o.csv"
    assert score("--output", output, "--shard", "0/2").code == 0
    change_a_row(drawings, 7)
    write_later(drawings / "a.npy")
    refused = score("--output", output, "--shard", "1/2")
    assert refused.code == 4
    assert f"another shard of the job, was begun differently: the contents of {drawings / 'a.npy'}" in refused.err
    assert not (tmp_path / "o-00001-of-00002.csv").exists()
    change_a_row(drawings, 7)
    assert score("--output", output, "--shard", "1/2").code == 0


def test_a_shard_is_refused_if_a_begun_shard_has_other_inputs_or_options(score, drawings, tmp_path, monkeypatch):
    """A shard is refused if another shard, which is not finished yet, was begun with other options or inputs.

    The other shard is begun by a command that fails after its first part.
    """
    output = tmp_path / "o.csv"
    fail_after_a_part(monkeypatch)
    assert score("--output", output, "--shard", "1/2", "--quiet").code == 1
    assert "--top-k was 1, and is now 2" in score("--output", output, "--shard", "0/2", "--top-k", 2).err
    np.save(drawings / "c.npy", np.zeros((3, 784), np.uint8))
    refused = score("--output", output, "--shard", "0/2")
    assert refused.code == 4
    assert "the number of inputs was 2, and is now 3" in refused.err


def fail_after_a_part(monkeypatch):
    """Make the next job fail after it has saved its first part."""
    save = Parts.save

    def save_and_fail(self, part):
        monkeypatch.undo()
        save(self, part)
        raise DiskFull("full")

    monkeypatch.setattr(Parts, "save", save_and_fail)


def test_shards_of_different_contents_are_not_merged(score, sketchbatch, drawings, tmp_path):
    """Shards that were written to different folders are not merged if an input changed between their starts.

    If only the modification times differ, running the commands again compares the contents. The shards are then merged.
    """
    for number, folder in enumerate(("first", "second")):  # the shards are in two folders, so neither finds the other
        assert score("--output", tmp_path / folder / "o.csv", "--shard", f"{number}/2").code == 0
        change_a_row(drawings, 7)
        write_later(drawings / "a.npy")
    for path in (tmp_path / "second").iterdir():
        shutil.move(path, tmp_path / "first")
    output = tmp_path / "first" / "o.csv"
    shards = sorted(output.parent.glob("o-*.csv"))
    refused = sketchbatch("merge", *shards, "--output", output)
    assert (refused.code, refused.err.count("\n"), output.exists()) == (4, 1, False)
    assert f"{drawings / 'a.npy'} has another size or modification time than for {shards[0]}" in refused.err
    written = [file_stamp(shard) for shard in shards]
    for number in range(2):  # the row was changed twice: it has its first value again
        assert score("--output", output, "--shard", f"{number}/2").code == 0
    assert [file_stamp(shard) for shard in shards] == written  # the contents were compared, and nothing was scored
    assert sketchbatch("merge", *shards, "--output", output).code == 0


def test_an_upgraded_client_resumes_jobs_with_other_part_sizes(score, sketchbatch, drawings, tmp_path, monkeypatch):
    """An unfinished shard, and the shards after it, keep the part size with which an older client began the job."""
    whole, output = tmp_path / "whole.parquet", tmp_path / "o.parquet"
    assert score("--output", whole, "--part-rows", PART).code == 0
    fail_after_a_part(monkeypatch)
    assert score("--output", output, "--shard", "0/2", "--part-rows", PART).code == 1
    for number in range(2):
        assert score("--output", output, "--shard", f"{number}/2").code == 0
    assert sketchbatch("merge", *tmp_path.glob("o-*.parquet"), "--output", output).code == 0
    assert output.read_bytes() == whole.read_bytes()


def test_all_shards_use_the_model_version_of_the_first_shard(sketchbatch, start_service, drawings, tmp_path):
    """A shard that starts after a model update uses the model version of the shards that were scored before."""
    models = tmp_path / "models" / "tiny"
    write_model(models / "1" / "model.onnx")
    service = start_service(models.parent)
    words = ["score", drawings, "--output", tmp_path / "o.csv", "--server", service.address]
    assert sketchbatch(*words, "--shard", "0/2").code == 0
    service.stop()
    write_model(models / "2" / "model.onnx", seed=8)
    service = start_service(models.parent)
    words[-1] = service.address
    assert sketchbatch(*words, "--shard", "1/2").code == 0
    assert {Manifest.read(shard).plan.version for shard in tmp_path.glob("o-*.csv")} == {"1"}


def test_a_damaged_shard_is_named(score, sketchbatch, tmp_path):
    """If a shard is damaged, `merge` names it in one line with exit code 4, and writes no output."""
    output = tmp_path / "o.parquet"
    for number in range(2):
        assert score("--output", output, "--shard", f"{number}/2").code == 0
    shard = tmp_path / "o-00001-of-00002.parquet"
    contents = bytearray(shard.read_bytes())
    contents[len(contents) // 2 :] = bytes(len(contents) - len(contents) // 2)
    shard.write_bytes(contents)
    refused = sketchbatch("merge", *tmp_path.glob("o-*.parquet"), "--output", output)
    assert (refused.code, refused.err.count("\n"), output.exists()) == (4, 1, False)
    assert f"{shard}: damaged" in refused.err


def test_shards_of_another_job_are_not_merged(score, sketchbatch, tmp_path):
    """Shards with different options are not merged; the exit code is 4, because a retry cannot succeed."""
    for number in range(2):
        assert score("--output", tmp_path / f"{number}.csv", "--shard", f"{number}/2", "--top-k", 1 + number).code == 0
    refused = sketchbatch("merge", *tmp_path.glob("*-of-00002.csv"), "--output", tmp_path / "o.csv")
    assert refused.code == 4
    assert "expected a shard of the same job" in refused.err
