"""Test the command `evaluate` and its library with a running service.

The tests evaluate one model or compare two models, on bitmaps, strokes and pictures.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished import Finished
from onnx_models import LABELS, write_model
from PIL import Image
from sketchbatch_client import Client
from sketchbatch_client.commands import evaluate as evaluate_command
from sketchbatch_client.commands import options
from sketchbatch_client.errors import FileRefused, RequestRefused
from sketchbatch_client.evaluation import (
    ServedModel,
    as_json,
    common_labels,
    compare,
    evaluate,
    open_labelled,
    write_page,
)
from sketchbatch_client.evaluation.stats.mcnemar import mcnemar
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

OTHER_LABELS = ("bee", "yak", "ant", "fox")
STORED = {"accuracy": 0.99, "rows": 200, "variant": "float32"}


@pytest.fixture(scope="module")
def others(start_service, tmp_path_factory) -> str:
    """Start a second service, which accepts at most 7 rows per request and serves three models.

    The model `other` has two labels in common with the tiny model. The model `sea` has no label in common with the tiny
    model. The model `raw` is the tiny model without its softmax.
    """
    folder = tmp_path_factory.mktemp("models")
    metadata = {"sketchbatch.metrics": json.dumps(STORED)}
    write_model(folder / "other" / "1" / "model.onnx", labels=OTHER_LABELS, classes=4, metadata=metadata)
    write_model(folder / "sea" / "1" / "model.onnx", labels=("eel", "cod", "ray"))
    graph = onnx.load(write_model(folder / "raw" / "1" / "model.onnx", metadata=metadata))
    softmax = graph.graph.node[-1]
    assert softmax.op_type == "Softmax"
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    onnx.save(graph, folder / "raw" / "1" / "model.onnx")
    service = start_service(folder, "--default-model", "other", "--max-request-rows", "7")
    return service.address


@pytest.fixture(scope="module")
def folder(tiny_service, tmp_path_factory) -> Path:
    """Write 400 random bitmaps to one file per label, mostly with the label that the tiny model predicts.

    Every fifth bitmap has a label that does not depend on the prediction, so that the model makes mistakes. Three of
    the bitmaps are also in a file of the label `zebra`, which the model does not know.
    """
    path = tmp_path_factory.mktemp("labelled")
    bitmaps = np.random.default_rng(1).integers(0, 256, (400, 28, 28), np.uint8)
    with Client(tiny_service.address) as client:
        predicted = client.classify(bitmaps).class_index[:, 0]
    predicted[::5] = np.arange(80) % 3
    for index, label in enumerate(LABELS):
        np.save(path / f"{label}.npy", bitmaps[predicted == index].reshape(-1, 784))
    np.save(path / "zebra.npy", bitmaps[:3])
    (path / "SOURCE.txt").write_text("<b>noise</b> & more")
    return path


@pytest.fixture(scope="module")
def scored(tiny_service, folder):
    """Return the tiny model's scores for the drawings of `folder`, and their true classes.

    The fixture uses only `Client`, so that the expected values do not depend on the evaluation code under test.
    """
    bitmaps = [np.load(folder / f"{label}.npy").reshape(-1, 28, 28) for label in LABELS]
    with Client(tiny_service.address) as client:
        scores = client.classify(np.concatenate(bitmaps)).scores
    return scores, np.repeat(np.arange(3), list(map(len, bitmaps)))


@pytest.fixture
def evaluating(sketchbatch, tiny_service) -> Callable[..., Finished]:
    """Return a function that runs `sketchbatch evaluate` in this process against the tiny service."""
    return lambda *arguments: sketchbatch("evaluate", *arguments, "--server", tiny_service.address)


def drawing(*, recognized: bool, place: int = 0) -> str:
    """Return a line of a simplified file with one drawing; each `place` gives another stroke."""
    return json.dumps({"word": "ant", "recognized": recognized, "drawing": [[[place, 255], [0, 255 - place]]]})


def test_figures_agree_with_scikit_learn_and_have_intervals(evaluating, folder, scored, tmp_path):
    """Each figure is equal to the figure that scikit-learn computes from the same scores, and lies in its interval."""
    finished = evaluating(folder, "--json", tmp_path / "m.json")
    assert finished.code == 3, finished.err
    found = json.loads((tmp_path / "m.json").read_text())
    scores, true = scored
    predicted = scores.argmax(axis=1)
    assert found["confusion"] == confusion_matrix(true, predicted).tolist()
    assert found["accuracy"] == accuracy_score(true, predicted)
    exact = scores.astype(np.float64) / scores.sum(axis=1, keepdims=True, dtype=np.float64)
    assert found["calibration"]["log_loss"] == pytest.approx(log_loss(true, exact), rel=1e-5)
    assert found["calibration"]["mean_confidence"] == pytest.approx(scores.max(axis=1).mean(), rel=1e-6)
    assert sum(each["rows"] for each in found["calibration"]["reliability"]) == found["rows"] == 400
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high
        assert f"{found[name]:.4f}   {low:.4f} to {high:.4f}" in finished.out
    assert len(found["intervals"]) == 5
    bee = found["per_class"]["bee"]
    assert bee["predicted"] == (predicted == 1).sum()
    for kind in ("recall", "precision"):
        low, high = bee[f"{kind}_interval"]
        assert low < bee[kind] <= high
    assert found["top_3"] == 1
    assert (found["recognized"], found["drift"]["metrics"]) == (None, {})
    most = found["most_confused"][0]
    assert most["rows"] == (np.array(found["confusion"]) - np.diag(np.diagonal(found["confusion"]))).max()


@pytest.mark.parametrize("flag", ["--html", "--png", "--svg"])
def test_a_chart_without_matplotlib_is_refused_before_the_evaluation(evaluating, folder, tmp_path, monkeypatch, flag):
    """Without matplotlib, an option that needs charts ends the command in one line, before drawings are sent."""
    monkeypatch.setattr(evaluate_command, "find_spec", lambda name: None)
    finished = evaluating(folder, flag, tmp_path / "report")
    assert finished.code == 4
    assert finished.out == ""
    checkout = f".tools/bin/uv pip install --python {sys.executable} matplotlib"
    way = f"pip install 'sketchbatch-client[charts]', or in a checkout {checkout}"
    assert finished.err == f"sketchbatch: {flag} needs matplotlib: {way}\n"
    assert not (tmp_path / "report").exists()
    assert evaluating(folder, "--json", tmp_path / "m.json").code == 3


@pytest.mark.parametrize("rows", [1, 20])
def test_one_class_classified_correctly_is_no_certainty(evaluating, folder, scored, tmp_path, rows):
    """For drawings of one class, all classified correctly, each output says what is not defined and why.

    No interval promises certainty, and classes without drawings are neither listed nor in the means.
    """
    scores, true = scored
    ants = np.load(folder / "ant.npy")[scores[true == 0].argmax(axis=1) == 0]
    np.save(tmp_path / "ant.npy", ants[:rows])
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "png", "svg")}
    finished = evaluating(tmp_path, *(each for name, path in files.items() for each in (f"--{name}", path)))
    assert finished.code == 0, finished.err
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in files["svg"].read_bytes()
    found = json.loads(files["json"].read_text())
    assert (found["accuracy"], found["jaccard"]) == (1, 1)
    assert (found["specificity"], found["matthews_corrcoef"]) == (None, None)
    assert found["not_defined"] == dict.fromkeys(("specificity", "matthews_corrcoef"), "no drawing of another class")
    assert set(found["no_interval"]) == {"balanced_accuracy", "jaccard"}
    assert found["intervals"]["accuracy"][0] < found["intervals"]["accuracy"][1] == 1
    assert found["classes_without_drawings"] == 2
    assert (found["per_class"]["bee"]["recall"], found["per_class"]["bee"]["recall_interval"]) == (None, None)
    assert found["per_class"]["bee"]["not_defined"]["recall"] == "no drawing of the class"
    assert "specificity        not defined: no drawing of another class\n" in finished.out
    assert "2 of 3 classes have no drawings here: the means over classes leave them out" in finished.out
    page = files["html"].read_text()
    assert "<b>\u2013</b><span>Specificity</span>" in page
    for text in (finished.out, page):
        assert "bee" not in text
        assert "1.000 to 1.000" not in text
        assert "1.0000 to 1.0000" not in text


def test_mistakes_are_listed_by_score_with_source_and_row(tiny_service, folder, scored):
    """The 24 mistakes with the highest scores are listed, the highest score first.

    A mistake is a drawing with an incorrect prediction. Source and row of a mistake identify the drawing.
    """
    with Client(tiny_service.address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(folder, LABELS))
    scores, true = scored
    wrong = np.flatnonzero(scores.argmax(axis=1) != true)
    highest = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:24]
    mistakes = as_json(evaluation)["surest_mistakes"]
    assert len(wrong) > 24
    first_rows = np.searchsorted(true, np.arange(3))
    assert [(each["source"], each["row"], each["label"], each["predicted"]) for each in mistakes] == [
        (str(folder / f"{LABELS[true[row]]}.npy"), row - first_rows[true[row]], LABELS[true[row]], LABELS[predicted])
        for row, predicted in zip(highest, scores[highest].argmax(axis=1), strict=True)
    ]
    assert [each["score"] for each in mistakes] == pytest.approx(scores[highest].max(axis=1).tolist(), rel=1e-5)


def test_two_models_are_compared_on_their_common_labels(evaluating, others, folder, scored, tmp_path):
    """`evaluate --against-server` compares two models on the drawings whose labels both models know.

    Each model predicts the best of all its own labels. The two services may allow different numbers of rows per
    request.
    """
    flags = ["--against-server", others, "--against-model", "other", "--against-version", "1"]
    finished = evaluating(folder, *flags, "--json", tmp_path / "m.json")
    assert finished.code == 3, finished.err
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["passed_over"] == ["cow", "zebra"]
    assert "skipped the drawings of 2 labels that not both models know: " in finished.err
    assert "; --ignore-others accepts this\n" in finished.err
    scores, true = scored
    right = scores[true < 2].argmax(axis=1) == true[true < 2]
    bitmaps = np.concatenate([np.load(folder / f"{label}.npy") for label in ("ant", "bee")])
    with Client(others) as client:
        predicted = client.classify(bitmaps).label
    other_right = predicted == np.array(LABELS)[true[true < 2]]
    assert found["rows"] == found["against"]["rows"] == len(right)
    assert (found["accuracy"], found["against"]["accuracy"]) == (right.mean(), other_right.mean())
    assert found["against"]["labels"] == list(OTHER_LABELS)
    assert (found["server"], found["against"]["server"]) != (others, found["server"])
    comparison = found["comparison"]
    assert comparison["both_right"] == (right & other_right).sum()
    assert comparison["only_first_right"] == (right & ~other_right).sum()
    assert comparison["only_second_right"] == (~right & other_right).sum()
    assert comparison["both_wrong"] == (~right & ~other_right).sum()
    assert comparison["accuracy_difference"] == pytest.approx(right.mean() - other_right.mean())
    assert comparison["p_value"] == mcnemar(comparison["only_first_right"], comparison["only_second_right"]) < 0.05
    assert "tiny version 1 classifies these drawings better than other version 1." in finished.out


def test_a_model_does_not_differ_from_itself(tiny_service, folder):
    """A comparison of a model with itself has the p value 1; its two names contain the server's address."""
    with Client(tiny_service.address) as client:
        served = ServedModel(client, client.model())
        comparison = compare(served, served, open_labelled(folder, LABELS))
    assert (comparison.paired.only_first, comparison.paired.only_second, comparison.paired.p_value) == (0, 0, 1)
    assert [name for name, _ in comparison.named] == [f"tiny version 1 at {tiny_service.address}"] * 2
    assert as_json(comparison)["against"]["confusion"] == as_json(comparison)["confusion"]
    name = comparison.named[0][0]
    assert comparison.paired.verdict(name, name) == f"{name} was compared with itself."
    assert comparison.paired.verdict("a 1", "b 1") == "a 1 and b 1 are right about the same drawings."
    assert comparison.cautions[0].startswith(f"These drawings may be training drawings of {name}: the model file has ")
    assert len(comparison.cautions) == 1


def test_drawings_of_labels_that_a_model_does_not_know_are_refused(tiny_service, folder):
    """Drawings that were opened with the labels of another model have an error that names these labels."""
    with Client(tiny_service.address) as client:
        model = replace(client.model(), labels=LABELS[:2])
        with pytest.raises(RequestRefused, match=rf"must have labels of tiny, got '?{LABELS[2]}"):
            evaluate(client, model, open_labelled(folder, LABELS))


def test_a_picture_whose_name_is_not_utf_8_is_reported(evaluating, tmp_path):
    """The JSON and the page of an evaluation have such a name with escapes."""
    folder = tmp_path / "in" / LABELS[0]
    folder.mkdir(parents=True)
    Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(folder / "a.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe4.png")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe5.png")).write_bytes((folder / "a.png").read_bytes())
    reports = ["--json", tmp_path / "m.json", "--html", tmp_path / "m.html"]
    finished = evaluating(tmp_path / "in", "--skip-malformed", *reports)
    assert finished.code == 0, finished.err
    [first] = json.loads((tmp_path / "m.json").read_bytes())["malformed"]["first"]
    assert first.startswith(f"{folder}/\udce4.png: expected a picture")


def test_a_narrow_window_cuts_no_figure(evaluating, folder, monkeypatch):
    """The table of the classes has all labels and figures, also in a file, which has no width."""
    monkeypatch.setattr(options.out, "width", 20)
    printed = evaluating(folder, "--ignore-others").out
    assert "true \\ predicted" in printed
    assert "…" not in printed


def test_a_malformed_row_of_parquet_has_one_number(evaluating, tmp_path):
    """Rows count from 0 in the error, in the list of skipped rows, and in the rejects of `score`."""
    rows = [np.zeros(784, np.uint8).tobytes()] * 3 + [None]
    pq.write_table(pa.table({"bitmap": rows}), tmp_path / f"{LABELS[0]}.parquet")
    assert f"{LABELS[0]}.parquet: row 3: expected a drawing, got nothing" in evaluating(tmp_path).err
    skipped = evaluating(tmp_path, "--skip-malformed", "--json", tmp_path / "m.json")
    assert f"{LABELS[0]}.parquet: row 3: expected a drawing, got nothing" in skipped.err
    [first] = json.loads((tmp_path / "m.json").read_bytes())["malformed"]["first"]
    assert first == f"{tmp_path}/{LABELS[0]}.parquet: row 3: expected a drawing, got nothing"


def test_a_comparison_of_models_with_other_numbers_of_labels_says_so(evaluating, others, folder):
    """More labels make the task harder, so the result names both numbers."""
    finished = evaluating(folder, "--against-server", others, "--against-model", "other", "--ignore-others")
    assert finished.code == 0, finished.err
    printed = " ".join(finished.out.split())
    assert (
        "tiny version 1 has 3 labels (1 without drawings here), "
        "other version 1 has 4 labels (2 without drawings here): each model may predict"
    ) in printed
    assert "These drawings may be training drawings of tiny version 1 or other version 1: the model file" in printed


def test_models_without_a_common_label_are_refused(others):
    """Two models without a common label are refused with a message that names the two models."""
    with Client(others) as client, pytest.raises(RequestRefused, match="other and sea have no label in common"):
        common_labels(client.model("other"), client.model("sea"))


def test_measured_figures_are_compared_with_stored_figures(sketchbatch, others, folder, tmp_path):
    """`evaluate` compares the measured accuracy with the accuracy that is stored in the model file.

    The stored accuracy of this model is 99 %, and chance cannot explain the difference from the measured accuracy. If
    the measured accuracy is below --min-accuracy, the command ends with exit code 1.
    """
    arguments = ["evaluate", folder, "--server", others, "--json", tmp_path / "m.json", "--min-accuracy", "0.9"]
    finished = sketchbatch(*arguments)
    assert finished.code == 1
    assert "accuracy of other version 1 must be at least 0.9, got 0." in finished.err
    assert "stored in the model, of 200 drawings:" in finished.out
    assert f"{'accuracy':<18} 0.9900   outside the interval, beyond chance" in finished.out
    drift = json.loads((tmp_path / "m.json").read_text())["drift"]
    assert (drift["stored_rows"], list(drift["metrics"])) == (200, ["accuracy"])
    assert drift["metrics"]["accuracy"]["is_within_interval"] is False
    printed = re.search(r"accuracy +(0\.\d+)", finished.out)[1]
    stored = json.loads((tmp_path / "m.json").read_text())["accuracy"]
    for same in (printed, stored):
        assert sketchbatch(*arguments[:-1], same).code == 3  # files of unknown labels were not read
    assert sketchbatch(*arguments[:-1], f"{float(printed) + 0.0001:.4f}").code == 1


def test_recognised_drawings_have_their_own_figures(tiny_service, tmp_path):
    """An evaluation has separate figures for the drawings that are flagged as recognised.

    The flags come from files of strokes. For row i of numpy_bitmap/, the flag is in line i of the file in simplified/.
    """
    lines = [drawing(recognized=place % 3 > 0, place=place) for place in range(30)]
    (tmp_path / "ant.ndjson").write_text("\n".join(lines) + "\n")
    layout = tmp_path / "layout"
    (layout / "simplified").mkdir(parents=True)
    (layout / "numpy_bitmap").mkdir()
    (layout / "simplified" / "ant.ndjson").write_text("\n".join(lines[:12]))
    with Client(tiny_service.address) as client:
        drawings = open_labelled(tmp_path, LABELS)
        bitmaps = drawings.bitmaps[tmp_path / "ant.ndjson"][:]
        np.save(layout / "numpy_bitmap" / "ant.npy", bitmaps)
        right = client.classify(bitmaps).class_index[:, 0] == 0
        from_strokes = as_json(evaluate(client, client.model(), drawings))["recognized"]
        from_layout = as_json(evaluate(client, client.model(), open_labelled(layout, LABELS)))
    is_recognized = np.arange(30) % 3 > 0
    assert (from_strokes["rows"], from_strokes["all_known"]["rows"]) == (20, 30)
    assert from_strokes["accuracy"] == right[is_recognized].mean()
    assert (from_layout["rows"], from_layout["recognized"]["all_known"]["rows"]) == (30, 12)
    assert from_layout["recognized"]["accuracy"] == right[:12][is_recognized[:12]].mean()


@pytest.mark.parametrize("flags", [{}, {"recognized": True}])
def test_recognised_figures_are_absent_without_flags_and_if_all_drawings_were_recognised(tiny_service, tmp_path, flags):
    """If no drawing has a flag, or if all drawings are recognised, there are no separate figures."""
    (tmp_path / "ant.ndjson").write_text(json.dumps({"drawing": [[[0, 255], [0, 255]]]} | flags) + "\n")
    with Client(tiny_service.address) as client:
        assert evaluate(client, client.model(), open_labelled(tmp_path, LABELS)).recognized is None


def test_malformed_drawings_are_refused_or_skipped(evaluating, tiny_service, tmp_path):
    """A malformed drawing ends the evaluation with an error that names the file and the line.

    With --skip-malformed, the command skips malformed drawings, and reports their number on stderr and in the JSON.
    """
    good = drawing(recognized=True)
    for label in ("ant", "bee"):
        (tmp_path / f"{label}.ndjson").write_text(f'{good}\n{{"drawing": []}}\n{good}\n')
    with Client(tiny_service.address) as client, pytest.raises(FileRefused, match=r"ant.ndjson:2: a drawing must have"):
        evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
    finished = evaluating(tmp_path, "--skip-malformed", "--json", tmp_path / "m.json")
    assert finished.code == 0, finished.err
    assert "skipped 2 malformed drawings" in finished.err
    assert "ant.ndjson:2: a drawing must have at least one stroke" in finished.err
    found = json.loads((tmp_path / "m.json").read_text())
    assert (found["rows"], found["malformed"]["left_out"], len(found["malformed"]["first"])) == (4, 2, 2)
    assert {each["row"] for each in found["surest_mistakes"]} == {0, 2}  # rows are numbered with the skipped line


@pytest.mark.parametrize("place", [0, 1])
def test_a_malformed_line_of_the_simplified_file_is_refused_or_unknown(tiny_service, tmp_path, place):
    """If a line of a simplified file is malformed, its bitmap has no recognised flag, and the evaluation is refused.

    With `skip_malformed`, the bitmap is evaluated, but does not count among the drawings with a flag.
    """
    for folder in ("simplified", "numpy_bitmap"):
        (tmp_path / folder).mkdir()
    lines = [drawing(recognized=False), drawing(recognized=True)]
    lines.insert(place, "x")
    (tmp_path / "simplified" / "ant.ndjson").write_text("\n".join(lines))
    np.save(tmp_path / "numpy_bitmap" / "ant.npy", np.zeros((3, 784), np.uint8))
    with Client(tiny_service.address) as client:
        with pytest.raises(FileRefused, match=rf"simplified/ant.ndjson:{place + 1}: "):
            evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
        drawings = open_labelled(tmp_path, LABELS, skip_malformed=True)
        recognized = evaluate(client, client.model(), drawings).recognized
    assert (recognized.known.rows, recognized.recognized.rows) == (2, 1)


@pytest.mark.parametrize("flag", ["yes", None])
def test_a_flag_that_is_missing_or_cannot_be_read_is_unknown(tiny_service, tmp_path, flag):
    """A line whose flag is no boolean is scored, and is left out of the figures of recognised drawings."""
    lines = [drawing(recognized=False), drawing(recognized=True, place=9), drawing(recognized=flag, place=99)]
    (tmp_path / "ant.ndjson").write_text("\n".join(lines))
    with Client(tiny_service.address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
    assert evaluation.figures.rows == 3
    assert (evaluation.recognized.known.rows, evaluation.recognized.recognized.rows) == (2, 1)


@pytest.mark.parametrize(("flag", "name"), [("--png", "o.jpg"), ("--svg", "o.png")])
def test_a_picture_whose_ending_is_of_another_format_is_refused(evaluating, folder, tmp_path, flag, name):
    """`--png out.jpg` would write a PNG file that programs take for a JPEG; nothing is written."""
    finished = evaluating(folder, flag, tmp_path / name)
    assert finished.code == 2
    assert f"must end with .{flag[2:]}, got" in " ".join(finished.err.split())
    assert not [*tmp_path.iterdir()]


def test_pictures_are_evaluated(tiny_service, tmp_path):
    """Folders of pictures can be evaluated; the source of a mistake is then the file of its picture."""
    for label in LABELS:
        (tmp_path / label).mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(tmp_path / label / name)
    with Client(tiny_service.address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
    write_page(evaluation, tmp_path / "page.html")
    mistakes = as_json(evaluation)["surest_mistakes"]
    assert len(mistakes) == 4  # all pictures are equal, so one of the three labels is correct
    assert {Path(each["source"]).name for each in mistakes} == {"a.png", "b.png"}
    assert {each["row"] for each in mistakes} == {0}


def test_a_model_without_softmax_has_figures_but_no_calibration(sketchbatch, others, folder, tmp_path):
    """Without softmax, the highest score is the prediction, and each output states that calibration is unknown."""
    flags = ["evaluate", folder, "--server", others, "--model", "raw", "--html", tmp_path / "p.html"]
    finished = sketchbatch(*flags, "--json", tmp_path / "m.json")
    assert finished.code == 3, finished.err
    assert "calibration unknown" in finished.out
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["calibration"] is None
    assert found["accuracy"] > 0.7
    assert "lacks a softmax" in (tmp_path / "p.html").read_text()
    assert found["drift"]["metrics"]
