"""Test the page of an evaluation, which the tests make from random scores and without a service."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sketchbatch_client.evaluation import Comparison, Evaluation, figures, open_labelled, write_page, write_plot
from sketchbatch_client.evaluation.accumulator import Accumulator, ScoredRows
from sketchbatch_client.evaluation.quality import MIN_RECOGNIZED_ROWS
from sketchbatch_client.evaluation.stats import intervals
from sketchbatch_client.evaluation.stats.intervals import Measured
from sketchbatch_client.evaluation.stats.mcnemar import pair
from sketchbatch_client.evaluation.training_digests import TrainedOn
from sketchbatch_client.rpc.classification import ModelInfo

pytestmark = pytest.mark.timeout(60)  # the first chart of a process takes seconds on a busy machine

LABELS = ("ant", "bee", "cow")
ROWS = 150


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch) -> None:
    """Shorten the bootstrap, because tests of the page do not check intervals."""
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


@pytest.fixture
def folder(tmp_path, noise) -> Path:
    """Write 150 random bitmaps for each of three labels, and a note on their origin that contains HTML."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    for label in LABELS:
        np.save(folder / f"{label}.npy", noise(ROWS).reshape(-1, 784))
    (folder / "SOURCE.txt").write_text("<b>noise</b> & more")
    return folder


def evaluation_of(folder: Path, recognized: int = 0, labels: tuple[str, ...] = LABELS) -> Evaluation:
    """Return an evaluation of random scores in which the first `recognized` drawings of each file were recognised."""
    drawings = open_labelled(folder, labels)
    accumulator = Accumulator(labels)
    flags = np.full(ROWS, -1, np.int8)
    if recognized:
        flags = (np.arange(ROWS) < recognized).astype(np.int8)
    for index, file in enumerate(drawings.bitmaps):
        scores = np.random.default_rng(index).dirichlet(np.ones(len(labels)), ROWS).astype(np.float32)
        accumulator.add(ScoredRows(file, 0, scores), flags)
    model = ModelInfo(
        name="tiny",
        version="1",
        versions=("1",),
        is_default=True,
        labels=labels,
        max_request_rows=100,
        provider="cpu",
        digest="0" * 64,
        metrics={"accuracy": 0.3, "rows": 900},
        created="",
        licence="",
    )
    return Evaluation(**vars(accumulator.quality()), model=model, server="host:1", drawings=drawings)


def text_of(page: Path) -> str:
    """Return the page's text without tags."""
    page_text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", page_text)


def test_the_page_is_one_file_with_all_figures(folder, tmp_path):
    """The page shows all figures and the 24 mistakes, and is a single file without scripts.

    The page loads no other file, and escapes HTML in the note on the origin of the drawings.
    """
    evaluation, path = evaluation_of(folder), tmp_path / "out" / "page.html"
    path.parent.mkdir()
    write_page(evaluation, path)
    page = path.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|<link|@import', page)
    assert "<script" not in page
    assert "&lt;b&gt;noise&lt;/b&gt; &amp; more" in page
    text = text_of(path)
    for measured in evaluation.figures.measured.values():
        assert f"{measured.value:.3f}" in text
        assert f"{measured.low:.3f} to {measured.high:.3f}" in text
    assert "How good is tiny version 1?" in text
    assert f"{evaluation.calibration.log_loss:.3f}" in text
    assert page.count('src="data:image/png') == len(evaluation.mistakes) == 24
    assert len(re.findall(r'<img[^>]* alt="[^"]+"', page)) == page.count("<img")
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(("recognized", "is_shown"), [(33, False), (34, True)])
def test_figures_of_few_recognised_drawings_are_left_out(folder, tmp_path, recognized, is_shown):
    """The page shows the figures of recognised drawings only for 100 or more; the evaluation itself always has them."""
    assert 3 * 33 < MIN_RECOGNIZED_ROWS <= 3 * 34
    evaluation = evaluation_of(folder, recognized)
    write_page(evaluation, tmp_path / "page.html")
    assert evaluation.recognized.recognized.rows == 3 * recognized
    assert ("recognised only" in text_of(tmp_path / "page.html")) == is_shown


def test_many_classes_are_shown_as_pixels_and_as_the_most_confused_classes(tmp_path, noise):
    """A confusion matrix of 50 classes is shown as a picture, and as counts of the most confused classes only.

    The table of classes shows 40 classes, and hides the other 10 until the reader opens them.
    """
    labels = tuple(f"class {index:02}" for index in range(50))
    for label in labels:
        np.save(tmp_path / f"{label}.npy", noise(ROWS).reshape(-1, 784))
    write_page(evaluation_of(tmp_path, labels=labels), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="overview"') == 1
    assert "The other 10 classes" in page


def test_a_comparison_shows_the_verdict_and_both_models(folder, tmp_path):
    """The page of a comparison shows the verdict, both models, and the counts from which McNemar's test is computed.

    If both models have the same name and version, the page adds the addresses of their servers.
    """
    first = evaluation_of(folder)
    measured = first.figures.measured | {"specificity": Measured(0.5, note="too few drawings")}
    second = replace(first, server="host:2", figures=replace(first.figures, measured=measured))
    paired = pair(np.array([[10, 60], [20, 360]]))
    write_page(Comparison(first=first, second=second, paired=paired), tmp_path / "page.html")
    text = text_of(tmp_path / "page.html")
    assert "tiny version 1 at host:2 classifies these drawings better than tiny version 1 at host:1." in text
    assert "tiny version 1 at host:1 correct 360 20 tiny version 1 at host:1 wrong 60 10" in text
    assert "recall of tiny version 1 at host:2" in text
    page = (tmp_path / "page.html").read_text()  # a sentence instead of an interval may take several lines
    assert '0.500 <small class="soft wrap">no interval: too few drawings</small>' in page


def test_a_comparison_names_the_labels_without_drawings(folder, tmp_path):
    """The means leave out labels without drawings, so the page and the picture say how many labels have drawings."""
    wide = evaluation_of(folder)
    trained_on = TrainedOn(450, 450, 42)
    wide = replace(wide, labels=(*wide.labels, "dog"), confusion=np.pad(wide.confusion, (0, 1)), trained_on=trained_on)
    result = Comparison(
        first=evaluation_of(folder), second=replace(wide, server="host:2"), paired=pair(np.eye(2, dtype=int))
    )
    write_page(result, tmp_path / "page.html")
    text = text_of(tmp_path / "page.html")
    assert "tiny version 1 at host:2 3 of 4 " in text
    assert "tiny version 1 at host:2 has 4 labels (1 without drawings here): each model may predict" in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "svg.fonttype", "none")
        write_plot(result, tmp_path / "a.svg", "svg")
    assert (
        f"tiny version 1 at host:2 on {wide.figures.rows} drawings of 3 of its 4 labels"
        in (tmp_path / "a.svg").read_text()
    )
    assert str(trained_on) in (tmp_path / "a.svg").read_text()


def test_a_model_without_softmax_has_no_calibration(folder, tmp_path):
    """The page of a model without softmax states why it has no calibration."""
    write_page(replace(evaluation_of(folder), calibration=None), tmp_path / "page.html")
    assert "lacks a softmax" in text_of(tmp_path / "page.html")


@pytest.mark.parametrize("models", [1, 2])
def test_a_plot_has_bars_with_intervals_and_the_confusion_matrix(folder, tmp_path, models):
    """The picture of one or two models has the value of each metric, and the confusion matrix of each model."""
    result = evaluation_of(folder)
    if models == 2:
        result = Comparison(first=result, second=replace(result, server="host:2"), paired=pair(np.full((2, 2), 9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "svg.fonttype", "none")  # writes text that the test can read
        write_plot(result, tmp_path / "a.svg", "svg")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "a.svg").read_text())
    first = result.first if models == 2 else result
    for measured in first.figures.measured.values():
        assert texts.count(f"{measured.value:.3f}") >= models
    for text in ("Accuracy", "Specificity", "ant", "bee", "cow", str(first.confusion[0, 1])):
        assert text in "\n".join(texts)
    assert sum("confusion matrix" in text for text in texts) == models
    write_plot(result, tmp_path / "a.png", "png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


def test_a_plot_names_metrics_that_are_not_defined(tmp_path, noise):
    """For drawings of one class, the picture has the reason in the place of the bar of the specificity."""
    np.save(tmp_path / "ant.npy", noise(ROWS).reshape(-1, 784))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "svg.fonttype", "none")
        write_plot(evaluation_of(tmp_path), tmp_path / "a.svg", "svg")
    assert "not defined: no drawing of another class" in (tmp_path / "a.svg").read_text()


def test_matplotlib_is_imported_only_for_a_page():
    """Importing the evaluation package does not import matplotlib, which would take half a second.

    Every command imports the evaluation package, but only `write_page` needs matplotlib.
    """
    command = "import sys, sketchbatch_client.cli, sketchbatch_client.evaluation; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
