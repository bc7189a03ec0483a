"""Test that `score --append` adds exactly the rows that an output does not have, and that merged nights keep theirs."""

import json
import os
import re
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet
from sketchbatch_client.rpc.client import Client
from sketchbatch_client.scoring import parts
from sketchbatch_client.scoring.appending import append_scores
from sketchbatch_client.scoring.inputs import InputOptions, find_sources
from sketchbatch_client.scoring.job import ProgressListener, ScoreJob
from sketchbatch_client.scoring.plan import Input, Plan, ScoreOptions

pytestmark = pytest.mark.timeout(60)

# Two points: key, country, recognised, time, number of strokes; number of points, x, y.
BIN_RECORD = struct.pack("<Q2sbIH", 7, b"US", 1, 0, 1) + struct.pack("<H4B", 2, 0, 255, 0, 9)
LINE = '{"key_id": "%d", "drawing": [[[0, %d, 255], [0, 255, 9]]]}\n'


def strokes(first: int, last: int) -> str:
    return "".join(LINE % (number + 1, number % 250) for number in range(first, last))


def rows_of(output: Path) -> list[tuple[str, int]]:
    """Return the file name and the row number of each line of an output."""
    if output.suffix == ".parquet":
        table = parquet.read_table(output)
    elif output.suffix == ".csv":
        table = csv.read_csv(output)
    else:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        return [(Path(line["source"]).name, line["row"]) for line in lines]
    return [
        (Path(source).name, row)
        for source, row in zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True)
    ]


def save_picture(path: Path, left: int) -> None:
    """Write a PNG with a dark rectangle that begins at column `left`."""
    image = Image.new("L", (140, 60), 255)
    image.paste(0, (left, 10, left + 30, 20))
    image.save(path, "png")


@pytest.fixture
def inputs(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def append(sketchbatch, tiny_service, inputs):
    """Return a function that runs `score --append` for the folder `inputs`."""
    return lambda output, *flags: sketchbatch(
        "score", inputs, "--output", output, "--append", "--server", tiny_service.address, *flags
    )


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_each_run_adds_new_files_and_new_rows(append, inputs, tmp_path, noise, suffix):
    """A file that has grown, a new file before the others, a removed file: each row is there once, in order."""
    output = tmp_path / f"o.{suffix}"
    (inputs / "m.ndjson").write_text(strokes(0, 3))
    np.save(inputs / "z.npy", noise(2))
    assert append(output).code == 0
    first = [("m.ndjson", row) for row in range(3)] + [("z.npy", row) for row in range(2)]
    assert rows_of(output) == first

    (inputs / "m.ndjson").write_text(strokes(0, 5) + "no drawing\n")
    np.save(inputs / "a.npy", noise(4))
    (inputs / "z.npy").unlink()
    finished = append(output)
    assert finished.code == 3, finished.err
    assert "6 new rows in " in finished.err
    assert f"{output} has 11 rows" in finished.err
    assert "rejected: 1 row; " in finished.err
    second = [("a.npy", row) for row in range(4)] + [("m.ndjson", 3), ("m.ndjson", 4)]
    assert rows_of(output) == first + second
    assert len(Path(f"{output}.rejects.jsonl").read_text().splitlines()) == 1

    again = append(output)
    assert again.code == 0  # nothing is new
    assert f"rejected by earlier runs: 1 row; {output}.rejects.jsonl lists" in again.err
    (inputs / "m.ndjson").write_text(strokes(0, 5) + "no drawing\n" + strokes(6, 7))
    assert append(output).code == 0
    assert rows_of(output) == [*first, *second, ("m.ndjson", 6)]
    manifest = json.loads(Path(f"{output}.manifest.json").read_bytes())
    assert (manifest["rows"], manifest["rejected"], len(manifest["earlier"])) == (12, 1, 2)


def test_scores_are_those_of_one_run(append, sketchbatch, tiny_service, inputs, tmp_path, noise):
    """A .npy of scores grows, too; its rows equal those of a run over all inputs."""
    np.save(inputs / "a.npy", noise(7))
    assert append(tmp_path / "o.npy").code == 0
    np.save(inputs / "b.npy", noise(9)[::-1])
    assert append(tmp_path / "o.npy").code == 0
    whole = tmp_path / "whole.npy"
    assert sketchbatch("score", inputs, "--output", whole, "--server", tiny_service.address).code == 0
    assert np.array_equal(np.load(tmp_path / "o.npy"), np.load(whole))
    assert np.load(whole).shape == (16, 3)


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


def test_an_output_of_another_program_is_refused_without_restart_as_remedy(append, inputs, tmp_path, noise):
    """The command with --append and --restart would be refused, too."""
    np.save(inputs / "a.npy", noise(1))
    (tmp_path / "o.csv").write_text("by a person")
    refused = append(tmp_path / "o.csv")
    assert refused.code == 4
    assert "exists, and no job has written it; name another output, or move it" in refused.err


def test_an_incomplete_record_of_a_bin_file_is_left_for_the_next_run(append, inputs, tmp_path):
    """As the last line of a file of lines: a program may be writing it."""
    (inputs / "a.bin").write_bytes(2 * BIN_RECORD + BIN_RECORD[:-3])
    first = append(tmp_path / "o.csv")
    assert (first.code, "2 new rows" in first.err) == (0, True), first.err
    (inputs / "a.bin").write_bytes(3 * BIN_RECORD)
    second = append(tmp_path / "o.csv")
    assert (second.code, "1 new row in" in second.err) == (0, True), second.err


def test_a_malformed_record_at_the_end_of_a_bin_file_is_rejected(append, inputs, tmp_path):
    """It is complete, so no program is writing it."""
    (inputs / "a.bin").write_bytes(BIN_RECORD + struct.pack("<Q2sbIH", 7, b"US", 1, 0, 0))
    finished = append(tmp_path / "o.csv")
    assert (finished.code, "rejected: 1 row" in finished.err) == (3, True), finished.err
    assert rows_of(tmp_path / "o.csv") == [("a.bin", 0)]


@pytest.mark.parametrize("suffix", ["bin", "ndjson"])
def test_an_incomplete_row_that_the_output_has_is_not_left_out(
    append, sketchbatch, tiny_service, inputs, tmp_path, suffix
):
    """A run without --append rejects it; the file is not one that has lost a row."""
    contents = 2 * BIN_RECORD + BIN_RECORD[:-3] if suffix == "bin" else (strokes(0, 2) + '{"drawing": [[[0').encode()
    (inputs / f"a.{suffix}").write_bytes(contents)
    words = ("--server", tiny_service.address, "--output", tmp_path / "o.csv")
    assert sketchbatch("score", inputs, *words).code == 3
    again = append(tmp_path / "o.csv")
    assert (again.code, "0 new rows" in again.err) == (0, True), again.err


@pytest.mark.parametrize("change", ["same size", "grown"])
def test_a_changed_file_next_to_one_that_was_removed_is_refused(append, inputs, tmp_path, noise, change):
    """Each file is compared for itself. So far the old labels of the changed file stayed, without a word."""
    rows = noise(9)
    np.save(inputs / "a.npy", noise(3))
    np.save(inputs / "z.npy", rows[:5])
    assert append(tmp_path / "o.csv").code == 0
    (inputs / "a.npy").unlink()
    assert append(tmp_path / "o.csv").code == 0
    np.save(inputs / "z.npy", rows[::-1] if change == "grown" else rows[4::-1])
    refused = append(tmp_path / "o.csv")
    assert (refused.code, f"rows of {inputs / 'z.npy'} that an earlier run" in refused.err) == (4, True), refused.err
    np.save(inputs / "z.npy", rows)
    mended = append(tmp_path / "o.csv")
    assert (mended.code, "4 new rows" in mended.err) == (0, True), mended.err


@pytest.mark.parametrize("is_append", [False, True])
def test_an_output_of_an_older_client_is_continued(append, sketchbatch, tiny_service, inputs, tmp_path, is_append):
    """Older clients wrote one number for each part: the CRC-32 of the digests of all of its blocks."""
    output = tmp_path / "o.csv"
    score = append if is_append else partial(sketchbatch, "score", inputs, "--server", tiny_service.address, "--output")
    for name in "ab":
        (inputs / f"{name}.ndjson").write_text(strokes(0, 3))
    assert score(output).code == 0
    path = tmp_path / "o.csv.manifest.json"
    manifest = json.loads(path.read_bytes())
    assert len(manifest["digests"]["0"]) == 2
    sources = find_sources([str(inputs)], tmp_path, lambda _: None)
    blocks = b"".join(source.digest(0, 3).to_bytes(4, "little") for source in sources)
    manifest["digests"]["0"] = zlib.crc32(blocks)
    path.write_text(json.dumps(manifest))
    os.utime(inputs / "a.ndjson", ns=(1, 1))
    assert score(output).code == 0
    if is_append:
        (inputs / "a.ndjson").write_text(strokes(0, 4))
        (inputs / "c.ndjson").write_text(strokes(0, 2))
        grown = append(output)
        assert (grown.code, "3 new rows" in grown.err) == (0, True), grown.err
    (inputs / "b.ndjson").write_text(strokes(4, 7))
    assert score(output).code == 4


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


def change_a_row(path: Path) -> None:
    path.write_text(strokes(9, 10) + strokes(1, 5))


def cut(path: Path) -> None:
    path.write_text(strokes(0, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_a_row, r"rows of .*m\.ndjson that an earlier run read have changed"),
        (cut, r"m\.ndjson had 3 rows, and now has 2"),
    ],
)
def test_changed_rows_are_refused(append, inputs, tmp_path, change, message):
    """Rows that the output has must stay as they were; a new time stamp alone is no change."""
    (inputs / "m.ndjson").write_text(strokes(0, 3))
    assert append(tmp_path / "o.csv").code == 0
    os.utime(inputs / "m.ndjson", ns=(1, 1))
    assert append(tmp_path / "o.csv").code == 0
    before = (tmp_path / "o.csv").read_bytes()
    change(inputs / "m.ndjson")
    finished = append(tmp_path / "o.csv")
    assert finished.code == 4
    assert re.search(message, finished.err), finished.err
    assert (tmp_path / "o.csv").read_bytes() == before


def test_other_options_and_columns_are_refused(append, sketchbatch, tiny_service, inputs, tmp_path, noise):
    """All rows of an output have the same columns; the message names what differs."""
    np.save(inputs / "a.npy", noise(3))
    output = tmp_path / "o.csv"
    assert append(output).code == 0
    finished = append(output, "--top-k", "2")
    assert (finished.code, "--top-k was 1, and is now 2" in finished.err) == (4, True)
    (inputs / "m.ndjson").write_text(strokes(0, 3))
    finished = append(output)
    assert (finished.code, "has no column for them" in finished.err) == (4, True)
    (inputs / "m.ndjson").unlink()
    assert append(output, "--restart").code == 2
    assert append(output, "--shard", "0/2").code == 2
    assert append("-").code == 2
    np.save(inputs / "b.npy", noise(3))
    assert append(output).code == 0
    finished = sketchbatch("score", inputs, "--output", output, "--server", tiny_service.address)
    assert (finished.code, "continue with --append" in finished.err) == (4, True)


class StopsAfter(ProgressListener):
    """Ends the run, as a kill does, after some rows."""

    def __init__(self, rows: int) -> None:
        self._left = rows

    def advances(self, rows: int) -> None:
        self._left -= rows
        if self._left < 0:
            raise KeyboardInterrupt


def job(folder: Path, part_rows: int = 1024) -> ScoreJob:
    return ScoreJob(
        inputs=[str(folder)],
        kind="csv",
        options=ScoreOptions(),
        part_rows=part_rows,
        readers=0,
        input_options=InputOptions(),
    )


def test_an_interrupted_run_resumes_and_then_adds_what_came_since(tiny_service, inputs, tmp_path, noise):
    """The rows with which the interrupted run began come first, then those that arrived meanwhile."""
    output = tmp_path / "o.csv"
    np.save(inputs / "b.npy", noise(10))
    with Client(tiny_service.address) as client:
        append_scores(client, job(inputs), output, StopsAfter(10**9))
        np.save(inputs / "c.npy", np.concatenate([noise(2000), noise(2000)]))
        with pytest.raises(KeyboardInterrupt):
            append_scores(client, job(inputs), output, StopsAfter(3000))
        assert len(rows_of(output)) == 10
        assert list((tmp_path / "o.csv.parts").glob("*.arrow"))
        np.save(inputs / "a.npy", noise(5))
        outcome = append_scores(client, job(inputs), output, StopsAfter(10**9))
    assert (outcome.rows, outcome.added) == (4015, 4005)
    expected = [("b.npy", row) for row in range(10)] + [("c.npy", row) for row in range(4000)]
    assert rows_of(output) == expected + [("a.npy", row) for row in range(5)]
    assert not (tmp_path / "o.csv.parts").exists()


@pytest.mark.parametrize("part_rows", [1024, 500])
def test_parts_of_other_rows_are_not_reused(tiny_service, inputs, tmp_path, noise, part_rows):
    """If an input was written anew after an interruption, or parts have another size, all its rows are scored anew."""
    output = tmp_path / "o.csv"
    np.save(inputs / "b.npy", noise(10))
    with Client(tiny_service.address) as client:
        append_scores(client, job(inputs), output, StopsAfter(10**9))
        np.save(inputs / "c.npy", np.zeros((4000, 28, 28), np.uint8))
        with pytest.raises(KeyboardInterrupt):
            append_scores(client, job(inputs), output, StopsAfter(3000))
        if part_rows == 1024:
            np.save(inputs / "c.npy", np.full((4000, 28, 28), 7, np.uint8))
        outcome = append_scores(client, job(inputs, part_rows), output, StopsAfter(10**9))
        assert (outcome.rows, outcome.added) == (4010, 4000)
        scores = {line.split(",")[3] for line in output.read_text().splitlines()[11:]}
        expected = client.classify(np.load(inputs / "c.npy")[:1]).scores.max()
    assert [float(score) for score in scores] == [pytest.approx(expected, abs=1e-6)]


def test_a_pipe_and_the_output_itself_are_no_inputs(append, sketchbatch, tiny_service, inputs, tmp_path, noise):
    """The rows of a pipe cannot be recognised in the next run, and an output is never scored."""
    flags = ["--append", "--server", tiny_service.address, "--output"]
    finished = sketchbatch("score", "-", *flags, tmp_path / "o.csv")
    assert (finished.code, "expected a file for --append, got a pipe" in finished.err) == (4, True)
    parquet.write_table(pa.table({"x": [bytes(784)] * 2}), inputs / "a.parquet")
    for code in (0, 4):
        finished = sketchbatch("score", inputs / "*.parquet", *flags, inputs / "o.parquet")
        assert finished.code == code, finished.err
    assert "must not be one of the inputs" in finished.err
    for _ in range(2):
        assert sketchbatch("score", inputs, *flags, inputs / "o.parquet").code == 0
    assert rows_of(inputs / "o.parquet") == [("a.parquet", 0), ("a.parquet", 1)]


@pytest.mark.parametrize("step", range(1, 6))
def test_a_kill_while_files_are_renamed_loses_nothing(tiny_service, inputs, tmp_path, monkeypatch, step):
    """After a power failure between any two renames, the next run finishes them or adds the rows anew, once."""
    output = tmp_path / "o.csv"
    (inputs / "a.ndjson").write_text(strokes(0, 3) + "no drawing\n")
    with Client(tiny_service.address) as client:
        append_scores(client, job(inputs), output, StopsAfter(10**9))
        (inputs / "b.ndjson").write_text(strokes(0, 3) + "no drawing\n")
        renames = 0
        rename = Path.replace

        def failing(path: Path, target: Path) -> Path:
            nonlocal renames
            if target in (output, parts.rejects_path(output), parts.manifest_path(output)) or "next" in target.name:
                renames += 1
                if renames == step:
                    raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing)
            if step < 5:
                with pytest.raises(KeyboardInterrupt):
                    append_scores(client, job(inputs), output, StopsAfter(10**9))
            else:
                append_scores(client, job(inputs), output, StopsAfter(10**9))
                assert renames == 4
        append_scores(client, job(inputs), output, StopsAfter(10**9))
    assert rows_of(output) == [(name, row) for name in ("a.ndjson", "b.ndjson") for row in range(3)]
    rejects = [json.loads(line) for line in Path(f"{output}.rejects.jsonl").read_text().splitlines()]
    assert [Path(reject["source"]).name for reject in rejects] == ["a.ndjson", "b.ndjson"]
    manifest = json.loads(Path(f"{output}.manifest.json").read_bytes())
    assert (manifest["rows"], manifest["rejected"]) == (6, 2)
    assert not (tmp_path / "o.csv.parts").exists()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "npy"])
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


def test_a_folder_that_was_scored_as_a_whole_is_refused(append, sketchbatch, tiny_service, inputs, tmp_path):
    """Without --append, the manifest has a folder of pictures as one input, whose rows cannot be told apart."""
    for name in ("a.png", "b.png"):
        image = Image.new("L", (40, 40), 255)
        image.paste(0, (10, 10, 30, 20))
        image.save(inputs / name)
    arguments = ["score", inputs, "--output", tmp_path / "o.csv", "--server", tiny_service.address]
    assert sketchbatch(*arguments).code == 0
    finished = append(tmp_path / "o.csv")
    assert (finished.code, "was scored as a whole folder" in finished.err) == (4, True)


def test_one_name_of_a_parquet_column_is_kept(append, inputs, tmp_path):
    """The column of keys is there from the first run on, and rows without a key have none."""
    (inputs / "a.ndjson").write_text(strokes(0, 2))
    assert append(tmp_path / "o.parquet").code == 0
    parquet.write_table(pa.table({"x": [bytes(784)] * 2}), inputs / "b.parquet")
    assert append(tmp_path / "o.parquet").code == 0
    assert parquet.read_table(tmp_path / "o.parquet")["key_id"].to_pylist() == [1, 2, None, None]


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


@pytest.mark.parametrize("last", ["", "\n", '{"drawing": [[[0, 25'])
def test_a_file_without_a_last_line_feed_grows(append, inputs, tmp_path, last):
    """A line that a program is just writing is read by the next run; a missing line feed is no change."""
    lines = strokes(0, 3).rstrip("\n")
    (inputs / "m.ndjson").write_text(lines + "\n" * (last.startswith("{")) + last)
    assert append(tmp_path / "o.csv").code == 0
    assert len(rows_of(tmp_path / "o.csv")) == 3
    (inputs / "m.ndjson").write_text(strokes(0, 5))
    finished = append(tmp_path / "o.csv")
    assert finished.code == 0, finished.err
    assert rows_of(tmp_path / "o.csv") == [("m.ndjson", row) for row in range(5)]


def test_an_interrupted_first_run_resumes_although_files_have_come(tiny_service, inputs, tmp_path, noise):
    """The first run of --append resumes as later runs do."""
    output = tmp_path / "o.csv"
    np.save(inputs / "c.npy", np.concatenate([noise(2000), noise(2000)]))
    with Client(tiny_service.address) as client:
        with pytest.raises(KeyboardInterrupt):
            append_scores(client, job(inputs), output, StopsAfter(3000))
        np.save(inputs / "a.npy", noise(5))
        outcome = append_scores(client, job(inputs), output, StopsAfter(10**9))
    assert (outcome.rows, outcome.added) == (4005, 4005)
    assert rows_of(output) == [("c.npy", row) for row in range(4000)] + [("a.npy", row) for row in range(5)]


def test_a_first_run_with_rejects_only_is_refused(append, inputs, tmp_path):
    """Inputs without any drawing are probably the wrong ones; in later runs, a night may have only rejects."""
    (inputs / "a.png").write_bytes(b"GIF89a damaged")
    finished = append(tmp_path / "o.csv")
    assert (finished.code, "no row was scored, and 1 rejected" in finished.err) == (4, True)
    Image.fromarray(np.pad(np.zeros((20, 20), np.uint8), 10, constant_values=255)).save(inputs / "b.png")
    assert append(tmp_path / "o.csv").code == 3
    (inputs / "c.png").write_bytes(b"GIF89a damaged")
    assert append(tmp_path / "o.csv").code == 3
    assert rows_of(tmp_path / "o.csv") == [("b.png", 0)]


def test_names_that_look_alike_are_told_apart(sketchbatch, tiny_service, inputs, tmp_path, noise):
    """A picture that is named twice is scored once, and the arrays `a` and `a/b` of a .npz are two sources."""
    image = Image.fromarray(np.pad(np.zeros((20, 20), np.uint8), 10, constant_values=255))
    image.save(inputs / "1.png")
    flags = ["--append", "--server", tiny_service.address, "--output"]
    assert sketchbatch("score", inputs, inputs / "1.png", *flags, tmp_path / "o.csv").code == 0
    assert rows_of(tmp_path / "o.csv") == [("1.png", 0)]
    np.savez(tmp_path / "x.npz", **{"a": noise(2), "a/b": noise(3)})
    for _ in range(2):
        finished = sketchbatch("score", tmp_path / "x.npz", *flags, tmp_path / "n.csv")
        assert finished.code == 0, finished.err
    assert len(rows_of(tmp_path / "n.csv")) == 5


@pytest.mark.parametrize("damage", ["empty replaces", "no replaces", "empty manifest"])
def test_damaged_files_of_a_publication_end_in_no_traceback(append, inputs, tmp_path, noise, damage):
    """A power failure can leave any of the files empty; the next run then begins the night anew."""
    np.save(inputs / "a.npy", noise(3))
    output = tmp_path / "o.csv"
    assert append(output).code == 0
    folder = tmp_path / "o.csv.parts"
    folder.mkdir()
    (folder / "manifest.next.json").write_text("" if damage == "empty manifest" else "{}")
    if damage != "no replaces":
        (folder / "replaces").write_text("")
    np.save(inputs / "b.npy", noise(4))
    assert append(output).code == 0
    assert rows_of(output) == [("a.npy", row) for row in range(3)] + [("b.npy", row) for row in range(4)]


def test_a_job_of_many_inputs_finds_its_rows_fast():
    """A job of 200,000 pictures has as many inputs; the rows of a part are found by bisection."""
    inputs = tuple(Input(source=str(number), rows=1 + number % 3, stamp="", start=number) for number in range(200_000))
    plan = Plan(
        inputs=inputs,
        model="m",
        version="1",
        model_digest="",
        labels=("a",),
        top_k=1,
        with_all_scores=False,
        part_rows=1024,
    )
    rows = [(segment.source, row) for part in plan.parts for segment in plan.segments(part) for row in segment[1:]]
    assert plan.all_rows == sum(each.rows for each in inputs) == sum(map(plan.rows_of, plan.parts))
    assert rows[0] == (0, 0)
    assert rows[-1] == (199_999, 199_999 + inputs[-1].rows)


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


def test_an_inbox_with_unread_pictures_is_reported(append, inputs, tmp_path, noise):
    """A night without a drawing that is read does not hide files that may have some."""
    np.save(inputs / "a.npy", noise(3))
    assert append(tmp_path / "o.csv").code == 0
    (inputs / "a.npy").rename(inputs / "b.heic")
    (inputs / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    finished = append(tmp_path / "o.csv")
    assert (finished.code, "0 new rows" in finished.err, "b.heic (a HEIC" in finished.err) == (3, True, True)


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


def test_strokes_without_keys_are_added_to_an_output_without_keys(append, inputs, tmp_path, noise):
    """A file of strokes has keys only if a line has one: `key_id` in the metadata of Google."""
    np.save(inputs / "a.npy", noise(1))
    assert append(tmp_path / "o.csv").code == 0
    (inputs / "own.ndjson").write_text('{"drawing": [[[0, 255], [0, 9]]]}\n')
    assert append(tmp_path / "o.csv").code == 0
    (inputs / "google.ndjson").write_text('{"key_id": "7", "drawing": [[[0, 255], [0, 9]]]}\n')
    refused = append(tmp_path / "o.csv")
    assert (refused.code, "google.ndjson has keys (key_id)" in refused.err) == (4, True), refused.err
    (inputs / "google.ndjson").unlink()
    with (inputs / "own.ndjson").open("a") as file:  # rows of a source that the output has are never refused
        file.write('{"key_id": "7", "drawing": [[[0, 255], [0, 9]]]}\n')
    assert append(tmp_path / "o.csv").code == 0
    assert len(rows_of(tmp_path / "o.csv")) == 3


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
