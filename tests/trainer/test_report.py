"""Test the report page of one or more exported runs; a run is the folder of one training."""

import base64
import csv
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from eager_tensorflow import without_graphs
from sketchbatch.rejection import KEY, Rejection, RejectionThreshold, encode
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_client.evaluation import quality
from sketchbatch_client.evaluation.training_digests import TrainedOn, decoded, digest_each
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset, write_bitmaps, write_source
from sketchbatch_trainer.errors import RunIncomplete
from sketchbatch_trainer.export.held_out import HeldOut, onnx_scores
from sketchbatch_trainer.report.learning_curves import has_split
from sketchbatch_trainer.report.reporting import _correct, write_report
from sketchbatch_trainer.run import Run, Variant
from sketchbatch_trainer.synthetic import LABELS, SOURCE, draw
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]


class Silent:
    """Receive the progress of a training and print nothing."""

    def on_start(self, *_):
        """Ignore the call."""

    on_step = on_epoch = on_start


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """Train the recipes `compact` and `article` for one epoch each on the same sketches, and export both runs.

    The run of the recipe `compact` also has a float16 variant.
    """
    from sketchbatch_trainer.export.exporting import export
    from sketchbatch_trainer.export.variants import export_variant
    from sketchbatch_trainer.train.training import TrainingRequest, train

    folder = tmp_path_factory.mktemp("runs")
    for label in LABELS:
        write_bitmaps(folder / "sketches" / f"{label}.npy", draw(label, 90, seed=0))
    write_source(folder / "sketches", SOURCE)
    dataset = read_dataset(DatasetRequest(folder=folder / "sketches", labels=LABELS))
    made = []
    for recipe in (COMPACT, ARTICLE):
        run = Run(folder / recipe.name)
        with without_graphs():
            train(TrainingRequest(dataset=dataset, recipe=replace(recipe, max_epochs=1), seed=0), run, Silent())
        export(run)
        made.append(run)
    export_variant(made[0], Variant.FLOAT16)
    return made


def test_each_variant_has_the_digests_of_the_training_drawings(runs):
    """The model file and its variant store the digests of the training split; no held-out drawing is among them."""
    for path in (runs[0].onnx, runs[0].exported(Variant.FLOAT16)):
        stored = {each.key: each.value for each in onnx.load(path).metadata_props}
        sample = decoded(base64.b64decode(stored["sketchbatch.training_digests"]))
        rows = runs[0].read_config()["rows"]["train"]
        assert rows / 2 < len(sample) <= rows + 1
        assert TrainedOn().add(digest_each(read_bitmaps(runs[0].calibration)[:]), sample).share == 1
        for label in LABELS:
            held_out = digest_each(read_bitmaps(runs[0].test / f"{label}.npy")[:])
            assert TrainedOn().add(held_out, sample).share == 0


def words(page: str) -> str:
    """Return the page's text without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_runs_are_compared_on_one_page(runs, tmp_path):
    """The page of two runs shows the metrics and the cost of each model file, including the variants.

    The page loads no other file.
    """
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    text = words(page)
    for title in ("bear-cat-dog, compact float16", "bear-cat-dog, article"):
        assert title in text
    assert "were not evaluated on the same drawings" not in text
    assert "recognised only" not in text  # these sketches have no flags
    assert "Synthetic sketches." in text
    assert "MFLOP per row" in text
    rows = runs[0].read_config()["rows"]["test"]
    assert f"The test curve has {rows} of {rows} test drawings. Nothing is chosen by it: the kept weights" in text
    assert "the kept weights are those of the last epoch" in text
    assert 'alt="accuracy by epoch, for training, validation and test drawings"' in page
    assert len(re.findall(r'<img[^>]* alt="[^"]+"', page)) == page.count("<img")
    article = text[text.index("synthetic-bear-cat-dog, article") :]
    assert article.startswith("synthetic-bear-cat-dog, article 24.0 1,207,4")  # MFLOP, parameters


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ((30, 2, 0, 5), {"0": 17, "1": 2, "3": 5}),  # class 2 has no correct drawing, and the first one has many
        ((1,) * 50, {str(index): 1 for index in np.linspace(0, 49, 24).astype(int)}),
    ],
)
def test_correct_drawings_are_of_as_many_classes_as_possible(rows, shown):
    """The page shows 24 of them: in turn one of each class."""
    class_index = np.repeat(np.arange(len(rows)), rows)
    held_out = HeldOut(np.zeros((len(class_index), 28, 28), np.uint8), class_index, len(rows))
    own = SimpleNamespace(
        quality=SimpleNamespace(labels=[str(index) for index in range(len(rows))]),
        scores=np.eye(len(rows))[class_index],
        held_out=held_out,
    )
    assert Counter(each["label"] for each in _correct(own)) == shown


def test_runs_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    """Two trainings of one recipe and the same classes have one name; the folders follow it in the tables."""
    other = Run(shutil.copytree(runs[1].folder, tmp_path / "second"))
    write_report([runs[1], other], tmp_path / "page.html")
    text = words((tmp_path / "page.html").read_text())
    for run in (runs[1], other):
        assert text.count(f"synthetic-bear-cat-dog, article ({run.folder})") == 2  # costs, metrics
    other.write_config(other.read_config() | {"hold_out": "1/5"})
    graph = onnx.load(other.onnx)
    onnx.helper.set_model_props(
        graph,
        {each.key: each.value for each in graph.metadata_props}
        | {"sketchbatch.config": json.dumps(other.read_config())},
    )
    onnx.save(graph, other.onnx)
    write_report([runs[1], other], tmp_path / "page.html")
    assert "were not evaluated on the same drawings" in (tmp_path / "page.html").read_text()  # but held out others


def test_a_run_of_an_older_version_has_no_test_curve(runs, tmp_path):
    """If the history of a run has no metrics of the test drawings, or only NaN, the page has two curves."""
    run = Run(shutil.copytree(runs[1].folder, tmp_path / "run"))
    with run.history.open(newline="") as file:
        (epoch,) = csv.DictReader(file)
    without = {name: value for name, value in epoch.items() if not name.startswith("test_")}
    run.history.write_text(",".join(without) + "\n" + ",".join(without.values()) + "\n")
    write_report([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "test curve" not in page
    assert 'alt="loss by epoch, for training and validation drawings"' in page
    assert not has_split({"test_loss": [np.nan, np.nan]}, "test")
    assert has_split({"test_loss": [np.nan, 0.5]}, "test")  # a new version resumed the training


def test_the_page_has_the_thresholds_of_the_model_file(runs, tmp_path):
    """If the model file stores rejection thresholds, the page shows each next to its effect on the test drawings."""
    run = Run(shutil.copytree(runs[1].folder, tmp_path / "run"))
    write_report([run], tmp_path / "without.html")
    assert "The model file has no rejection thresholds." in (tmp_path / "without.html").read_text()
    stored = RejectionThreshold(coverage=0.9, score=0.001, accuracy=0.625, unknown_rejected=0.375)
    graph = onnx.load(run.onnx)
    graph.metadata_props.add(key=KEY, value=encode(Rejection(rows=9, unknown_rows=9, auroc=0.5, thresholds=(stored,))))
    onnx.save(graph, run.onnx)
    write_report([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "The dots are the rejection thresholds of the model file" in page
    row = ">".join(re.findall(r">([\d.]+)(?=</td>)", page[page.index('<td class="n">0.900</td>') :]))
    assert re.match(r"0.900>0.001>1.000>0.625>[\d.]+>0.375", row)


@pytest.mark.slow
def test_scores_of_the_service_are_used_if_they_are_complete(runs, tmp_path):
    """If the run has a complete file of scores from the service, the page uses these scores.

    Otherwise the page uses scores that ONNX Runtime computes. In both cases, the page states the origin of the scores.
    """
    run = runs[0]
    page = tmp_path / "page.html"
    write_report([run], page)
    assert "computed by ONNX Runtime" in words(page.read_text())
    labels = list(LABELS)
    with run.scores.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["source", "row", "label", "score", *(f"score_{label}" for label in labels)])
        for label in labels:
            for row in range(len(read_bitmaps(run.test / f"{label}.npy"))):
                lines.writerow([run.test / f"{label}.npy", row, label, 1, *(float(label == each) for each in labels)])
    write_report([run], page)
    text = words(page.read_text())
    assert "computed by the running service over gRPC" in text
    assert "1.000 Accuracy" in text  # the accuracy of the scores in the file
    for other in ("source,row,label,score\nother.npy,0,bear,1\n", "source,row,score_bear\nbear.npy,0,1\n"):
        run.scores.write_text(other)
        write_report([run], page)
        assert "computed by ONNX Runtime" in words(page.read_text())
    run.scores.unlink()


@pytest.mark.slow
def test_recognised_drawings_have_their_own_figures(runs, tmp_path, monkeypatch):
    """If the run has enough recognised drawings, the page has separate figures for them.

    The page then also has figures for all drawings with a flag, recognised or not.
    """
    run = runs[0]
    bears = read_bitmaps(run.test / "bear.npy")[:]
    scores = onnx_scores(onnx.load(run.onnx), bears)
    right = scores.argmax(axis=1) == 0
    flags = np.where(right, 1, 0)
    flags[0] = 1  # at least one drawing is recognised
    lines = ["label,row,is_recognized", *(f"bear,{row},{flag}" for row, flag in enumerate(flags))]
    before = run.recognized.read_text()
    assert before.splitlines() == ["label,row,is_recognized"]  # sketches have no flags
    run.recognized.write_text("\n".join(lines) + "\n")
    text = []
    for minimum in (flags.sum() + 1, flags.sum()):
        monkeypatch.setattr(quality, "MIN_RECOGNIZED_ROWS", minimum)
        write_report([run], tmp_path / "page.html")
        text.append(words((tmp_path / "page.html").read_text()))
    run.recognized.write_text(before)
    assert "recognised only" not in text[0]
    assert f"all with a recognised flag {len(bears)} {right.mean():.3f}" in text[1]
    assert f"recognised only {flags.sum()} {right.sum() / flags.sum():.3f}" in text[1]


def test_models_of_different_drawings_have_a_warning(runs, tmp_path):
    """If two models were evaluated on different drawings, the page has a warning that says so."""
    other = Run(tmp_path / "other")
    other.folder.mkdir()
    other.history.write_bytes(runs[1].history.read_bytes())
    (other.folder / "test").symlink_to(runs[1].test)
    other.write_config(runs[1].read_config() | {"data_digest": "0" * 64})
    import onnx

    graph = onnx.load(runs[1].onnx)
    config = next(each for each in graph.metadata_props if each.key == "sketchbatch.config")
    config.value = other.config.read_text()
    onnx.save(graph, other.onnx)
    write_report([runs[0], other], tmp_path / "page.html")
    assert "were not evaluated on the same drawings" in words((tmp_path / "page.html").read_text())


def test_a_run_without_an_exported_model_is_refused(runs, tmp_path):
    """For a run without an exported model, no page is written, and the error names the command to run first."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.write_config(runs[0].read_config())
    with pytest.raises(RunIncomplete, match="first run: sketchbatch-train export"):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
