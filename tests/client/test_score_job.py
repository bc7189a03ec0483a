"""Test jobs of `sketchbatch score`: interrupted, resumed, refused and restarted jobs."""

import fcntl
import gzip
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from finished import Finished
from onnx_models import write_model
from PIL import Image
from pyarrow import parquet
from sketchbatch_client import Client
from sketchbatch_client.drawings.readers import PICTURES
from sketchbatch_client.file_stamp import file_stamp
from sketchbatch_client.scoring.job import ProgressListener, ScoreJob, write_scores
from sketchbatch_client.scoring.outputs import KINDS
from sketchbatch_client.scoring.plan import ScoreOptions

ROWS, PART = 6000, 512

pytestmark = pytest.mark.timeout(60)  # many tests start a process


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Write two files of bitmaps with 6,000 rows together, which a job scores in 12 parts of at most 512 rows."""
    folder = tmp_path_factory.mktemp("drawings")
    rows = np.random.default_rng(5).integers(0, 256, (ROWS, 784), np.uint8)
    np.save(folder / "a.npy", rows[:4000])
    np.save(folder / "b.npy", rows[4000:])
    return folder


@pytest.fixture
def score(sketchbatch, tiny_service):
    """Return a function that runs `sketchbatch score` with the tiny service and parts of 512 rows."""
    return lambda *words: sketchbatch("score", *words, "--server", tiny_service.address, "--part-rows", PART)


class SilentListener(ProgressListener):
    """Receive the progress of a job and ignore it."""

    def opens(self, source):
        pass

    def selects(self, model, score_kind):
        pass

    def begins(self, rows, rows_done):
        pass

    def advances(self, rows):
        pass


@pytest.fixture(scope="module")
def undisturbed(drawings, tmp_path_factory, tiny_service):
    """Return the bytes of the output of an uninterrupted job, by output format."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Client(tiny_service.address) as client:
        for kind in KINDS:
            options = ScoreOptions(with_all_scores=kind == "npy")
            job = ScoreJob(inputs=[str(drawings)], kind=kind, options=options, part_rows=PART)
            assert write_scores(client, job, folder / kind, SilentListener()).rows == ROWS
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


STOPPING_JOB = """
import sys
from sketchbatch_client import cli
from sketchbatch_client.scoring.parts import Parts

save, parts_left = Parts.save, int(sys.argv.pop(1))

def save_and_wait(self, part):
    global parts_left
    save(self, part)
    parts_left -= 1
    if not parts_left:
        print("ready", flush=True)
        sys.stdin.read()

Parts.save = save_and_wait
cli.main()
"""


@pytest.fixture
def interrupt(tiny_service):
    """Return a function that interrupts a job of `sketchbatch score` after a given number of parts.

    The job runs in a new process, which waits after it has saved `parts` parts. The signal `how` then ends the process.
    """

    def run(parts: int, output: Path, *words: object, how: signal.Signals = signal.SIGKILL, times: int = 1) -> Finished:
        flags = ["--output", output, "--part-rows", PART, "--server", tiny_service.address]
        command = [sys.executable, "-c", STOPPING_JOB, *map(str, [parts, "score", *words, *flags])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, text=True) as process:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            for _ in range(times):
                process.send_signal(how)
            process.wait()
            finished = Finished(process.returncode, process.stdout.read(), process.stderr.read())
        assert len(list(output.with_name(f"{output.name}.parts").glob("*.arrow"))) == parts
        return finished

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_job_resumes_and_writes_identical_output(drawings, score, interrupt, undisturbed, tmp_path, kind):
    """A job that is killed after three parts resumes after these parts, and produces byte-identical output.

    At the end, the folder contains only the output and its manifest.
    """
    output = tmp_path / f"o.{kind}"
    interrupt(3, output, drawings)
    assert not output.exists()
    finished = score(drawings, "--output", output)
    assert finished.code == 0, finished.err
    assert f"{3 * PART:,} of 6,000 rows" in finished.err
    text = " ".join(finished.err.split())
    taken = re.search(rf"; resumed after {3 * PART:,} rows and read the other 4,464 in (.*) s \((.*) rows/s\)", text)
    seconds, rate = (float(number.replace(",", "")) for number in taken.groups())
    assert 0.99 * rate * (seconds - 0.06) < 6000 - 3 * PART < 1.01 * rate * (seconds + 0.06)
    assert output.read_bytes() == undisturbed[kind]
    assert {path.name for path in tmp_path.iterdir()} == {output.name, f"{output.name}.manifest.json"}


def test_an_interrupted_job_exits_without_a_traceback_and_resumes(drawings, score, interrupt, undisturbed, tmp_path):
    """Ctrl-C ends a job without a traceback; the same command then resumes the job and writes identical output."""
    output = tmp_path / "o.csv"
    # if the tests run as a background job, SIGINT is ignored, and the process of the job would inherit this setting
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = interrupt(2, output, drawings, how=signal.SIGINT)
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.err
    assert f"interrupted; the same command resumes from {output}.parts" in interrupted.err
    assert score(drawings, "--output", output).code == 0
    assert output.read_bytes() == undisturbed["csv"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_causes_no_traceback(drawings, interrupt, tmp_path, how, code):
    """Ctrl-C twice, also with reader processes, ends a job without a line on stderr; its parts are kept."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = interrupt(2, tmp_path / "o.csv", drawings, "--readers", 2, "--quiet", how=how, times=3)
    assert (interrupted.code, interrupted.err.strip()) == (code, "")


def test_a_damaged_part_is_scored_again(drawings, score, interrupt, undisturbed, tmp_path):
    """If a part file of an interrupted job was truncated, the resumed job scores this part again."""
    output = tmp_path / "o.parquet"
    interrupt(3, output, drawings)
    part = output.with_name("o.parquet.parts") / "part-0000001.arrow"
    part.write_bytes(part.read_bytes()[:100])
    assert score(drawings, "--output", output).code == 0
    assert output.read_bytes() == undisturbed["parquet"]


def test_a_full_disk_is_reported_with_the_file_and_the_job_resumes_later(drawings, score, undisturbed, tmp_path):
    """If a job cannot write its output, the command prints one line with the file and exits with code 1.

    The finished parts remain, and the job resumes later. The test limits the size of a file, which has the same effect
    on the job as a full disk.
    """
    output = tmp_path / "o.csv"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # Python ignores SIGXFSZ
    try:
        finished = score(drawings, "--output", output, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (finished.code, finished.err.count("\n")) == (1, 1)
    assert f"{output}: File too large" in finished.err
    folder = output.with_name("o.csv.parts")
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.glob("*.arrow"))
    assert not list(folder.glob("*.partial"))
    assert score(drawings, "--output", output).code == 0
    assert output.read_bytes() == undisturbed["csv"]


@pytest.mark.parametrize("output", ["-", "o.csv"])
@pytest.mark.parametrize("source", ["-", "a.npz", "a.npy.gz"])
def test_a_full_disk_for_an_unpacked_copy_is_reported_with_its_place(score, tmp_path, monkeypatch, source, output):
    """A pipe, a compressed array and a packed file need a copy on disk; the error names the copy or its folder."""
    bitmaps = np.random.default_rng(1).integers(0, 256, (500, 784), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=bitmaps)
    np.save(tmp_path / "a.npy", bitmaps)
    (tmp_path / "a.npy.gz").write_bytes(gzip.compress((tmp_path / "a.npy").read_bytes()))
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    place = "spool" if output == "-" or source == "a.npz" else "o.csv.parts"
    output = output if output == "-" else tmp_path / output
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))  # has the effect of a full disk
    try:
        with (tmp_path / "a.npy").open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            finished = score("-" if source == "-" else tmp_path / source, "--output", output, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (finished.code, finished.err.count("\n")) == (1, 1)
    assert finished.err.startswith(f"sketchbatch: {tmp_path / place}")
    assert "File too large; free disk space, then run the same command again" in finished.err
    assert not list((tmp_path / "spool").rglob("*.*"))


def test_a_finished_job_is_recognised(drawings, score, tmp_path):
    """The command does not score a finished job again, unless its output was deleted or --restart is given."""
    output = tmp_path / "o.csv"
    assert score(drawings, "--output", output).code == 0
    first = file_stamp(output)
    again = score(drawings, "--output", output)
    assert (again.code, file_stamp(output)) == (0, first)
    assert "6,000 rows" in again.err
    assert score(drawings, "--output", output, "--restart").code == 0
    assert file_stamp(output) != first
    output.unlink()
    assert score(drawings, "--output", output).code == 0
    assert output.exists()


@pytest.fixture
def begun(drawings, interrupt, tmp_path):
    """Interrupt a job after three parts; return the folder of its inputs, a copy of `drawings`, and its output."""
    shutil.copytree(drawings, tmp_path / "in")
    output = tmp_path / "o.csv"
    interrupt(3, output, tmp_path / "in")
    return tmp_path / "in", output


def test_a_job_does_not_resume_with_changed_inputs(begun, score, drawings, undisturbed):
    """A job is refused if the contents or the number of rows of an input have changed.

    An input with only a new modification time is accepted. With --restart, the job begins again with changed inputs.
    """
    folder, output = begun
    rows = np.load(folder / "a.npy")
    rows[700, 5] ^= 1  # row 700 belongs to the second part, which is finished
    np.save(folder / "a.npy", rows)
    refused = score(folder, "--output", output)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert f"was begun differently: the contents of {folder / 'a.npy'} have changed; undo" in refused.err
    assert not output.exists()
    np.save(folder / "a.npy", rows[:3999])
    assert "had 4,000 rows, and now has 3,999" in score(folder, "--output", output).err
    rows[700, 5] ^= 1
    np.save(folder / "a.npy", rows)
    assert score(folder, "--output", output).code == 0
    assert output.read_text().replace(str(folder), str(drawings)) == undisturbed["csv"].decode()
    rows[0, 0] ^= 1
    np.save(folder / "a.npy", rows)
    assert "have changed" in score(folder, "--output", output).err  # inputs of a finished job are compared, too
    assert score(folder, "--output", output, "--restart").code == 0


def test_the_refusal_of_a_finished_job_with_new_rows_names_append(score, tmp_path, noise):
    """`score` of a folder that has grown since the job was finished names --append; that of a changed one does not."""
    folder, output = tmp_path / "in", tmp_path / "o.csv"
    folder.mkdir()
    np.save(folder / "a.npy", noise(20))
    assert score(folder, "--output", output).code == 0
    np.save(folder / "0.npy", noise(10))
    grown = score(folder, "--output", output)
    assert grown.code == 4
    assert "use --append to add the new rows, or name another output, or use --restart" in grown.err
    np.save(folder / "a.npy", noise(10))
    assert "--append" not in score(folder, "--output", output).err
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(noise(1)[0]).resize((60, 60)).save(pictures / "a.png")
    assert score(pictures, "--output", tmp_path / "p.csv").code == 0
    Image.fromarray(noise(2)[1]).resize((60, 60)).save(pictures / "b.png")
    grown = score(pictures, "--output", tmp_path / "p.csv")
    assert (grown.code, "--append" in grown.err) == (4, False)  # a folder of pictures cannot grow


def test_a_job_does_not_resume_with_another_model(begun, sketchbatch, start_service, tmp_path):
    """A job does not resume if the model has the same name and version but another digest."""
    folder, output = begun
    other = start_service(write_model(tmp_path / "tiny.onnx", metadata={"sketchbatch.licence": "another"}))
    refused = sketchbatch("score", folder, "--output", output, "--part-rows", PART, "--server", other.address)
    other.stop()
    assert refused.code == 4
    assert "the model was tiny version 1 (digest" in refused.err


def test_a_job_does_not_resume_with_other_options(begun, score):
    """A job does not resume with other options, because all lines of an output have the same columns."""
    folder, output = begun
    assert "--top-k was 1, and is now 2" in score(folder, "--output", output, "--top-k", 2).err


def test_two_processes_do_not_write_one_output(drawings, score, tmp_path):
    """While one process holds the lock of an output, a second process with the same output is refused."""
    output = tmp_path / "o.csv"
    (tmp_path / "o.csv.parts").mkdir()
    with (tmp_path / "o.csv.parts" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = score(drawings, "--output", output)
    assert refused.code == 1  # 1 and not 4, because a retry may succeed
    assert "another process is writing it" in refused.err


def test_rejected_rows_are_listed(score, tmp_path):
    """A job with rejects ends with exit code 3, and its rejects file has the source, row and reason of each reject.

    The other rows keep their row numbers.
    """
    good = json.dumps({"key_id": "7", "drawing": [[[0, 255], [0, 255]]]})
    (tmp_path / "ant.ndjson").write_text(f'{good}\n{{"drawing": []}}\n{good}\nnot json\n{good}')
    output = tmp_path / "o.jsonl"
    finished = score(tmp_path / "ant.ndjson", "--output", output)
    assert finished.code == 3
    assert finished.err.splitlines()[-1].startswith("rejected: 2 rows; ")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["row"], line["key_id"]) for line in lines] == [(0, 7), (2, 7), (4, 7)]
    rejects = [json.loads(line) for line in (tmp_path / "o.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["row"]) for reject in rejects] == [
        (str(tmp_path / "ant.ndjson"), row) for row in (1, 3)
    ]
    assert rejects[0]["reason"] == "a drawing must have at least one stroke, got none"
    assert score(tmp_path / "ant.ndjson", "--output", output).code == 3  # the exit code of the finished job is the same
    (tmp_path / "ant.ndjson").write_text(f"{good}\n")
    assert score(tmp_path / "ant.ndjson", "--output", output, "--restart").code == 0
    assert not (tmp_path / "o.jsonl.rejects.jsonl").exists()


def test_row_i_of_a_npy_output_is_drawing_i(score, tmp_path):
    """Row i of an .npy output has the scores of drawing i; the row of a reject has NaN instead of scores."""
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
        (
            "a.ndjson",
            b"{}\n[]\n",
            "a.ndjson:1: expected the key drawing with a list of strokes, got the keys [] (none of the first",
        ),
        ("a.ndjson", b"<!DOCTYPE html>\n", "got a web page"),
        ("a.ndjson", b"", "expected drawings, got no row"),
        ("a.bin", b"12345", "truncated: the file ends 5 bytes into this record"),
        ("a.npy", b"", "expected a .npy file, got an empty file"),
        ("a.png", b"<html>", "no row was scored, and 1 rejected; the first: "),
        (
            "a.txt",
            b"cat",
            f"expected .npy, .npz, .ndjson, .jsonl, .bin, .parquet or {PICTURES}; got '.txt'",
        ),
    ],
)
def test_a_file_without_a_drawing_is_refused(score, tmp_path, name, contents, message):
    """For a file without a drawing, the command prints one line, and no output or parts remain."""
    (tmp_path / name).write_bytes(contents)
    refused = score(tmp_path / name, "--output", tmp_path / "o.csv")
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert message in refused.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_kind_of_input_gives_the_same_labels(sketchbatch, tiny_service, quickdraw, tmp_path, monkeypatch):
    """The same drawings receive the same labels in every input format.

    The inputs are files, a glob, folders and standard input.
    """
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
    """Convert a line of simplified .ndjson to a record of Google's .bin."""
    drawing = json.loads(line)
    strokes = [struct.pack("<H", len(x)) + bytes(x) + bytes(y) for x, y in drawing["drawing"]]
    head = struct.pack("<Q2sbIH", int(drawing["key_id"]), b"SE", 1, 1_500_000_000, len(strokes))
    return head + b"".join(strokes)


def test_lines_can_go_to_standard_output(score, drawings, undisturbed):
    """Standard output receives only the lines, as CSV unless --format names another format."""
    finished = score(drawings, "--output", "-")
    assert finished.code == 0, finished.err
    assert finished.out.encode() == undisturbed["csv"]
    finished = score(drawings, "--output", "-", "--format", "jsonl", "--quiet")
    assert (finished.out.encode(), finished.err) == (undisturbed["jsonl"], "")
