"""The report: one page on any number of exported runs."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset, write_bitmaps, write_source
from sketchbatch_trainer.errors import RunIncomplete
from sketchbatch_trainer.export.held_out import onnx_scores
from sketchbatch_trainer.report.reporting import write_report
from sketchbatch_trainer.run import Run, Variant
from sketchbatch_trainer.synthetic import LABELS, SOURCE, draw
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # TensorFlow's and Keras's own
]


class Silent:
    """A listener that prints nothing."""

    def on_start(self, *_):
        """Silent."""

    on_step = on_epoch = on_start


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """Ours, with a float16 variant, and the article's, of one epoch each, on the same sketches."""
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
        train(TrainingRequest(dataset=dataset, recipe=replace(recipe, max_epochs=1), seed=0), run, Silent())
        export(run)
        made.append(run)
    export_variant(made[0], Variant.FLOAT16)
    return made


def words(page: str) -> str:
    """The page's text, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_runs_stand_side_by_side_on_one_page(runs, tmp_path):
    """Each model file, variants too, with metrics and cost; one page that needs nothing beside it."""
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    text = words(page)
    for title in ("bear-cat-dog, compact float16", "bear-cat-dog, article"):
        assert title in text
    assert "were not judged on the same drawings" not in text
    assert "Synthetic sketches." in text
    assert "MFLOP a row" in text
    article = text[text.index("synthetic-bear-cat-dog, article") :]
    assert article.startswith("synthetic-bear-cat-dog, article 24.0 1,207,4")  # MFLOP, parameters


@pytest.mark.slow
def test_a_report_without_scores_from_the_service_computes_them(runs, tmp_path):
    """And says which of the two it shows; scores of other drawings are not taken for this run's."""
    run = runs[0]
    page = tmp_path / "page.html"
    write_report([run], page)
    assert "scored by ONNX Runtime" in words(page.read_text())
    labels = list(LABELS)
    with run.scores.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["source", "row", "label", "score", *(f"score_{label}" for label in labels)])
        for label in labels:
            for row in range(len(read_bitmaps(run.test / f"{label}.npy"))):
                lines.writerow([run.test / f"{label}.npy", row, label, 1, *(float(label == each) for each in labels)])
    write_report([run], page)
    text = words(page.read_text())
    assert "scored over gRPC by the running service" in text
    assert "1.000 Accuracy" in text  # what the file says, not what the model would
    for other in ("source,row,label,score\nother.npy,0,bear,1\n", "source,row,score_bear\nbear.npy,0,1\n"):
        run.scores.write_text(other)
        write_report([run], page)
        assert "scored by ONNX Runtime" in words(page.read_text())
    run.scores.unlink()


def test_recognised_drawings_are_judged_by_themselves(runs, tmp_path):
    """Where the flag is known, beside the figures of all."""
    import onnx

    run = runs[0]
    bears = read_bitmaps(run.test / "bear.npy")
    scores = onnx_scores(onnx.load(run.onnx), bears)
    right = scores.argmax(axis=1) == 0
    flags = np.where(right, 1, 0)
    flags[0] = 1  # at least one
    lines = ["label,row,is_recognized", *(f"bear,{row},{flag}" for row, flag in enumerate(flags))]
    before = run.recognized.read_text()
    assert before.splitlines() == ["label,row,is_recognized"]  # of sketches nothing is known
    run.recognized.write_text("\n".join(lines) + "\n")
    write_report([run], tmp_path / "page.html")
    run.recognized.write_text(before)
    text = words((tmp_path / "page.html").read_text())
    assert f"Of {len(bears)} of these drawings it is known whether the game recognised them" in text
    assert f"on all of those accuracy is {right.mean():.3f}" in text
    assert f"on the {flags.sum()} that it recognised {right.sum() / flags.sum():.3f}" in text


def test_models_of_other_drawings_are_not_compared(runs, tmp_path):
    """Side by side, but with a warning."""
    other = Run(tmp_path / "other")
    other.folder.mkdir()
    for path in (runs[1].onnx, runs[1].history):
        (other.folder / path.name).write_bytes(path.read_bytes())
    (other.folder / "test").symlink_to(runs[1].test)
    other.write_config(runs[1].read_config() | {"data_digest": "0" * 64})
    write_report([runs[0], other], tmp_path / "page.html")
    assert "were not judged on the same drawings" in words((tmp_path / "page.html").read_text())


def test_a_run_that_was_not_exported_says_what_to_run_first(runs, tmp_path):
    """The message is the command; no page is left."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.write_config(runs[0].read_config())
    with pytest.raises(RunIncomplete, match="first run: sketchbatch-train export"):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
