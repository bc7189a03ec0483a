"""The kind of a model's scores is shown wherever a user sees scores that are no probabilities."""

import asyncio
import json

import numpy as np
import pytest
from demo_process import ROOF
from sketchbatch_client import AsyncClient, Client
from sketchbatch_client.demo.classification_api import ClassificationApi
from sketchbatch_client.demo.score_bars import score_bars
from sketchbatch_client.scoring.manifest import Manifest, manifest_path
from stand_in_service import stand_in_service

LOGITS = np.float32([-13.1, 2.5, 14.0])
KINDS = ("probabilities", "log-probabilities", "independent", "logits")


@pytest.fixture
def drawings(tmp_path):
    """Write 3,000 drawings without a blank one; return the path of the file."""
    np.save(tmp_path / "d.npy", np.random.default_rng(3).integers(1, 256, (3000, 784), np.uint8))
    return tmp_path / "d.npy"


@pytest.mark.parametrize("kind", ["", *KINDS, "a later kind"])
def test_model_shows_the_kind_of_the_scores(sketchbatch, kind):
    """`sketchbatch model` has a row for the kind, and JSON has a key; "" of an older service is unknown."""
    with stand_in_service(score_kind=kind) as (address, _):
        with Client(address) as client:
            assert client.model().score_kind == kind
        shown = sketchbatch("model", "--server", address).out
        rows = dict(line.strip().split(maxsplit=1) for line in shown.splitlines()[1:])
        assert rows["scores"].strip() == (kind or "unknown")
        assert json.loads(sketchbatch("model", "--server", address, "--json").out)[0]["score_kind"] == kind


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("", ""),
        ("probabilities", ""),
        ("logits", "the scores of m are logits: they do not sum to 1; `sketchbatch-train adapt` adds a softmax"),
        (
            "log-probabilities",
            "the scores of m are log-probabilities: they do not sum to 1; `sketchbatch-train adapt` adds a softmax",
        ),
        ("independent", "the scores of m are independent: each is from 0 to 1, and they do not sum to 1"),
    ],
)
@pytest.mark.parametrize("to_file", [True, False])
def test_score_announces_scores_that_are_no_probabilities(sketchbatch, drawings, tmp_path, kind, note, to_file):
    """`sketchbatch score` writes one line to stderr before it scores, and nothing for probabilities or --quiet."""
    output = tmp_path / "o.csv" if to_file else "-"
    with stand_in_service(score_kind=kind) as (address, _):
        words = ("score", drawings, "--server", address, "--output", output)
        finished = sketchbatch(*words)
        assert [line for line in finished.err.splitlines() if "the scores of" in line] == [note][: bool(note)]
        assert sketchbatch(*words, *(("--restart",) if to_file else ()), "--quiet").err == ""


def test_the_manifest_records_the_kind_and_merge_passes_it_on(sketchbatch, drawings, tmp_path):
    """The manifest of a job and of merged shards states the kind; a shard of an older service may lack it."""
    output = tmp_path / "o.csv"
    for shard, kind in ((0, ""), (1, "logits")):
        with stand_in_service(score_kind=kind) as (address, _):
            words = ("score", drawings, "--output", output, "--server", address, "--shard", f"{shard}/2")
            assert sketchbatch(*words).code == 0
    shards = sorted(tmp_path.glob("o-*.csv"))
    assert [Manifest.read(shard).plan.score_kind for shard in shards] == ["", "logits"]
    merged = sketchbatch("merge", *shards, "--output", tmp_path / "merged.csv")
    assert merged.code == 0, merged.err
    assert Manifest.read(tmp_path / "merged.csv").plan.score_kind == "logits"


def test_a_manifest_of_an_older_client_is_read(sketchbatch, drawings, tmp_path):
    """A manifest without a kind belongs to the same job: the finished output stays."""
    output = tmp_path / "o.csv"
    with stand_in_service(score_kind="logits") as (address, servicer):
        assert sketchbatch("score", drawings, "--output", output, "--server", address).code == 0
        stored = json.loads(manifest_path(output).read_text())
        assert stored["plan"].pop("score_kind") == "logits"
        manifest_path(output).write_text(json.dumps(stored))
        servicer.requests.clear()
        finished = sketchbatch("score", drawings, "--output", output, "--server", address)
    assert (finished.code, servicer.requests) == (0, [])
    assert "is already finished" in finished.err


@pytest.mark.parametrize(
    ("scores", "kind", "widths", "texts"),
    [
        ([0.75, 0.25, 0.0], "probabilities", [0.75, 0.25, 0], ["75.0 %", "25.0 %", "0.0 %"]),
        ([1.0000001, 0, 0], "probabilities", [1, 0, 0], ["100.0 %", "0.0 %", "0.0 %"]),
        ([0.9, 0.8, 0.1], "independent", [0.9, 0.8, 0.1], ["90.0 %", "80.0 %", "10.0 %"]),
        ([0.9, 0.8, 0.1], "", [0.9, 0.8, 0.1], ["90.0 %", "80.0 %", "10.0 %"]),
        (np.log([0.5, 0.25, 0.25]), "log-probabilities", [0.5, 0.25, 0.25], ["-0.69", "-1.39", "-1.39"]),
        ([0, np.log(2), np.log(5)], "logits", [0.125, 0.25, 0.625], ["0.00", "0.69", "1.61"]),
        (LOGITS, "", [0, 0, 1], ["-13.10", "2.50", "14.00"]),
        ([0.2, 0.2, 0.2], "logits", [1 / 3] * 3, ["0.20"] * 3),
        ([2000, -2000, 1000], "logits", [1, 0, 0], ["2000.00", "-2000.00", "1000.00"]),
    ],
)
def test_bars_have_a_width_from_0_to_1(scores, kind, widths, texts):
    """A bar is as wide as the probability that the score stands for; only shares are shown in percent."""
    found, shown = score_bars(np.float32(scores), kind)
    assert found == pytest.approx(widths, abs=2e-5)
    assert ((found >= 0) & (found <= 1)).all()
    assert shown == texts


@pytest.mark.parametrize("kind", ["", "logits"])
def test_the_demo_has_bars_for_logits(kind):
    """The response to the page has widths and texts, in the order of the best labels."""
    line = json.dumps({"drawing": ROOF}).encode()
    with stand_in_service(lambda rows: np.tile(LOGITS, (len(rows), 1)), score_kind=kind) as (address, _):
        answer = asyncio.run(ClassificationApi(lambda: AsyncClient(address)).classify(line))
    assert [label for label, _ in answer["top"]] == ["dog", "cat", "bear"]
    assert answer["score_kind"] == kind
    assert [text for _, text in answer["bars"]] == ["14.00", "2.50", "-13.10"]
    assert all(0 <= width <= 1 for width, _ in answer["bars"])
