"""Test that `score --append` adds exactly the rows that an output does not have, and refuses changed ones."""

import json
import os
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from scored_inputs import rows_of, strokes
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.plan import Input, Plan

pytestmark = pytest.mark.timeout(60)

# Two points: key, country, recognised, time, number of strokes; number of points, x, y.
BIN_RECORD = struct.pack("<Q2sbIH", 7, b"US", 1, 0, 1) + struct.pack("<H4B", 2, 0, 255, 0, 9)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "ndjson", "Parquet"])
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
