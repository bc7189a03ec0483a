"""Drawings whose highest score is below a stored threshold are rejected by clients, never by the service."""

import csv
import io
import json
import shutil
from dataclasses import asdict

import grpc
import numpy as np
import pytest
from demo_process import ROOF
from onnx_models import LABELS, write_model
from pyarrow import parquet
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch.rejection import KEY, Rejection, RejectionThreshold, decode, encode
from sketchbatch_client import Client
from sketchbatch_client.evaluation.stats.rejection import risk_coverage
from sketchbatch_client.scoring import plan as plan_module
from sketchbatch_client.scoring.manifest import Manifest
from sketchbatch_client.scoring.parts import Parts

STORED = Rejection(
    rows=900,
    unknown_rows=500,
    auroc=0.875,
    thresholds=(
        RejectionThreshold(coverage=0.95, score=0.375, accuracy=0.75, unknown_rejected=0.25),
        RejectionThreshold(coverage=0.5, score=0.4375, accuracy=0.9375, unknown_rejected=0.5),
    ),
)

METRICS = {"sketchbatch.metrics": '{"rows": 18489, "accuracy": 0.87494}'}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write a repository of one model whose file stores thresholds, and one whose file stores none."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "able" / "1" / "model.onnx", scale=0.0001, metadata={KEY: encode(STORED), **METRICS})
    write_model(folder / "plain" / "1" / "model.onnx", scale=0.0001)
    return folder


@pytest.fixture(scope="module")
def service(start_service, models):
    """Serve both models."""
    return start_service(models, "--default-model", "able")


def test_the_thresholds_of_a_model_file_reach_the_client(service):
    """GetModel and ListModels return every digit of the thresholds; a file without thresholds has none."""
    with Client(service.address) as client:
        assert client.model().rejection == STORED
        assert [each.rejection for each in client.models()] == [STORED, None]
        assert client.model("plain").rejection is None
    with grpc.insecure_channel(service.address) as channel:
        config = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelConfig",
            open_inference_pb2.ModelConfigRequest.SerializeToString,
            open_inference_pb2.ModelConfigResponse.FromString,
        )
        able, plain = (
            config(open_inference_pb2.ModelConfigRequest(name=name)).config.parameters for name in ("able", "plain")
        )
        assert decode(able["rejection"].string_value) == STORED
        assert "rejection" not in plain


def test_model_shows_the_thresholds(sketchbatch, service):
    """`sketchbatch model` lists the AUROC and each threshold with its effect, and nothing for a model without them."""
    shown = sketchbatch("model", "--server", service.address).out
    able, plain = shown.split("plain version 1")
    rows = [" ".join(line.split()) for line in able.splitlines()]
    assert {"rows 18,489", "accuracy 0.8749"} <= set(rows)
    assert "unknown drawings AUROC 0.875" in rows
    assert "coverage 0.95 score 0.375: accuracy 0.75, unknown rejected 0.25" in rows
    assert "AUROC" not in plain


ROWS = 600


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Write 600 drawings; return the path of the file."""
    path = tmp_path_factory.mktemp("drawings") / "d.npy"
    np.save(path, np.random.default_rng(3).integers(1, 256, (ROWS, 784), np.uint8))
    return path


@pytest.fixture(scope="module")
def expected(service, drawings):
    """Return the label and the score of each drawing, and whether its score reaches the threshold of 0.95."""
    with Client(service.address) as client:
        result = client.classify(np.load(drawings), top_k=1)
    is_kept = result.score[:, 0].astype(float) >= 0.375
    assert 50 < is_kept.sum() < ROWS - 50
    return result.label.tolist(), result.score[:, 0], is_kept


@pytest.fixture
def score(sketchbatch, service, drawings):
    """Return a function that scores the drawings with `sketchbatch score`."""
    return lambda *words: sketchbatch("score", drawings, "--server", service.address, *words)


def read(path):
    """Return the rows of an output as dictionaries of columns."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("extra", [[], ["--top-k", "2"], ["--all-scores"]])
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_row_below_the_threshold_has_an_empty_label(score, expected, tmp_path, monkeypatch, kind, extra, is_wide):
    """Only the column label differs from an output without --reject; its text is empty, and never missing."""
    monkeypatch.setattr(plan_module, "MAX_SCORE_COLUMNS", 1 if is_wide else 1000)
    all_labelled, output = tmp_path / f"all.{kind}", tmp_path / f"o.{kind}"
    assert score("--output", all_labelled, *extra).code == 0
    done = score("--output", output, "--reject", "0.95", *extra)
    labels, _, is_kept = expected
    rejected = int((~is_kept).sum())
    assert done.code == 0, done.err
    assert f"{rejected} rows with an empty label: below the threshold of --reject 0.95" in done.err
    rows = read(output)
    assert [row["label"] for row in rows] == [
        label if kept else "" for label, kept in zip(labels, is_kept, strict=True)
    ]
    assert [row | {"label": label} for row, label in zip(rows, labels, strict=True)] == read(all_labelled)
    manifest = Manifest.read(output)
    assert (manifest.unlabelled, manifest.rows, manifest.rejected) == (rejected, ROWS, 0)
    assert (manifest.plan.reject, manifest.plan.reject_below) == (0.95, 0.375)
    assert Manifest.read(all_labelled).unlabelled == 0


def test_a_stream_has_empty_labels_too(score, expected):
    """Standard output has the same rows, and stderr their number unless --quiet is given."""
    done = score("--output", "-", "--reject", "0.5")
    labels = [row["label"] for row in csv.DictReader(io.StringIO(done.out))]
    is_kept = expected[1].astype(float) >= 0.4375
    assert labels == [label if kept else "" for label, kept in zip(expected[0], is_kept, strict=True)]
    assert f"{labels.count('')} rows with an empty label: below the threshold of --reject 0.5" in done.err
    assert score("--output", "-", "--reject", "0.5", "--quiet").err == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--reject", "0.9"], 4, "--reject must be one of the model's coverages 0.95, 0.5, got 0.9"),
        (["--reject", "0"], 4, "--reject must be one of the model's coverages 0.95, 0.5, got 0"),
        (
            ["--reject", "0.95", "--model", "plain"],
            4,
            "--reject: the file of plain version 1 has no thresholds; filter the output on its column score",
        ),
        (["--reject", "0.95", "--format", "npy"], 2, "needs an output with labels: .parquet, .csv or .jsonl"),
        (["--reject", "1.5"], 2, "--reject"),
        (["--reject", "nan"], 2, "--reject"),
    ],
)
def test_a_threshold_that_does_not_exist_is_refused(score, tmp_path, words, code, message):
    """One line names the stored coverages, or what to do with a model without thresholds; no output is written."""
    done = score("--output", tmp_path / "o.csv", *words)
    assert done.code == code
    assert message in " ".join(done.err.replace("\u2502", " ").split())
    assert code == 2 or done.err.count("\n") == 1
    assert list(tmp_path.glob("o.csv*")) == [] or not (tmp_path / "o.csv").exists()


def test_a_job_keeps_its_threshold(score, service, sketchbatch, drawings, tmp_path):
    """A finished job and an interrupted one are refused with another --reject; the message names both thresholds."""
    output = tmp_path / "o.csv"
    assert score("--output", output, "--reject", "0.95").code == 0
    again = score("--output", output, "--reject", "0.95")
    assert again.code == 0
    assert "already finished: 600 rows from 1 input, scored by able version 1; use --restart" in again.err
    before = output.read_bytes()
    for words, now in (([], "not given"), (["--reject", "0.5"], "0.5 (score 0.4375)")):
        refused = score("--output", output, *words)
        assert refused.code == 4
        assert f"--reject was 0.95 (score 0.375), and is now {now}" in refused.err
    assert output.read_bytes() == before


def test_an_interrupted_job_resumes_with_its_threshold(score, expected, tmp_path, monkeypatch):
    """The rows of finished parts are counted, too, and the output is that of an uninterrupted run."""
    whole, output = tmp_path / "whole.csv", tmp_path / "o.csv"
    words = ["--reject", "0.95", "--part-rows", "100"]
    assert score("--output", whole, *words).code == 0
    save, saved = Parts.save, []

    def save_some(parts, part):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(part.number)
        save(parts, part)

    monkeypatch.setattr(Parts, "save", save_some)
    assert score("--output", output, *words).code == 130
    monkeypatch.undo()
    assert not output.exists()
    refused = score("--output", output, "--part-rows", "100")
    assert (refused.code, "--reject was 0.95 (score 0.375), and is now not given" in refused.err) == (4, True)
    assert score("--output", output, *words).code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert Manifest.read(output).unlabelled == Manifest.read(whole).unlabelled == (~expected[2]).sum()


def test_shards_share_one_threshold(score, expected, sketchbatch, tmp_path):
    """Merged shards are the output of one process, with its number of empty labels; other thresholds do not merge."""
    whole, output = tmp_path / "whole.csv", tmp_path / "o.csv"
    words = ["--reject", "0.95", "--part-rows", "100"]
    assert score("--output", whole, *words).code == 0
    assert score("--output", output, "--shard", "0/2", *words).code == 0
    refused = score("--output", output, "--shard", "1/2", "--reject", "0.5", "--part-rows", "100")
    assert (refused.code, "--reject was 0.95 (score 0.375)" in refused.err) == (4, True)
    other = tmp_path / "other.csv"
    assert score("--output", other, "--shard", "1/2", "--part-rows", "100").code == 0
    first = next(tmp_path.glob("o-00000*.csv"))
    unlike = sketchbatch("merge", first, next(tmp_path.glob("other-*.csv")), "--output", output)
    assert (unlike.code, "--reject was 0.95 (score 0.375), and is now not given" in unlike.err) == (4, True)
    assert score("--output", output, "--shard", "1/2", *words).code == 0
    assert sketchbatch("merge", *tmp_path.glob("o-*.csv"), "--output", output).code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert Manifest.read(output).unlabelled == (~expected[2]).sum()


def test_added_rows_have_the_threshold_of_the_first_run(sketchbatch, start_service, models, drawings, tmp_path):
    """--append counts the empty labels of all runs, and refuses another --reject and a file with other thresholds."""
    own, inputs, output = tmp_path / "models", tmp_path / "in", tmp_path / "o.csv"
    shutil.copytree(models / "able", own / "able")
    service = start_service(own)
    inputs.mkdir()
    bitmaps = np.load(drawings)

    def append(address, *words):
        return sketchbatch("score", inputs, "--server", address, "--output", output, "--append", *words)

    for name, rows in (("a.npy", bitmaps[:200]), ("b.npy", bitmaps[200:500])):
        np.save(inputs / name, rows)
        done = append(service.address, "--reject", "0.95")
        assert done.code == 0, done.err
    labels = [row["label"] for row in read(output)]
    assert f"{labels[200:].count('')} rows with an empty label" in done.err
    assert (len(labels), Manifest.read(output).unlabelled) == (500, labels.count(""))
    assert {"", "ant", "cow"} <= set(labels)
    np.save(inputs / "c.npy", bitmaps[500:])
    refused = append(service.address, "--reject", "0.5")
    assert refused.code == 4
    assert "--reject was 0.95 (score 0.375), and is now 0.5 (score 0.4375)" in refused.err
    lower = RejectionThreshold(coverage=0.95, score=0.25, accuracy=0.5, unknown_rejected=0.0)
    other = Rejection(rows=9, unknown_rows=9, auroc=0.5, thresholds=(lower,))
    changed = tmp_path / "changed" / "able" / "1" / "model.onnx"
    write_model(changed, scale=0.0001, metadata={KEY: encode(other)})
    refused = append(start_service(changed.parents[2]).address, "--reject", "0.95")
    assert (refused.code, "the model was able version 1" in refused.err) == (4, True)
    assert len(read(output)) == 500


def test_a_threshold_is_compared_with_all_of_its_digits(sketchbatch, start_service, drawings, expected, tmp_path):
    """A score below the threshold is rejected even if both round to the same float32, by `score` and `evaluate`."""
    best = float(expected[1][0])
    above = RejectionThreshold(coverage=0.95, score=float(np.nextafter(best, 1)), accuracy=0.5, unknown_rejected=0.5)
    assert np.float32(above.score) == np.float32(best)
    metadata = {KEY: encode(Rejection(rows=9, unknown_rows=9, auroc=0.5, thresholds=(above,)))}
    service = start_service(write_model(tmp_path / "model.onnx", scale=0.0001, metadata=metadata))
    folder, output = tmp_path / "in", tmp_path / "o.csv"
    folder.mkdir()
    np.save(folder / "ant.npy", np.load(drawings)[:1])
    words = [folder, "--server", service.address]
    assert sketchbatch("score", *words, "--output", output, "--reject", "0.95").code == 0
    assert [row["label"] for row in read(output)] == [""]
    assert sketchbatch("evaluate", *words, "--json", tmp_path / "m.json").code == 0
    found = json.loads((tmp_path / "m.json").read_text())["risk_coverage"]["thresholds"]
    assert [each["coverage"] for each in found] == [0.0]


def test_evaluate_measures_accuracy_against_coverage(sketchbatch, service, drawings, tmp_path):
    """Terminal, JSON file and page have the curve, and the stored thresholds with what they do to these drawings."""
    bitmaps, folder = np.load(drawings), tmp_path / "in"
    folder.mkdir()
    for index, label in enumerate(LABELS):
        np.save(folder / f"{label}.npy", bitmaps[200 * index : 200 * (index + 1)])
    with Client(service.address) as client:
        result = client.classify(bitmaps, top_k=1)
    best, is_correct = result.score[:, 0].astype(float), result.label == np.repeat(LABELS, 200)
    files = ["--json", tmp_path / "m.json", "--html", tmp_path / "p.html"]
    shown = sketchbatch("evaluate", folder, "--server", service.address, *files)
    assert shown.code == 0, shown.err
    found = json.loads((tmp_path / "m.json").read_text())["risk_coverage"]
    for threshold, stored in zip(found["thresholds"], STORED.thresholds, strict=True):
        is_kept = best >= stored.score
        assert threshold["coverage"] == is_kept.mean()
        assert threshold["accuracy"] == is_correct[is_kept].mean()
        assert threshold["stored"] == asdict(stored)
    assert 20 < len(found["points"]) <= 100
    for point in found["points"]:
        is_kept = best >= point["score"]
        assert point["coverage"] == pytest.approx(is_kept.mean())
        assert point["accuracy"] == pytest.approx(is_correct[is_kept].mean())
    assert found["points"][-1]["accuracy"] == is_correct.mean()
    assert found["area"] == pytest.approx(risk_coverage(best, is_correct).area, abs=0.005)
    lines = " ".join(shown.out.split())
    near = min(found["points"], key=lambda point: abs(point["coverage"] - 0.95))
    assert f"coverage {near['coverage']:.2f}: accuracy {near['accuracy']:.4f};" in lines
    kept = (best >= 0.375).mean(), (best >= 0.4375).mean()
    assert f"coverage of the thresholds of the model here: 0.95: {kept[0]:.4f}; 0.5: {kept[1]:.4f}" in lines
    page = (tmp_path / "p.html").read_text()
    assert "The dots are the rejection thresholds" in page
    assert f'<td class="n">0.375</td><td class="n">{kept[0]:.3f}</td>' in page
    plain = sketchbatch("evaluate", folder, "--server", service.address, "--model", "plain", *files)
    assert (plain.code, "thresholds of the model" in plain.out) == (0, False)
    assert json.loads((tmp_path / "m.json").read_text())["risk_coverage"] == {**found, "thresholds": []}
    assert "The model file has no rejection thresholds." in (tmp_path / "p.html").read_text()


def test_a_threshold_that_keeps_no_drawing_has_no_accuracy(sketchbatch, start_service, drawings, tmp_path):
    """The accuracy is null in the JSON file and a dash on the page; each model of a comparison has its own."""
    no_drawing = RejectionThreshold(coverage=0.5, score=2.0, accuracy=1.0, unknown_rejected=1.0)
    thresholds = (*STORED.thresholds[:1], no_drawing)
    metadata = {KEY: encode(Rejection(rows=9, unknown_rows=9, auroc=0.5, thresholds=thresholds))}
    for name, own in (("first", None), ("second", metadata)):
        write_model(tmp_path / "models" / name / "1" / "model.onnx", metadata=own)
    service, folder = start_service(tmp_path / "models", "--default-model", "first"), tmp_path / "in"
    folder.mkdir()
    np.save(folder / "ant.npy", np.load(drawings)[:50])
    files = ["--json", tmp_path / "m.json", "--html", tmp_path / "p.html"]
    both = sketchbatch("evaluate", folder, "--server", service.address, "--against-model", "second", *files)
    assert both.code == 0, both.err
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["risk_coverage"]["thresholds"] == []
    assert [each["accuracy"] is None for each in found["against"]["risk_coverage"]["thresholds"]] == [False, True]
    alone = sketchbatch("evaluate", folder, "--server", service.address, "--model", "second", *files)
    assert alone.code == 0, alone.err
    assert (
        '<td class="n">1.000</td><td class="n">\N{EN DASH}</td><td class="n">1.000</td>'
        in (tmp_path / "p.html").read_text()
    )


@pytest.mark.parametrize(
    ("threshold", "coverage", "is_unknown"), [(1.0, 0.95, True), (0.0, 0.95, False), (1.0, 0.5, False)]
)
def test_the_page_to_draw_on_knows_unknown_drawings(
    start_demo, start_service, tmp_path, threshold, coverage, is_unknown
):
    """A response says whether the highest score is below the threshold for 95 %; without it, no drawing is unknown."""
    stored = RejectionThreshold(coverage=coverage, score=threshold, accuracy=0.5, unknown_rejected=0.5)
    metadata = {KEY: encode(Rejection(rows=9, unknown_rows=9, auroc=0.5, thresholds=(stored,)))}
    service = start_service(write_model(tmp_path / "model.onnx", metadata=metadata))
    assert start_demo(service.address).classify(ROOF)[1]["is_unknown"] is is_unknown
