"""Ten thousand classes take no more memory than three: requests, parts and text are bounded by bytes, not by rows."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from foreign_models import write_model
from process_resources import held
from pyarrow import parquet
from sketchbatch_client import Client, RequestRefused
from sketchbatch_client.rpc.request import rows_by_size
from sketchbatch_client.scoring import plan as plans
from sketchbatch_client.scoring.plan import ScoreOptions, default_part_rows, row_bytes
from stand_in_service import row_norm, stand_in_service

LABELS = ('bear "the\nodd"', "cat, or not", "dog")


def scores_of(classes, rows):
    """Return scores that differ for each class and drawing: float32, (rows, classes)."""
    return (rows[:, :1] / 255 + np.arange(classes) / classes).astype(np.float32)


def names(classes):
    """Return `classes` labels."""
    return [f"class {number}" for number in range(classes)]


@pytest.mark.parametrize(
    ("classes", "top_k", "most"),
    [(3, 0, 1024), (345, 0, 1024), (345, 345, 1024), (1024, 0, 1024), (10_000, 0, 104), (10_000, 10_000, 52)],
)
def test_the_rows_of_a_request_follow_from_the_number_of_classes(noise, classes, top_k, most):
    """A request has as many rows as before with few classes, and its response at most 4 MiB of scores with many."""
    rows = most * 2 + 7
    with (
        stand_in_service(partial(scores_of, classes), labels=names(classes)) as (address, servicer),
        Client(address, channels=1) as client,
    ):
        results = list(client.score([noise(rows)], top_k=top_k))
    assert sorted(servicer.requests) == [7, most, most]
    assert [len(result) for result in results] == [most, most, 7]


def test_a_row_with_more_scores_than_fit_is_a_request_of_its_own():
    """The limit is never below one row."""
    assert rows_by_size(10_000_000, 0) == rows_by_size(3, 2**32 - 1) == 1


def test_the_limit_follows_a_model_update(noise):
    """If a model with more classes replaces the default model, later requests have fewer rows."""
    with stand_in_service(partial(scores_of, 3)) as (address, servicer), Client(address, channels=1) as client:
        assert len(client.classify(noise(1000), top_k=1)) == 1000
        servicer.replace(partial(scores_of, 10_000), names(10_000), digest="e")
        assert len(client.classify(noise(100), top_k=1)) == 100
        servicer.requests.clear()
        assert len(client.classify(noise(200), top_k=1)) == 200
    assert sorted(servicer.requests) == [96, 104]


def test_the_limit_is_requested_again_after_a_rejection(noise):
    """If the service rejects a request, because the new model allows fewer rows, the next call has fewer rows."""
    with stand_in_service(partial(scores_of, 3)) as (address, servicer), Client(address, channels=1) as client:
        assert len(client.classify(noise(1000), top_k=1)) == 1000
        servicer.replace(partial(scores_of, 10_000), names(10_000), digest="e", max_request_rows=838)
        with pytest.raises(RequestRefused, match="838 rows"):
            client.classify(noise(1000), top_k=1)
        assert len(client.classify(noise(1000), top_k=1)) == 1000


@pytest.mark.parametrize(
    ("options", "classes", "rows"),
    [
        (ScoreOptions(), 3, 65536),
        (ScoreOptions(), 345, 65536),
        (ScoreOptions(), 10_000, 65536),
        (ScoreOptions(top_k=10), 345, 65536),
        (ScoreOptions(with_all_scores=True), 3, 65536),
        (ScoreOptions(with_all_scores=True), 345, 11264),
        (ScoreOptions(with_all_scores=True), 10_000, 419),
        (ScoreOptions(top_k=345), 345, 2048),
        (ScoreOptions(top_k=10_000), 10_000, 98),
    ],
)
def test_the_rows_of_a_part_follow_from_the_bytes_of_a_row(options, classes, rows):
    """A part of a large job has 16 MiB of scores and labels at most."""
    assert default_part_rows(50_000_000, row_bytes(options, names(classes))) == rows


@pytest.mark.parametrize("kind", ["csv", "jsonl", "npy", "parquet"])
@pytest.mark.parametrize("flags", [("--all-scores",), ("--top-k", "3")])
def test_a_wide_job_writes_the_same_text(sketchbatch, tmp_path, monkeypatch, kind, flags):
    """A job with many scores per row writes the same CSV, JSON lines and .npy as a job with few, also from shards.

    Only its parts and its Parquet file differ: the scores of a row are one list. With `--top-k` the list begins with
    the best class; with `--all-scores` it is in the order of the labels.
    """
    flags = ("--all-scores",) if kind == "npy" else flags
    drawings = np.random.default_rng(3).integers(1, 256, (300, 784), np.uint8)
    np.save(tmp_path / 'a "b".npy', drawings)
    key = '{"key_id": "%s", "drawing": [[[0, 255], [0, 255]]]}\n'
    (tmp_path / "c.ndjson").write_text(key % 7 + "{}\n" + key % 9 + '{"drawing": [[[0, 255], [0, 255]]]}\n')
    inputs = (tmp_path / 'a "b".npy', tmp_path / "c.ndjson")
    with stand_in_service(row_norm, labels=LABELS) as (address, _):

        def run(output, *more):
            words = ("score", *inputs, "--server", address, "--part-rows", "128", "--output", output, *flags, *more)
            finished = sketchbatch(*words)
            assert finished.code in (0, 3), finished.err

        run(tmp_path / f"narrow.{kind}")
        monkeypatch.setattr(plans, "MAX_SCORE_COLUMNS", 2)
        run(tmp_path / f"wide.{kind}")
        for number in range(2):
            run(tmp_path / f"shard.{kind}", "--shard", f"{number}/2")
        merged = sketchbatch(
            "merge", *tmp_path.glob(f"shard-*-of-00002.{kind}"), "--output", tmp_path / f"merged.{kind}"
        )
        assert merged.code == 3, merged.err
    wide = (tmp_path / f"wide.{kind}").read_bytes()
    assert (tmp_path / f"merged.{kind}").read_bytes() == wide
    if kind != "parquet":
        assert wide == (tmp_path / f"narrow.{kind}").read_bytes()
        return
    narrow, lists = parquet.read_table(tmp_path / "narrow.parquet"), parquet.read_table(tmp_path / "wide.parquet")
    for name in ("source", "row", "key_id", "label", "score"):
        assert lists[name] == narrow[name]
    ranks = ["", "_2", "_3"]
    columns = [f"score_{label}" for label in LABELS] if "--all-scores" in flags else [f"score{rank}" for rank in ranks]
    assert lists["scores"].to_pylist() == [list(row.values()) for row in narrow.select(columns).to_pylist()]
    if "--top-k" in flags:
        found = [list(row.values()) for row in narrow.select([f"label{rank}" for rank in ranks]).to_pylist()]
        assert lists["labels"].to_pylist() == found


def test_parquet_of_many_classes_has_few_columns(sketchbatch, tmp_path):
    """A Parquet output with a column for each of 10,000 classes would take 8 MB of memory per part until its end."""
    np.save(tmp_path / "d.npy", np.random.default_rng(3).integers(1, 256, (20, 784), np.uint8))
    with stand_in_service(partial(scores_of, 10_000), labels=names(10_000)) as (address, _):
        words = ("score", tmp_path / "d.npy", "--server", address, "--output", tmp_path / "o.parquet", "--all-scores")
        assert sketchbatch(*words).code == 0
    read = parquet.read_table(tmp_path / "o.parquet")
    assert read.schema.names == ["source", "row", "label", "score", "scores"]
    assert read.schema.field("scores").type == pa.list_(pa.field("element", pa.float32()), 10_000)


SCORE = """
from pathlib import Path
from sketchbatch_client.commands.app import app

try:
    app()
finally:
    print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
"""The command `sketchbatch`, which prints its peak memory in KiB; `wait4` would return that of the process of the test,
if that is larger."""


class Measured:
    """Run `sketchbatch score` with a service of its own, and measure the peak memory of both."""

    def __init__(self, start_service, folder: Path, classes: int) -> None:
        model = write_model(folder / "model.onnx", classes=classes, labels=names(classes))
        self._service = start_service(model, "--provider", "cpu")
        self._folder = folder
        self._labels = names(classes)

    def peaks_mib(self, rows: int, kind: str, options: ScoreOptions) -> tuple[float, float]:
        """Return the peak resident memory of the client and of the service, in MiB."""
        drawings = self._folder / "d.npy"
        np.save(drawings, np.random.default_rng(3).integers(0, 256, (rows, 784), np.uint8))
        flags = ["--all-scores"] if options.with_all_scores else ["--top-k", str(options.top_k)]
        flags += ["--part-rows", str(default_part_rows(50_000_000, row_bytes(options, self._labels)))]
        output = self._folder / f"o.{kind}"
        command = [sys.executable, "-c", SCORE, "score", drawings, "--output", output, "--quiet"]
        command += ["--server", self._service.address, *flags]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(finished.stdout) / 1024, held(self._service.process.pid)["peak_mib"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("classes", "rows"), [(345, 25_000), (10_000, 1500)])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "npy"])
@pytest.mark.parametrize("flag", ["all", "top_k"])
def test_memory_is_bounded_whatever_the_number_of_classes(start_service, tmp_path, classes, rows, kind, flag):
    """The client needs less than 400 MB and the service less than 512 MiB, with the parts of the largest job."""
    if kind == "npy" and flag == "top_k":
        pytest.skip("a .npy has all scores")
    options = ScoreOptions(with_all_scores=True) if flag == "all" else ScoreOptions(top_k=classes)
    client, service = Measured(start_service, tmp_path, classes).peaks_mib(rows, kind, options)
    assert client < 400
    assert service < 512
