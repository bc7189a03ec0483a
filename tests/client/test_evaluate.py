"""The verb evaluate, and the library behind it: one model, two side by side, strokes, pages."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import LABELS, write_model
from PIL import Image
from sketchbatch_client import Client
from sketchbatch_client.errors import FileRefused, RequestRefused
from sketchbatch_client.evaluation import (
    Served,
    as_json,
    common_labels,
    compare,
    evaluate,
    open_labelled,
    write_json,
    write_page,
)
from sketchbatch_client.evaluation.stats.mcnemar import mcnemar
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

OTHER_LABELS = ("bee", "yak", "ant", "fox")
STORED = {"accuracy": 0.99, "rows": 200, "variant": "float32"}


@pytest.fixture(scope="module")
def others(start_service, tmp_path_factory) -> str:
    """A second service, of small requests.

    Its `other` knows two of the tiny model's labels and two more, `raw` lacks its softmax, `sea` knows other labels.
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
    """Random bitmaps named after what the tiny model sees in them, but every fifth; and some of a fourth label."""
    path = tmp_path_factory.mktemp("labelled")
    bitmaps = np.random.default_rng(1).integers(0, 256, (400, 28, 28), np.uint8)
    with Client(tiny_service.address) as client:
        said = client.classify(bitmaps).class_index[:, 0]
    said[::5] = np.arange(80) % 3
    for index, label in enumerate(LABELS):
        np.save(path / f"{label}.npy", bitmaps[said == index].reshape(-1, 784))
    np.save(path / "zebra.npy", bitmaps[:3])
    (path / "SOURCE.txt").write_text("<b>noise</b> & more")
    return path


@pytest.fixture(scope="module")
def scored(tiny_service, folder):
    """The tiny model's scores of that folder, true classes and file rows, taken by themselves."""
    bitmaps = [np.load(folder / f"{label}.npy").reshape(-1, 28, 28) for label in LABELS]
    with Client(tiny_service.address) as client:
        scores = client.classify(np.concatenate(bitmaps)).scores
    return scores, np.repeat(np.arange(3), list(map(len, bitmaps)))


@pytest.fixture
def sketchbatch(run_command, tiny_service):
    """Runs `sketchbatch evaluate` against the tiny service."""
    return lambda *arguments: run_command("sketchbatch", "evaluate", *arguments, "--server", tiny_service.address)


def drawing(*, recognized: bool, place: int = 0) -> str:
    """A simplified line."""
    return json.dumps({"word": "ant", "recognized": recognized, "drawing": [[[place, 255], [0, 255 - place]]]})


def words(page: str) -> str:
    """The page's text, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_evaluate_says_how_sure_its_figures_are(sketchbatch, folder, scored, tmp_path):
    """Every figure as scikit-learn has it from the same scores, with an interval around it."""
    finished = sketchbatch(folder, "--json", tmp_path / "m.json")
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "m.json").read_text())
    scores, true = scored
    said = scores.argmax(axis=1)
    assert found["confusion"] == confusion_matrix(true, said).tolist()
    assert found["accuracy"] == accuracy_score(true, said)
    exact = scores.astype(np.float64) / scores.sum(axis=1, keepdims=True, dtype=np.float64)
    assert found["calibration"]["log_loss"] == pytest.approx(log_loss(true, exact), rel=1e-5)
    assert found["calibration"]["mean_confidence"] == pytest.approx(scores.max(axis=1).mean(), rel=1e-6)
    assert sum(each["rows"] for each in found["calibration"]["reliability"]) == found["rows"] == 400
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high
        assert f"{found[name]:.4f}   {low:.4f} to {high:.4f}" in finished.stdout
    assert len(found["intervals"]) == 5
    bee = found["per_class"]["bee"]
    assert bee["predicted"] == (said == 1).sum()
    for kind in ("recall", "precision"):
        low, high = bee[f"{kind}_interval"]
        assert low < bee[kind] <= high
    assert found["top_3"] == 1
    assert (found["recognized"], found["drift"]["metrics"]) == (None, {})
    most = found["most_confused"][0]
    assert most["rows"] == (np.array(found["confusion"]) - np.diag(np.diagonal(found["confusion"]))).max()


def test_the_surest_mistakes_are_named_with_their_places(tiny_service, folder, scored):
    """At most 24, surest first; source and row say which drawing it is."""
    with Client(tiny_service.address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(folder, LABELS))
    scores, true = scored
    wrong = np.flatnonzero(scores.argmax(axis=1) != true)
    surest = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:24]
    mistakes = as_json(evaluation)["surest_mistakes"]
    assert len(wrong) > 24
    first_rows = np.searchsorted(true, np.arange(3))
    assert [(each["source"], each["row"], each["label"], each["predicted"]) for each in mistakes] == [
        (str(folder / f"{LABELS[true[row]]}.npy"), row - first_rows[true[row]], LABELS[true[row]], LABELS[said])
        for row, said in zip(surest, scores[surest].argmax(axis=1), strict=True)
    ]
    assert [each["score"] for each in mistakes] == pytest.approx(scores[surest].max(axis=1).tolist(), rel=1e-5)


def test_two_models_are_judged_on_the_drawings_whose_label_both_know(sketchbatch, others, folder, scored, tmp_path):
    """Each by what scores highest among its own labels, also where the requests of one are smaller."""
    flags = ["--against-server", others, "--against-model", "other", "--against-version", "1"]
    finished = sketchbatch(folder, *flags, "--json", tmp_path / "m.json", "--html", tmp_path / "page.html")
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["passed_over"] == ["cow", "zebra"]
    assert "skipped 2 files whose label not both models know" in finished.stderr
    scores, true = scored
    right = scores[true < 2].argmax(axis=1) == true[true < 2]
    bitmaps = np.concatenate([np.load(folder / f"{label}.npy") for label in ("ant", "bee")])
    with Client(others) as client:
        said = client.classify(bitmaps).label
    other_right = said == np.array(LABELS)[true[true < 2]]
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
    verdict = "tiny version 1 names these drawings better than other version 1."
    assert verdict in finished.stdout
    assert verdict in words((tmp_path / "page.html").read_text())


def test_a_model_against_itself_differs_in_nothing(tiny_service, folder):
    """Told apart by where they are served; the test has nothing to say."""
    with Client(tiny_service.address) as client:
        served = Served(client, client.model())
        comparison = compare(served, served, open_labelled(folder, LABELS))
    assert (comparison.paired.only_first, comparison.paired.only_second, comparison.paired.p_value) == (0, 0, 1)
    assert [name for name, _ in comparison.beside] == [f"tiny version 1 at {tiny_service.address}"] * 2
    assert as_json(comparison)["against"]["confusion"] == as_json(comparison)["confusion"]


def test_models_without_a_label_in_common_are_not_compared(others):
    """There is nothing to compare them on, and that is said with both names."""
    with Client(others) as client, pytest.raises(RequestRefused, match="other and sea have no label in common"):
        common_labels(client.model("other"), client.model("sea"))


def test_the_figures_stored_in_a_model_stand_beside_those_measured(run_command, others, folder, tmp_path):
    """A model that promises 99 % and does not keep it; --min-accuracy makes that an exit code, with the reason."""
    words = ["evaluate", folder, "--server", others, "--json", tmp_path / "m.json", "--min-accuracy", "0.9"]
    finished = run_command("sketchbatch", *words)
    assert finished.returncode == 1
    assert "accuracy must be at least 0.9, got 0." in finished.stderr
    assert "stored in the model, of 200 drawings:" in finished.stdout
    assert f"{'accuracy':<18} 0.9900   outside the interval, beyond chance" in finished.stdout
    drift = json.loads((tmp_path / "m.json").read_text())["drift"]
    assert (drift["stored_rows"], list(drift["metrics"])) == (200, ["accuracy"])
    assert drift["metrics"]["accuracy"]["is_within_interval"] is False


def test_recognised_drawings_are_judged_by_themselves(tiny_service, tmp_path):
    """Where strokes tell; of bitmaps in Google's layout, row i is line i of simplified/."""
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


def test_strokes_that_were_all_recognised_need_no_second_figure(tiny_service, tmp_path):
    """As those of other people's are, which carry no flag."""
    (tmp_path / "ant.ndjson").write_text(json.dumps({"drawing": [[[0, 255], [0, 255]]]}) + "\n")
    with Client(tiny_service.address) as client:
        assert evaluate(client, client.model(), open_labelled(tmp_path, LABELS)).recognized is None


def test_malformed_drawings_end_it_or_are_left_out_and_counted(sketchbatch, tiny_service, tmp_path):
    """Refused with file and line; with --skip-malformed said, and counted in the JSON."""
    good = drawing(recognized=True)
    for label in ("ant", "bee"):
        (tmp_path / f"{label}.ndjson").write_text(f"{good}\n{{}}\n{good}\n")
    with Client(tiny_service.address) as client, pytest.raises(FileRefused, match=r"ant.ndjson:2: drawing must be"):
        evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
    finished = sketchbatch(tmp_path, "--skip-malformed", "--json", tmp_path / "m.json")
    assert finished.returncode == 0, finished.stderr
    assert "skipped 2 malformed drawings" in finished.stderr
    assert "ant.ndjson:2: drawing must be a list of strokes" in finished.stderr
    found = json.loads((tmp_path / "m.json").read_text())
    assert (found["rows"], found["malformed"]["left_out"], len(found["malformed"]["first"])) == (4, 2, 2)
    assert {each["row"] for each in found["surest_mistakes"]} == {0, 2}  # of the file, as if nothing had been left out


def test_a_malformed_line_beside_the_bitmaps_is_found_too(tiny_service, tmp_path):
    """Its flag is asked for; left out, it is not known."""
    for place in ("simplified", "numpy_bitmap"):
        (tmp_path / place).mkdir()
    (tmp_path / "simplified" / "ant.ndjson").write_text(f"{drawing(recognized=False)}\nx\n{drawing(recognized=True)}\n")
    np.save(tmp_path / "numpy_bitmap" / "ant.npy", np.zeros((3, 784), np.uint8))
    with Client(tiny_service.address) as client:
        with pytest.raises(FileRefused, match=r"simplified/ant.ndjson:2: "):
            evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
        drawings = open_labelled(tmp_path, LABELS, skip_malformed=True)
        recognized = evaluate(client, client.model(), drawings).recognized
    assert (recognized.known.rows, recognized.recognized.rows) == (2, 1)


def test_the_page_is_one_file_that_shows_it_all(tiny_service, folder, tmp_path):
    """Nothing beside it, no script; the figures, the source as text, and the surest mistakes as pictures."""
    with Client(tiny_service.address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(folder, LABELS))
    write_page(evaluation, tmp_path / "page.html")
    write_json(evaluation, tmp_path / "m.json")
    page = (tmp_path / "page.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "&lt;b&gt;noise&lt;/b&gt; &amp; more" in page
    text = words(page)
    for measured in evaluation.figures.measured.values():
        assert f"{measured.value:.3f}" in text
        assert f"{measured.low:.3f} to {measured.high:.3f}" in text
    assert "tiny version 1" in text
    assert f"{evaluation.calibration.log_loss:.3f}" in text
    assert page.count('<img src="data:image/png') == len(evaluation.mistakes) == 24
    assert json.loads((tmp_path / "m.json").read_text())["rows"] == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "page.html"]


def test_pictures_are_evaluated_and_shown_too(tiny_service, tmp_path):
    """A mistake of a folder of pictures is named by its file."""
    for label in LABELS:
        (tmp_path / label).mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(tmp_path / label / name)
    with Client(tiny_service.address) as client:
        evaluation = evaluate(client, client.model(), open_labelled(tmp_path, LABELS))
    write_page(evaluation, tmp_path / "page.html")
    mistakes = as_json(evaluation)["surest_mistakes"]
    assert len(mistakes) == 4  # all are the same drawing: one label is right
    assert {Path(each["source"]).name for each in mistakes} == {"a.png", "b.png"}
    assert {each["row"] for each in mistakes} == {0}


def test_a_model_without_softmax_has_figures_but_no_calibration(run_command, others, folder, tmp_path):
    """What is highest is still what is named; and that is said, in each output."""
    flags = ["evaluate", folder, "--server", others, "--model", "raw", "--html", tmp_path / "p.html"]
    finished = run_command("sketchbatch", *flags, "--json", tmp_path / "m.json")
    assert finished.returncode == 0, finished.stderr
    assert "calibration unknown" in finished.stdout
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["calibration"] is None
    assert found["accuracy"] > 0.7
    assert "lacks a softmax" in words((tmp_path / "p.html").read_text())
    assert found["drift"]["metrics"]  # and is no reason to fail
