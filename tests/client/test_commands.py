"""The commands score, evaluate, model and health, run as a person runs them."""

import csv
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_models import LABELS
from PIL import Image
from pyarrow import parquet


@pytest.fixture
def folder(tmp_path, noise):
    """Drawings of two labels that the tiny model knows and one that it does not."""
    for rows, label in ((30, "ant"), (20, "bee"), (5, "zebra")):
        np.save(tmp_path / f"{label}.npy", noise(rows).reshape(rows, 784))
    return tmp_path


@pytest.fixture
def sketchbatch(run_command, tiny_service):
    """Runs `sketchbatch` against the tiny service."""
    return lambda verb, *arguments: run_command("sketchbatch", verb, *arguments, "--server", tiny_service.address)


def test_score_writes_one_line_a_row_in_order(sketchbatch, folder):
    """Source and row number tell which drawing a line is about, across files and formats."""
    kinds = {}
    for kind in ("csv", "jsonl", "parquet"):
        output = folder / f"scores.{kind}"
        finished = sketchbatch("score", folder / "bee.npy", folder / "ant.npy", "--output", output)
        assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr
        assert "50 rows from 2 files" in finished.stderr
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


def test_score_can_write_more_than_the_best(sketchbatch, folder):
    """--top-k adds columns for the next best, --all-scores one for each class."""
    assert sketchbatch("score", folder / "ant.npy", "--top-k", 2, "--output", folder / "two.parquet").returncode == 0
    assert parquet.read_table(folder / "two.parquet").column_names == [
        "source", "row", "label", "score", "label_2", "score_2",
    ]  # fmt: skip
    assert sketchbatch("score", folder / "ant.npy", "--all-scores", "--output", folder / "all.parquet").returncode == 0
    table = parquet.read_table(folder / "all.parquet")
    scores = np.column_stack([table[f"score_{label}"] for label in LABELS])
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert [LABELS[index] for index in scores.argmax(axis=1)] == table["label"].to_pylist()


def test_score_takes_strokes_and_pictures(sketchbatch, tmp_path):
    """Each picture of a folder is a source of its own."""
    drawing = json.dumps({"drawing": [[[0, 255], [0, 255]]]})
    (tmp_path / "ant.ndjson").write_text(f"{drawing}\n" * 3)
    (tmp_path / "scans").mkdir()
    for name in ("b.png", "a.png"):
        Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(tmp_path / "scans" / name)
    output = tmp_path / "o.jsonl"
    finished = sketchbatch("score", tmp_path / "ant.ndjson", tmp_path / "scans", "--output", output)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["source"], line["row"]) for line in lines] == [
        *[(str(tmp_path / "ant.ndjson"), row) for row in range(3)],
        *[(str(tmp_path / "scans" / name), 0) for name in ("a.png", "b.png")],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npy", "--output", "o.csv"], "none.npy: cannot be read"),
        (["page.npy", "--output", "o.csv"], "got a web page saved under that name"),
        (["cut.npy", "--output", "o.csv"], "truncated"),
        (["ant.npy", "page.npy", "--output", "o.csv"], "web page"),
        (["ant.npy", "--output", "o.txt"], "expected an output ending in .parquet, .csv, .jsonl, .npy, got '.txt'"),
        (["ant.npy", "--model", "zebra", "--output", "o.csv"], "there are: tiny (version 1)"),
        (["ant.npy", "--top-k", "9", "--output", "o.csv"], "top_k must be 0..3"),
    ],
)
def test_score_fails_in_one_line_and_leaves_nothing_behind(sketchbatch, folder, arguments, message):
    """Exit code 1, what was expected and what came, no partial output."""
    (folder / "page.npy").write_text("<!doctype html>")
    (folder / "cut.npy").write_bytes((folder / "ant.npy").read_bytes()[:5000])
    before = set(folder.iterdir())
    finished = sketchbatch("score", *[folder / a if "." in a else a for a in arguments])
    assert finished.returncode == 1
    assert message in finished.stderr
    assert finished.stderr.startswith("sketchbatch: ")
    assert finished.stderr.count("\n") == 1
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_score_that_is_stopped_leaves_nothing_behind(folder, how):
    """Also while it waits for a server that never answers."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would inherit that it is ignored
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        words = [Path(sys.executable).parent / "sketchbatch", "score", folder / "ant.npy", "--server", address]
        process = subprocess.Popen([*words, "--output", folder / "o.csv"], stderr=subprocess.PIPE, text=True)
        connection, _ = mute.accept()
        with connection:
            process.send_signal(how)
            try:
                _, errors = process.communicate(timeout=10)
            finally:
                process.kill()
                process.wait()
    assert process.returncode in (143, 130, 1)
    assert "Traceback" not in errors
    assert not [path for path in folder.iterdir() if "o.csv" in path.name]


def test_score_wants_either_the_best_few_or_all(sketchbatch, folder):
    """Two flags that contradict each other are not half obeyed."""
    finished = sketchbatch("score", folder / "ant.npy", "--all-scores", "--top-k", 2, "--output", folder / "o.csv")
    assert finished.returncode == 2
    assert "choose one of" in finished.stderr


def test_score_without_a_server_says_so(run_command, folder):
    """After its few attempts; nothing is left behind."""
    words = [folder / "ant.npy", "--output", folder / "o.csv", "--server", "127.0.0.1:1"]
    finished = run_command("sketchbatch", "score", *words)
    assert finished.returncode == 1
    assert "no answer from 127.0.0.1:1 in 5 attempts" in finished.stderr
    assert not (folder / "o.csv").exists()
    assert not list(folder.glob(".*"))


def test_evaluate_prints_and_writes_the_five_metrics(sketchbatch, folder):
    """Rows of labels the model does not know are passed over, and that is said."""
    (folder / "SOURCE.txt").write_text("random noise")
    finished = sketchbatch("evaluate", folder, "--json", folder / "m.json")
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((folder / "m.json").read_text())
    five = ["accuracy", "balanced_accuracy", "specificity", "matthews_corrcoef", "jaccard"]
    for name in five:
        assert f"{name:<18} {metrics[name]:.4f}" in finished.stdout
    assert list(metrics)[:8] == [*five, "rows", "labels", "source"]
    assert (metrics["rows"], metrics["labels"], metrics["source"]) == (50, list(LABELS), "random noise")
    assert metrics["accuracy"] == sum(np.diagonal(metrics["confusion"])) / 50
    assert metrics["per_class"]["ant"]["rows"] == 30
    assert metrics["passed_over"] == ["zebra"]
    assert "passed over 1 file" in finished.stderr


def test_evaluate_needs_a_label_that_the_model_knows(sketchbatch, tmp_path, noise):
    """What was expected and what came."""
    np.save(tmp_path / "zebra.npy", noise(3))
    finished = sketchbatch("evaluate", tmp_path)
    assert finished.returncode == 1
    assert "expected drawings of ant, bee, cow, got zebra" in finished.stderr


def test_model_describes_what_is_served(sketchbatch, tiny_model):
    """For people, and as JSON for programs."""
    import hashlib

    assert "tiny version 1 (default)" in sketchbatch("model").stdout
    described = json.loads(sketchbatch("model", "--json").stdout)
    assert described[0]["labels"] == list(LABELS)
    assert described[0]["digest"] == hashlib.sha256(tiny_model.read_bytes()).hexdigest()


def test_health_is_an_exit_code(sketchbatch, run_command):
    """0 only for SERVING, so that scripts and probes can use it."""
    assert (sketchbatch("health").returncode, sketchbatch("health").stdout) == (0, "SERVING\n")
    unknown = sketchbatch("health", "--service", "no.such.Service")
    assert (unknown.returncode, unknown.stdout) == (1, "SERVICE_UNKNOWN\n")
    nobody = run_command("sketchbatch", "health", "--server", "127.0.0.1:1")
    assert (nobody.returncode, nobody.stdout) == (1, "UNREACHABLE\n")
