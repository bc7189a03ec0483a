"""Run the commands `score`, `evaluate`, `model` and `health`, and check output, files and exit codes.

At least one test of each command runs it as a process. The other tests run it in this process, which is faster.
"""

import csv
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from finished import Finished
from onnx_models import LABELS
from PIL import Image
from pyarrow import parquet

pytestmark = pytest.mark.timeout(60)  # a test starts up to four processes


@pytest.fixture
def folder(tmp_path, noise):
    """Write drawings of two labels that the tiny model knows, and of one label that the tiny model does not know."""
    for rows, label in ((30, "ant"), (20, "bee"), (5, "zebra")):
        np.save(tmp_path / f"{label}.npy", noise(rows).reshape(rows, 784))
    return tmp_path


@pytest.fixture
def sketchbatch(sketchbatch, tiny_service) -> Callable[..., Finished]:
    """Return a function that runs a `sketchbatch` command in this process, with the tiny service as its server."""
    return lambda command, *arguments: sketchbatch(command, *arguments, "--server", tiny_service.address)


@pytest.fixture
def new_process(run_command, tiny_service) -> Callable[..., Finished]:
    """Return a function that runs a `sketchbatch` command as a process, with the tiny service as its server."""

    def run(command: str, *arguments: object) -> Finished:
        finished = run_command("sketchbatch", command, *arguments, "--server", tiny_service.address)
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run


def test_score_writes_one_line_per_row_in_order(sketchbatch, folder):
    """Each output line has a source and a row number, which identify its drawing in every output format."""
    kinds = {}
    for kind in ("csv", "jsonl", "parquet"):
        output = folder / f"scores.{kind}"
        finished = sketchbatch("score", folder / "bee.npy", folder / "ant.npy", "--output", output)
        assert (finished.code, finished.out) == (0, ""), finished.err
        assert "50 rows from 2 inputs" in finished.err
        kinds[kind] = output
    lines = parquet.read_table(kinds["parquet"]).to_pylist()
    assert [(line["source"], line["row"]) for line in lines] == [
        *[(str(folder / "bee.npy"), row) for row in range(20)],
        *[(str(folder / "ant.npy"), row) for row in range(30)],
    ]
    assert {line["label"] for line in lines} <= set(LABELS)
    from_json = [json.loads(line) for line in kinds["jsonl"].read_text().splitlines()]
    assert [line | {"score": np.float32(line["score"])} for line in from_json] == lines
    with kinds["csv"].open(newline="") as file:
        assert [line["label"] for line in csv.DictReader(file)] == [line["label"] for line in lines]
    assert not list(folder.glob(".*"))


def test_score_writes_more_than_the_best_class_on_request(sketchbatch, folder):
    """With --top-k, the output has columns for the k best classes; with --all-scores, it has one column per class."""
    assert sketchbatch("score", folder / "ant.npy", "--top-k", 2, "--output", folder / "two.parquet").code == 0
    assert parquet.read_table(folder / "two.parquet").column_names == [
        "source", "row", "label", "score", "label_2", "score_2",
    ]  # fmt: skip
    assert sketchbatch("score", folder / "ant.npy", "--all-scores", "--output", folder / "all.parquet").code == 0
    table = parquet.read_table(folder / "all.parquet")
    scores = np.column_stack([table[f"score_{label}"] for label in LABELS])
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert [LABELS[index] for index in scores.argmax(axis=1)] == table["label"].to_pylist()


def test_every_file_name_is_scored_and_is_text_in_every_format(sketchbatch, tmp_path, noise):
    """Names with the characters of globs and CSV are scored, and a name that is not UTF-8 stays different from others.

    Every format of the output has the same text.
    """
    names = ["c (1).npy", "c[1].npy", "a*b.npy", "q?.npy", "c#t%20.npy", "-x.npy", 'tab\t"q",\nline.npy', "e\u0301.npy"]
    names += [os.fsdecode(name) for name in (b"\xe8.npy", b"\xe9.npy")]
    (tmp_path / "in").mkdir()
    for name in names:
        np.save(tmp_path / "in" / name, noise(2))
        assert (
            len(list(csv.reader(io.StringIO(sketchbatch("score", tmp_path / "in" / name, "--output", "-").out)))) == 3
        )
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert sketchbatch("score", tmp_path / "in", "--output", tmp_path / f"o{suffix}").code == 0
    with (tmp_path / "o.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    texts = [*names[:-2], r"\xe8.npy", r"\xe9.npy"]
    expected = sorted(f"{tmp_path}/in/{name}" for name in texts for _ in range(2))
    assert sorted(line["source"] for line in lines) == expected
    in_json = [json.loads(line)["source"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    in_parquet = parquet.read_table(tmp_path / "o.parquet")["source"].to_pylist()
    assert in_json == in_parquet == [line["source"] for line in lines]


def test_score_takes_strokes_and_pictures(sketchbatch, tmp_path):
    """`score` accepts files of strokes and folders of pictures, and names the file of each picture as its source."""
    drawing = json.dumps({"drawing": [[[0, 255], [0, 255]]]})
    (tmp_path / "ant.ndjson").write_text(f"{drawing}\n" * 3)
    (tmp_path / "scans").mkdir()
    for name in ("b.png", "a.png"):
        Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(tmp_path / "scans" / name)
    output = tmp_path / "o.jsonl"
    finished = sketchbatch("score", tmp_path / "ant.ndjson", tmp_path / "scans", "--output", output)
    assert finished.code == 0, finished.err
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["source"], line["row"]) for line in lines] == [
        *[(str(tmp_path / "ant.ndjson"), row) for row in range(3)],
        *[(str(tmp_path / "scans" / name), 0) for name in ("a.png", "b.png")],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npy", "--output", "o.csv"], "none.npy: cannot be read"),
        (["page.npy", "--output", "o.csv"], "got a web page"),
        (["cut.npy", "--output", "o.csv"], "truncated"),
        (["ant.npy", "page.npy", "--output", "o.csv"], "web page"),
        (["ant.npy", "--output", "o.txt"], "must be one of .parquet, .csv, .jsonl, .npy, got '.txt'"),
        (["ant.npy", "--model", "zebra", "--output", "o.csv"], "there are: tiny (version 1)"),
        (
            ["ant.npy", "--top-k", "9", "--output", "o.csv"],
            "top-k must be 1 to 3, the number of labels of tiny, got 9; --all-scores",
        ),
    ],
)
def test_a_failed_score_prints_one_line_and_leaves_no_file(sketchbatch, folder, arguments, message):
    """After an error that a retry cannot repair, `score` exits with code 4, prints one line and leaves no file."""
    (folder / "page.npy").write_text("<!doctype html>")
    (folder / "cut.npy").write_bytes((folder / "ant.npy").read_bytes()[:5000])
    before = set(folder.iterdir())
    finished = sketchbatch("score", *[folder / a if "." in a else a for a in arguments])
    assert finished.code == 4
    assert message in finished.err
    assert finished.err.startswith("sketchbatch: ")
    assert finished.err.count("\n") == 1
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "words",
    [["score", "ant.npy", "--output"], ["evaluate", ".", "--json"], ["score", ".", "--readers", "2", "--output"]],
)
def test_a_stopped_command_leaves_no_file(folder, words, how, code):
    """SIGTERM or Ctrl-C stops a command that waits for an unresponsive server, and no output file remains.

    Further signals are ignored: nothing is printed but one line of `score`.
    """
    # if the tests run as a background job, SIGINT is ignored, and the process of the command would inherit this setting
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        command = [Path(sys.executable).parent / "sketchbatch", *words, "o.csv", "--server", address]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
        connection, _ = mute.accept()
        with connection:
            for _ in range(3):
                process.send_signal(how)
            try:
                _, errors = process.communicate(timeout=10)
            finally:
                process.kill()
                process.wait()
    told = "interrupted; run the same command again\n" if words[0] == "score" else ""
    assert (process.returncode, errors) == (code, told)
    assert not [path for path in folder.iterdir() if "o.csv" in path.name]


@pytest.mark.parametrize(("kind", "name"), [("parquet", "Parquet"), ("npy", "NumPy arrays")])
def test_score_writes_no_binary_format_to_a_terminal(folder, kind, name):
    """`score` writes no binary format to a terminal; its error names the options for a file and for another format."""
    command = [Path(sys.executable).parent / "sketchbatch", "score", folder / "ant.npy", "--output", "-"]
    controller, terminal = pty.openpty()
    try:
        finished = subprocess.run(
            [*command, "--format", kind], stdout=terminal, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert finished.returncode == 2
    words = "".join(character for character in finished.stderr if character not in "│\n").split()
    assert f"cannot write {name} to a terminal: use --output FILE or --format csv" in " ".join(words)


def test_top_k_and_all_scores_exclude_each_other(sketchbatch, folder):
    """The contradictory options --top-k and --all-scores end the command with exit code 2."""
    finished = sketchbatch("score", folder / "ant.npy", "--all-scores", "--top-k", 2, "--output", folder / "o.csv")
    assert finished.code == 2
    assert "choose one of" in finished.err


def test_score_without_a_server_is_an_error(run_command, folder):
    """If no server listens at the address, `score` ends with an error after five attempts and leaves no file."""
    words = [folder / "ant.npy", "--output", folder / "o.csv", "--server", "127.0.0.1:1"]
    finished = run_command("sketchbatch", "score", *words)
    assert finished.returncode == 1
    assert "no response from 127.0.0.1:1 in 5 attempts" in finished.stderr
    assert not (folder / "o.csv").exists()
    assert not list(folder.glob(".*"))


def test_evaluate_prints_and_writes_the_five_metrics(new_process, folder):
    """`evaluate` prints the five metrics and writes them to the JSON file.

    The command skips files whose label the model does not know, reports their number and returns 3.
    """
    (folder / "SOURCE.txt").write_text("random noise")
    finished = new_process("evaluate", folder, "--json", folder / "m.json")
    assert finished.code == 3, finished.err
    metrics = json.loads((folder / "m.json").read_text())
    five = ["accuracy", "balanced_accuracy", "specificity", "matthews_corrcoef", "jaccard"]
    for name in five:
        assert f"{name:<18} {metrics[name]:.4f}" in finished.out
    assert list(metrics)[:8] == [*five, "rows", "labels", "source"]
    assert (metrics["rows"], metrics["labels"], metrics["source"]) == (50, list(LABELS), "random noise")
    assert metrics["accuracy"] == sum(np.diagonal(metrics["confusion"])) / 50
    assert metrics["per_class"]["ant"]["rows"] == 30
    assert metrics["passed_over"] == ["zebra"]
    assert "skipped the drawings of 1 label that this model does not know: zebra" in finished.err


def test_evaluate_needs_a_label_that_the_model_knows(sketchbatch, tmp_path, noise):
    """If the model knows no label of the folder, `evaluate` ends with an error that lists the labels of both."""
    np.save(tmp_path / "zebra.npy", noise(3))
    finished = sketchbatch("evaluate", tmp_path)
    assert finished.code == 4
    assert "expected drawings of ant, bee, cow, got zebra" in finished.err


def test_model_describes_the_served_models(sketchbatch, new_process, tiny_model):
    """The command `model` prints a table, or JSON with --json."""
    import hashlib

    assert "tiny version 1 (default)" in sketchbatch("model").out
    described = json.loads(new_process("model", "--json").out)
    assert described[0]["labels"] == list(LABELS)
    assert described[0]["digest"] == hashlib.sha256(tiny_model.read_bytes()).hexdigest()


def test_health_is_an_exit_code(sketchbatch, new_process):
    """The command `health` exits with 0 only for SERVING, so that scripts and probes can use its exit code."""
    assert new_process("health")[:2] == (0, "SERVING\n")
    assert sketchbatch("health")[:2] == (0, "SERVING\n")
    assert sketchbatch("health", "--service", "no.such.Service")[:2] == (1, "SERVICE_UNKNOWN\n")


def test_health_of_an_unreachable_server_is_an_error(run_command):
    """The command `health` exits with 1 if no server listens at the address; stderr has the reason in one line."""
    finished = run_command("sketchbatch", "health", "--server", "127.0.0.1:1")
    assert (finished.returncode, finished.stdout) == (1, "UNREACHABLE\n")
    assert re.fullmatch(
        "sketchbatch: no response from 127.0.0.1:1 in 1 attempts: .*refused; does the service run at this address\\?\n",
        finished.stderr,
    )


def test_inverted_drawings_are_reported_in_one_line(run_command, tiny_service, tmp_path):
    """`score` and `evaluate` warn once on stderr; their results and exit codes do not change."""
    np.save(tmp_path / "ant.npy", np.full((9000, 28, 28), 250, np.uint8))
    where = ("--server", tiny_service.address)
    scored = run_command("sketchbatch", "score", tmp_path, *where, "--output", tmp_path / "scores.csv")
    evaluated = run_command("sketchbatch", "evaluate", tmp_path, *where)
    for finished in (scored, evaluated):
        assert finished.returncode == 0
        assert finished.stderr.count("most pixels of the bitmaps are ink") == 1
    assert f"sketchbatch: warning: {tmp_path}/ant.npy: most pixels of the bitmaps are ink" in scored.stderr


@pytest.mark.parametrize("names", [("faint", "ant"), ("ant", "faint")])
def test_each_input_is_examined_for_the_values_0_and_1(run_command, tiny_service, tmp_path, noise, names):
    """`score` warns once and names the file, although the rows of both files are in one request."""
    np.save(tmp_path / "ant.npy", noise(50))
    np.save(tmp_path / "faint.npy", noise(50) // 200)
    inputs = [tmp_path / f"{name}.npy" for name in names]
    finished = run_command(
        "sketchbatch", "score", *inputs, "--server", tiny_service.address, "--output", tmp_path / "o.csv"
    )
    assert finished.returncode == 0
    assert finished.stderr.count("the bitmaps have only the values 0 and 1") == 1
    assert f"sketchbatch: warning: {tmp_path}/faint.npy: the bitmaps have only" in finished.stderr
