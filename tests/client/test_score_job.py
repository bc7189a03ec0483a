"""`sketchbatch score`: stopped and gone on with, refused and begun anew, shared and merged."""

import fcntl
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from conftest import BIN
from onnx_models import write_model
from PIL import Image
from pyarrow import parquet
from sketchbatch_client import Client
from sketchbatch_client.cli import main
from sketchbatch_client.scoring.job import Order, write_scores
from sketchbatch_client.scoring.outputs import KINDS
from sketchbatch_client.scoring.plan import ScoreOptions

ROWS, PART = 6000, 512


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Enough bitmaps for a dozen small parts, in two files."""
    folder = tmp_path_factory.mktemp("drawings")
    rows = np.random.default_rng(5).integers(0, 256, (ROWS, 784), np.uint8)
    np.save(folder / "a.npy", rows[:4000])
    np.save(folder / "b.npy", rows[4000:])
    return folder


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def sketchbatch(monkeypatch, capfd):
    """Runs the command in this process, a second sooner than in one of its own."""

    def run(*words: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["sketchbatch", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capfd.readouterr()
        code = ended.value.code
        return Finished(code, *written) if isinstance(code, int) else Finished(1, written.out, f"{written.err}{code}\n")

    return run


@pytest.fixture
def score(sketchbatch, tiny_service):
    """Runs `sketchbatch score` against the tiny service, in small parts."""
    return lambda *words: sketchbatch("score", *words, "--server", tiny_service.address, "--part-rows", PART)


class Silent:
    """Watches a job, and says nothing."""

    def opens(self, source):
        pass

    def begins(self, rows, rows_done):
        pass

    def advances(self, rows):
        pass


@pytest.fixture(scope="module")
def undisturbed(drawings, tmp_path_factory, tiny_service):
    """What one run writes, by kind."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Client(tiny_service.address) as client:
        for kind in KINDS:
            options = ScoreOptions(with_all_scores=kind == "npy")
            order = Order(inputs=[str(drawings)], kind=kind, options=options, part_rows=PART)
            assert write_scores(client, order, folder / kind, Silent()).rows == ROWS
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


def killed_after(parts: int, output: Path, *words: object, how: signal.Signals = signal.SIGKILL) -> int:
    """Starts a job and kills it as soon as so many parts are finished; returns how many were."""
    command = [BIN / "sketchbatch", "score", *map(str, words), "--output", output, "--part-rows", str(PART)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    folder = output.with_name(f"{output.name}.parts")
    while len(list(folder.glob("*.arrow"))) < parts and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(how)
    process.communicate(timeout=10)
    return len(list(folder.glob("*.arrow")))


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_gone_on_with_it_ends_in_the_same_bytes(drawings, score, tiny_service, undisturbed, tmp_path, kind):
    """Parts that are finished are not scored again; nothing but the output and its manifest is left."""
    output = tmp_path / f"o.{kind}"
    found = killed_after(3, output, drawings, "--server", tiny_service.address)
    assert 3 <= found < 12
    assert not output.exists()
    finished = score(drawings, "--output", output)
    assert finished.code == 0, finished.err
    assert f"resuming after {found * PART:,} of 6,000 rows" in finished.err
    assert output.read_bytes() == undisturbed[kind]
    assert {path.name for path in tmp_path.iterdir()} == {output.name, f"{output.name}.manifest.json"}


def test_interrupted_it_says_nothing_unfriendly_and_goes_on(drawings, score, tiny_service, undisturbed, tmp_path):
    """Ctrl-C keeps what is done."""
    output = tmp_path / "o.csv"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would inherit that it is ignored
    assert killed_after(2, output, drawings, "--server", tiny_service.address, how=signal.SIGINT) >= 2
    assert score(drawings, "--output", output).code == 0
    assert output.read_bytes() == undisturbed["csv"]


def test_a_part_that_a_disk_lost_is_scored_again(drawings, score, tiny_service, undisturbed, tmp_path):
    """Of a file that was cut short nothing is believed."""
    output = tmp_path / "o.parquet"
    killed_after(3, output, drawings, "--server", tiny_service.address)
    part = output.with_name("o.parquet.parts") / "part-0000001.arrow"
    part.write_bytes(part.read_bytes()[:100])
    assert score(drawings, "--output", output).code == 0
    assert output.read_bytes() == undisturbed["parquet"]


def test_without_room_it_says_which_file_and_goes_on_later(drawings, score, undisturbed, tmp_path):
    """One line and exit code 1; parts are kept, and nothing stands in the output's place."""
    output = tmp_path / "o.csv"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # Python ignores the signal
    try:
        finished = score(drawings, "--output", output, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    line = f"sketchbatch: {output}: File too large; free disk space, then run the same command again\n"
    assert (finished.code, finished.err) == (1, line)
    folder = output.with_name("o.csv.parts")
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.glob("*.arrow"))
    assert not list(folder.glob("*.partial"))
    assert score(drawings, "--output", output).code == 0
    assert output.read_bytes() == undisturbed["csv"]


def test_a_finished_job_is_recognised(drawings, score, tmp_path):
    """It is not scored again, unless its output is gone, or a person says so."""
    output = tmp_path / "o.csv"
    assert score(drawings, "--output", output).code == 0
    written_at = output.stat().st_mtime_ns
    again = score(drawings, "--output", output)
    assert (again.code, output.stat().st_mtime_ns) == (0, written_at)
    assert "o.csv is already finished: 6,000 rows" in again.err
    assert score(drawings, "--output", output, "--restart").code == 0
    assert output.stat().st_mtime_ns > written_at
    output.unlink()
    assert score(drawings, "--output", output).code == 0
    assert output.exists()


@pytest.fixture
def begun(drawings, tiny_service, tmp_path):
    """A job that was stopped after some parts, on drawings of its own."""
    shutil.copytree(drawings, tmp_path / "in")
    output = tmp_path / "o.csv"
    killed_after(3, output, tmp_path / "in", "--server", tiny_service.address)
    return tmp_path / "in", output


def test_changed_inputs_are_refused(begun, score, drawings, undisturbed):
    """Touched is not changed; other contents are, and so are other rows; to begin anew must be said."""
    folder, output = begun
    rows = np.load(folder / "a.npy")
    rows[700, 5] ^= 1  # in the second part, which is finished
    np.save(folder / "a.npy", rows)
    refused = score(folder, "--output", output)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert f"was begun otherwise: {folder / 'a.npy'} has other contents; put that back" in refused.err
    assert not output.exists()
    np.save(folder / "a.npy", rows[:3999])
    assert "had 4,000 rows, and has 3,999" in score(folder, "--output", output).err
    rows[700, 5] ^= 1
    np.save(folder / "a.npy", rows)
    assert score(folder, "--output", output).code == 0
    assert output.read_text().replace(str(folder), str(drawings)) == undisturbed["csv"].decode()
    rows[0, 0] ^= 1
    np.save(folder / "a.npy", rows)
    assert "has other contents" in score(folder, "--output", output).err  # of a finished job, too
    assert score(folder, "--output", output, "--restart").code == 0


def test_another_model_is_refused(begun, sketchbatch, start_service, tmp_path):
    """A model of the same name and version whose file is another."""
    folder, output = begun
    other = start_service(write_model(tmp_path / "tiny.onnx", metadata={"sketchbatch.licence": "another"}))
    refused = sketchbatch("score", folder, "--output", output, "--part-rows", PART, "--server", other.address)
    other.stop()
    assert refused.code == 1
    assert "the model was tiny version 1 (digest" in refused.err


def test_other_options_are_refused(begun, score):
    """One output has one kind of line."""
    folder, output = begun
    assert "--top-k was 1, and is 2" in score(folder, "--output", output, "--top-k", 2).err


def test_two_processes_do_not_write_one_output(drawings, score, tmp_path):
    """The second is told, and leaves the first alone."""
    output = tmp_path / "o.csv"
    (tmp_path / "o.csv.parts").mkdir()
    with (tmp_path / "o.csv.parts" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = score(drawings, "--output", output)
    assert refused.code == 1
    assert "another process is writing it" in refused.err


def test_rows_that_are_no_drawing_are_listed(score, tmp_path):
    """Each with its file, row and reason; all others keep their numbers, and the exit code tells."""
    good = json.dumps({"key_id": "7", "drawing": [[[0, 255], [0, 255]]]})
    (tmp_path / "ant.ndjson").write_text(f'{good}\n{{"drawing": []}}\n{good}\nnot json\n{good}')
    output = tmp_path / "o.jsonl"
    finished = score(tmp_path / "ant.ndjson", "--output", output)
    assert finished.code == 3
    assert "2 rows were rejected" in finished.err
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["row"], line["key_id"]) for line in lines] == [(0, 7), (2, 7), (4, 7)]
    rejects = [json.loads(line) for line in (tmp_path / "o.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["row"]) for reject in rejects] == [
        (str(tmp_path / "ant.ndjson"), row) for row in (1, 3)
    ]
    assert rejects[0]["reason"] == "drawing must be a list of strokes, got []"
    assert score(tmp_path / "ant.ndjson", "--output", output).code == 3  # it is finished, and still not whole
    (tmp_path / "ant.ndjson").write_text(f"{good}\n")
    assert score(tmp_path / "ant.ndjson", "--output", output, "--restart").code == 0
    assert not (tmp_path / "o.jsonl.rejects.jsonl").exists()


def test_bare_scores_keep_the_place_of_a_rejected_row(score, tmp_path):
    """Row i of the .npy is drawing i; one that is no drawing has no score."""
    good = json.dumps({"drawing": [[[0, 255], [0, 255]]]})
    (tmp_path / "ant.ndjson").write_text(f"{good}\n{{}}\n{good}\n")
    assert score(tmp_path / "ant.ndjson", "--output", tmp_path / "o.npy").code == 3
    scores = np.load(tmp_path / "o.npy")
    assert scores.shape == (3, 3)
    assert np.isnan(scores).all(axis=1).tolist() == [False, True, False]
    assert np.allclose(scores[[0, 2]].sum(axis=1), 1)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.ndjson", b"{}\n[]\n", "a.ndjson:1: drawing must be a list of strokes, got nothing (nor is there"),
        ("a.ndjson", b"<!DOCTYPE html>\n", "got a web page"),
        ("a.ndjson", b"", "expected drawings, got no row"),
        ("a.bin", b"12345", "truncated: the file ends 5 bytes into this record"),
        ("a.npy", b"", "expected a .npy file, got an empty one"),
        ("a.png", b"<html>", "none of 1 rows is a drawing; the first: "),
        ("a.txt", b"cat", "expected a .npy file"),
    ],
)
def test_a_file_without_a_drawing_is_refused(score, tmp_path, name, contents, message):
    """In one line, and nothing is left that looks like an output."""
    (tmp_path / name).write_bytes(contents)
    refused = score(tmp_path / name, "--output", tmp_path / "o.csv")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert message in refused.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_kind_of_input_gives_the_same_labels(sketchbatch, tiny_service, quickdraw, tmp_path, monkeypatch):
    """Strokes, records, bitmaps and pictures of the same drawings, from files, globs, folders and standard input."""
    rows = np.load(quickdraw / "numpy_bitmap" / "cat.npy")[:25]
    lines = (quickdraw / "simplified" / "cat.ndjson").read_bytes().splitlines(keepends=True)[:25]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "cat.ndjson").write_bytes(b"".join(lines))
    (tmp_path / "cat.bin").write_bytes(b"".join(map(as_record, lines)))
    np.save(tmp_path / "cat.npy", rows)
    np.savez_compressed(tmp_path / "cat.npz", x=rows, y=np.arange(len(rows)))
    parquet.write_table(pa.table({"bitmap": [row.tobytes() for row in rows]}), tmp_path / "cat.parquet")
    (tmp_path / "png").mkdir()
    for number, bitmap in enumerate(rows):
        Image.fromarray(bitmap.reshape(28, 28)).save(tmp_path / "png" / f"{number:02}.png")
    given = {
        "file": (tmp_path / "cat.npy", None),
        "archive": (tmp_path / "cat.npz", None),
        "parquet": (tmp_path / "cat.parquet", None),
        "glob": (tmp_path / "c*.npy", None),
        "folder": (tmp_path / "lines", None),
        "records": (tmp_path / "cat.bin", None),
        "pictures": (tmp_path / "png", None),
        "piped bitmaps": ("-", tmp_path / "cat.npy"),
        "piped parquet": ("-", tmp_path / "cat.parquet"),
        "piped strokes": ("-", tmp_path / "lines" / "cat.ndjson"),
    }
    labels = {}
    for name, (source, piped) in given.items():
        with (piped or Path(os.devnull)).open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            output = tmp_path / f"{name}.parquet"
            finished = sketchbatch("score", source, "--output", output, "--server", tiny_service.address)
        assert finished.code == 0, finished.err
        labels[name] = parquet.read_table(output)["label"].to_pylist()
    assert len(set(labels["file"])) > 1
    assert [name for name, each in labels.items() if each != labels["file"]] == []


def as_record(line: bytes) -> bytes:
    """A line of simplified .ndjson as a record of Google's .bin."""
    drawing = json.loads(line)
    strokes = [struct.pack("<H", len(x)) + bytes(x) + bytes(y) for x, y in drawing["drawing"]]
    head = struct.pack("<Q2sbIH", int(drawing["key_id"]), b"SE", 1, 1_500_000_000, len(strokes))
    return head + b"".join(strokes)


def test_standard_output_takes_the_lines(score, drawings, undisturbed):
    """CSV unless said otherwise; nothing else is written there."""
    finished = score(drawings, "--output", "-")
    assert finished.code == 0, finished.err
    assert finished.out.encode() == undisturbed["csv"]
    finished = score(drawings, "--output", "-", "--format", "jsonl", "--quiet")
    assert (finished.out.encode(), finished.err) == (undisturbed["jsonl"], "")


@pytest.mark.parametrize("kind", KINDS)
def test_shards_merge_into_what_one_run_writes(drawings, score, sketchbatch, undisturbed, tmp_path, monkeypatch, kind):
    """To the byte; a shard that is missing is named, and the merged output is as finished as any."""
    output = tmp_path / f"o.{kind}"
    for number in (2, 0):
        assert score(drawings, "--output", output, "--shard", f"{number}/3").code == 0
    merge = ["merge", *tmp_path.glob(f"o-*.{kind}"), "--output", output]
    missing = sketchbatch(*merge)
    assert (missing.code, output.exists()) == (1, False)
    assert "1 of 3 shards are missing, the first is number 1" in missing.err
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert score(drawings, "--output", output, "--shard", "/3").code == 0
    shards = sorted(tmp_path.glob(f"o-*.{kind}"), reverse=True)
    assert [shard.name for shard in shards] == [f"o-0000{number}-of-00003.{kind}" for number in (2, 1, 0)]
    assert sketchbatch("merge", *shards, "--output", output).code == 0
    assert output.read_bytes() == undisturbed[kind]
    assert "already finished" in score(drawings, "--output", output).err


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "/2"])
def test_a_shard_that_cannot_be_is_refused(score, drawings, tmp_path, monkeypatch, shard):
    """With what is expected."""
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    refused = score(drawings, "--output", tmp_path / "o.csv", "--shard", shard)
    assert refused.code == 2
    assert "--shard" in refused.err
