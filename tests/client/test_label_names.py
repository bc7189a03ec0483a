"""Names of classes are compared in NFC, and messages show how names differ that look alike."""

import json
import unicodedata

import numpy as np
import pytest
from sketchbatch_client.drawings.readers import label_of, labelled_files
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.evaluation import common_labels
from sketchbatch_client.label_names import compared, listed, nearest, nfc, with_suggestions
from sketchbatch_client.rpc.classification import ModelInfo
from stand_in_service import row_norm, stand_in_service

NFC, NFD = "caf\u00e9", "cafe\u0301"  # codespell:ignore caf
LABELS = ("bear", "cat", "ice cream", "t-shirt", "The Eiffel Tower")


@pytest.fixture
def evaluate(sketchbatch, tmp_path):
    """Return a function that evaluates drawings of `names` with a model of `labels`."""

    def run(labels, names):
        for name in names:
            np.save(tmp_path / f"{name}.npy", np.random.default_rng(3).integers(1, 256, (4, 784), np.uint8))
        with stand_in_service(row_norm, labels=labels) as (address, _):
            return sketchbatch("evaluate", tmp_path, "--server", address, "--json", tmp_path / "metrics.json")

    return run


@pytest.mark.parametrize(("served", "file"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_evaluate_compares_names_in_nfc(evaluate, tmp_path, served, file):
    """A file whose name has another normal form than the label is evaluated under the served label."""
    finished = evaluate((served, "cat", "dog"), [file, "cat"])
    assert finished.code == 0, finished.err
    assert "skipped" not in finished.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["rows"] == 8
    assert metrics["per_class"][served]["rows"] == 4
    assert {mistake["label"] for mistake in metrics["surest_mistakes"]} <= {served, "cat"}


def test_labels_of_files_and_folders_are_in_nfc(tmp_path):
    """The label of a file or of a folder of pictures is its name in NFC; two forms of one name are refused."""
    np.save(tmp_path / f"{NFD}.npy", np.zeros((1, 784), np.uint8))
    (path,) = labelled_files(tmp_path).values()
    assert (list(labelled_files(tmp_path)), label_of(path), path.stem) == ([NFC], NFC, NFD)
    np.save(tmp_path / f"{NFC}.npy", np.zeros((1, 784), np.uint8))
    with pytest.raises(FileRefused, match="must not have the same label"):
        labelled_files(tmp_path)
    pictures = tmp_path / "pictures"
    (pictures / NFD).mkdir(parents=True)
    (pictures / NFD / "a.png").touch()
    assert list(labelled_files(pictures)) == [NFC]


def test_two_models_share_a_label_in_nfc():
    """Two models have a label in common if the labels are equal in NFC."""
    first, second = (
        ModelInfo(name, "1", ("1",), True, labels, 100, "CPU", "d", {}, "", "")
        for name, labels in (("a", (NFC, "cat")), ("b", ("dog", NFD)))
    )
    assert common_labels(first, second) == (NFC,)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            ["bear\r", "cat\r", "dog\r"],
            ["bear", "cat"],
            r"expected drawings of 'bear\r', 'cat\r', 'dog\r', got 'bear' (did you mean 'bear\r'?), "
            r"'cat' (did you mean 'cat\r'?)",
        ),
        (["cat ", "dog", "x"], ["cat"], "expected drawings of 'cat ', 'dog', 'x', got 'cat' (did you mean 'cat '?)"),
        (["cat\u200b", "y", "x"], ["cat"], r"'cat\u200b', 'y', 'x', got 'cat' (did you mean 'cat\u200b'?)"),
        (["bear", "cat", "x"], ["bears", "cats"], "'bears' (did you mean 'bear'?), 'cats' (did you mean 'cat'?)"),
        (["bear", "cat", "x"], ["0", "1"], "expected drawings of bear, cat, x, got 0, 1"),
    ],
)
def test_lists_that_are_compared_show_what_differs(evaluate, labels, names, message):
    """If the model knows no label of a folder, the message shows both lists so that a reader sees the difference."""
    finished = evaluate(labels, names)
    assert finished.code == 4
    assert message in finished.err


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Cat", "cat"),
        ("cats", "cat"),
        ("ice_cream", "ice cream"),
        ("tshirt", "t-shirt"),
        ("the_eiffel_tower", "The Eiffel Tower"),
        ("cat\r", "cat"),
        ("caat", "cat"),
        ("full_numpy_bitmap_cat", "cat"),
        ("full_numpy_bitmap_ice cream", "ice cream"),
        ("full_simplified_The Eiffel Tower", "The Eiffel Tower"),
        ("full%2Fnumpy_bitmap%2Fcat", "cat"),
        ("full_raw_zebra", None),
        ("cat (1)", "cat"),
        ("cat(2)", "cat"),
        ("full_binary_bears (3)", "bear"),
        ("zebra", None),
        ("0", None),
        ("", None),
    ],
)
def test_the_nearest_label_is_suggested(name, suggestion):
    """Another case, spacing or plural, invisible characters and typing errors lead to a suggestion."""
    assert nearest(name, LABELS) == suggestion


def test_passed_over_files_are_named_with_the_nearest_label(evaluate):
    """`evaluate` names the files that it skips, with the label that was probably meant."""
    finished = evaluate(("cat", "dog", "ice cream"), ["cat", "Dog", "ice_cream", "zebra"])
    assert finished.code == 3
    assert (
        "skipped the drawings of 3 labels that this model does not know: "
        "'Dog' (did you mean 'dog'?), 'ice_cream' (did you mean 'ice cream'?), 'zebra'; --ignore-others accepts this\n"
    ) in finished.err


def test_passed_over_names_with_a_suggestion_are_first():
    """Of many names, those with a suggestion are shown first."""
    names = [*"qxyzw", "Cat", "ice_cream"]
    assert with_suggestions(names, LABELS).startswith(
        "'Cat' (did you mean 'cat'?), 'ice_cream' (did you mean 'ice cream'?), 'q', 'x', 'y' and 2 more"
    )


def test_files_of_another_format_are_named(evaluate, tmp_path):
    """If a folder has files of two formats, `evaluate` says which it skips, even for labels that the model knows."""
    for name in ("cat", "bear"):
        (tmp_path / f"{name}.ndjson").write_text('{"drawing": [[[0, 255], [0, 255]]]}\n')
    finished = evaluate(("bear", "cat", "dog"), ["cat"])
    assert finished.code == 3
    message = "bear.ndjson (not read next to .npy files; move it into another folder)"
    assert "not read: 2 files or folders that may have drawings" in finished.err
    assert message in finished.err


def test_model_shows_odd_characters_of_labels(sketchbatch):
    """`sketchbatch model` shows labels as Python literals if one has characters that a person cannot see."""
    with stand_in_service(row_norm, labels=["bear\r", "cat\u00a0", "dog"]) as (address, _):
        assert r"3: 'bear\r', 'cat\xa0', 'dog'" in sketchbatch("model", "--server", address).out
    with stand_in_service(row_norm) as (address, _):
        assert "3: bear, cat, dog" in sketchbatch("model", "--server", address).out


def test_long_lists_are_shortened():
    """A message has at most five names of a list, and suggestions for ten thousand classes take no time to notice."""
    many = [f"class {number}" for number in range(10_000)]
    assert listed(many) == "class 0, class 1, class 2, class 3, class 4 and 9995 more"
    assert with_suggestions(["Class_9999"], many) == "'Class_9999' (did you mean 'class 9999'?)"
    assert compared(many, ["zebra"]).endswith("and 9995 more, got zebra")
    assert (listed(["cat"]), listed(["cat", "dog "])) == ("cat", "'cat', 'dog '")
    assert nfc(NFD) == NFC == unicodedata.normalize("NFC", NFD)
