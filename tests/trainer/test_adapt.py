"""Test that one command makes a model file of a model from any tool, and that the service scores as the original."""

import json
import os
import re

import numpy as np
import onnx
import pytest
from adapted_graphs import (
    change,
    clashing_names,
    doubled_in_a_branch,
    in_float16,
    joined_and_separated,
    list_weights_as_inputs,
    move_softmax_into_function,
    reshape_to,
    scaled_by,
    write_convolution,
    write_scikit_learn,
)
from adapting import adapt, properties, run_adapt, served_scores, softmax
from foreign_models import FOREIGN, LABELS, weights, write_foreign, write_model
from sketchbatch_trainer.synthetic import draw

pytestmark = pytest.mark.timeout(120)  # ten thousand classes take seconds on busy CPUs

REFUSED = ("argmax-int64", "new-ir")
ADAPTED = tuple(name for name in FOREIGN if name not in REFUSED)


@pytest.fixture(scope="module")
def sketches() -> np.ndarray:
    """Return synthetic sketches of all classes, uint8 (48, 28, 28)."""
    return np.concatenate([draw(label, 16, seed=5) for label in LABELS])


def expected(name: str, bitmaps: np.ndarray) -> np.ndarray:
    """Return the scores of the model `name` of FOREIGN, with the default scaling, computed by NumPy."""
    options = FOREIGN[name]
    pixels = bitmaps.reshape(-1, 784).astype(np.float64)
    if options.get("input_type", "uint8") != "uint8":
        pixels = (pixels / 255).astype(options["input_type"]).astype(np.float64)
    logits = pixels @ weights(options.get("classes", 3)).astype(np.float64)
    return 1 / (1 + np.exp(-logits)) if options.get("ending") == "Sigmoid" else softmax(logits)


@pytest.mark.parametrize("name", ADAPTED)
def test_a_model_of_another_tool_is_served_after_one_command(tmp_path, sketches, name):
    """The command prints a difference from the source of at most 1e-5.

    The service loads the adapted model, and its scores are those that NumPy computes from the weights.
    """
    source, adapted = write_foreign(name, tmp_path / f"{name}.onnx"), tmp_path / "out" / "model.onnx"
    labels = FOREIGN[name]["labels"] if name == "ten-thousand" else ("ant", "bee", "cow")
    printed = run_adapt(source, "--output", adapted, "--labels", ",".join(labels))
    [difference] = re.findall(r"by at most (\S+) on 256 drawings", printed)
    assert float(difference) <= 1e-5
    tolerance = 2e-3 if name == "fp16-io" else 1e-5
    assert np.abs(served_scores(adapted, sketches) - expected(name, sketches)).max() <= tolerance


def test_what_was_found_and_assumed_is_printed_with_its_flags(tmp_path):
    """Each assumption is printed with the flag that changes it, and the last line is the command that serves."""
    source = write_foreign("torch-batch1", tmp_path / "mnist.onnx")
    printed = run_adapt(source, "--output", tmp_path / "model.onnx", "--labels", "bear,cat,dog")
    for part in (
        "input.1: float32 (1, 1, 28, 28), layout nchw",
        "was fixed to 1, now any number of rows",
        "1/255 (assumed)   [--scale",
        "255 on paper 0 (assumed)   [--invert]",
        "19: float32 (1, 3); logits: a softmax is added   [--softmax",
        "bear, cat, dog (from --labels)",
        "name mnist, version 1, licence not stated",
    ):
        assert part in printed
    assert (
        printed.splitlines()[-1]
        == f"serve it: sketchbatch-serve --model {tmp_path / 'model.onnx'} --address 127.0.0.1:50051"
    )


def test_metadata_describe_the_model_and_its_source(tmp_path):
    """The file holds labels, name, version, licence, source and the settings; entries of other tools stay."""
    source = write_model(
        tmp_path / "mine.onnx", metadata={"author": "Ann", "license": "MIT", "sketchbatch.metrics": "{}"}
    )
    found = properties(adapt(source, labels=""))
    assert json.loads(found["sketchbatch.labels"]) == list(LABELS)
    assert found["author"] == "Ann"
    assert "sketchbatch.metrics" not in found  # they were measured elsewhere, possibly with other pixels
    assert (found["sketchbatch.name"], found["sketchbatch.version"]) == ("mine", "1")
    assert found["sketchbatch.licence"] == "MIT"
    assert re.fullmatch("mine.onnx, SHA-256 [0-9a-f]{64}", found["sketchbatch.source"])
    assert json.loads(found["sketchbatch.config"])["layout"] == "plain"
    stated = properties(adapt(source, "--name", "zoo", "--version", 7, "--licence", "CC0", "--source", "by hand"))
    keys = ("name", "version", "licence", "source")
    assert [stated[f"sketchbatch.{key}"] for key in keys] == ["zoo", "7", "CC0", "by hand"]


def test_external_data_are_joined(tmp_path, sketches):
    """The output is one file, although the weights of the source are in a second one."""
    adapted = adapt(write_foreign("torch-external", tmp_path / "m.onnx"))
    assert [each.name for each in adapted.parent.iterdir()] == ["m.onnx"]
    assert np.abs(served_scores(adapted, sketches) - expected("fits", sketches)).max() <= 1e-5


@pytest.mark.parametrize(
    ("flags", "slope", "offset"),
    [
        (("--scale", "0..255"), 1, 0),
        (("--scale", "-1..1"), 2 / 255, -1),
        (("--scale", "0.1307,0.3081"), 1 / 255 / 0.3081, -0.1307 / 0.3081),
        (("--invert",), -1 / 255, 1),
        (("--scale", "0..255", "--invert"), -1, 255),
    ],
)
@pytest.mark.parametrize("input_type", ["float32", "double"])
def test_pixels_are_scaled_as_stated(tmp_path, sketches, input_type, flags, slope, offset):
    """`--scale` and `--invert` state what the model receives for a pixel."""
    adapted = adapt(write_model(tmp_path / "m.onnx", input_type=input_type, input_shape=("N", 1, 28, 28)), *flags)
    logits = (sketches.reshape(-1, 784) * float(slope) + offset) @ weights().astype(np.float64)
    assert np.abs(served_scores(adapted, sketches) - softmax(logits)).max() <= 1e-4  # sums of 784 numbers up to 255


@pytest.mark.parametrize("input_type", ["uint8", "int64"])
def test_pixels_of_an_integer_input_can_be_inverted(tmp_path, sketches, input_type):
    """An input of integers receives the pixels as they are, or 255 minus the pixel with `--invert`."""
    adapted = adapt(write_model(tmp_path / "m.onnx", input_type=input_type, input_shape=("N", 784)), "--invert")
    logits = (255.0 - sketches.reshape(-1, 784)) @ weights().astype(np.float64)
    assert np.abs(served_scores(adapted, sketches) - softmax(logits)).max() <= 1e-5


@pytest.mark.parametrize(("operator", "number"), [("Mul", 1 / 255), ("Div", 255), ("Sub", 33)])
def test_a_model_that_scales_pixels_itself_receives_them_as_they_are(tmp_path, sketches, operator, number):
    """Without `--scale`, a graph that begins with such a node receives 0 to 255; `--scale` has priority."""
    source = write_model(tmp_path / "m.onnx", input_type="float32", front=scaled_by(operator, number))
    inner = {"Mul": np.multiply, "Div": np.divide, "Sub": np.subtract}[operator]
    for flags, factor in (((), 1), (("--scale", "1/255"), 1 / 255)):
        logits = inner(sketches.reshape(-1, 784) * float(factor), number) @ weights().astype(np.float64)
        assert np.abs(served_scores(adapt(source, *flags), sketches) - softmax(logits)).max() <= 1e-5


@pytest.mark.parametrize("how", ["shape", "value_float", "converted"])
def test_a_scaling_inside_the_model_is_found(tmp_path, sketches, how):
    """The scaling is found after a node that reads the shape, and with a number that comes from other nodes."""
    source = write_model(tmp_path / "m.onnx", input_type="float32", front=scaled_by("Div", 255, how))
    logits = sketches.reshape(-1, 784) / 255 @ weights().astype(np.float64)
    assert np.abs(served_scores(adapt(source), sketches) - softmax(logits)).max() <= 1e-5


def test_a_sigmoid_of_another_operator_gets_no_softmax(tmp_path):
    """Scores in 0..1 that no linear operator computes are independent, as the service calls them."""
    source = write_model(tmp_path / "m.onnx", ending="HardSigmoid")
    assert "independent: left as they are" in run_adapt(
        source, "--output", tmp_path / "o.onnx", "--labels", "ant,bee,cow"
    )


@pytest.mark.parametrize(
    ("example_rows", "front"),
    [
        (1, reshape_to(1, 784)),
        (1, reshape_to(1, 28, 28)),
        (1, reshape_to(1, -1)),
        (7, reshape_to(7, 4, 196)),
        (1, joined_and_separated),
    ],
)
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_batch_that_is_fixed_by_a_constant_is_opened(tmp_path, sketches, example_rows, front, is_declared):
    """A Reshape node with the number of example rows in its constant accepts any number of rows afterwards."""
    rows = example_rows if is_declared else "N"
    source = write_model(tmp_path / "m.onnx", input_shape=(rows, 28, 28), rows_out=rows, front=front)
    adapted = adapt(source)
    for count in (1, 2, 17, 48):
        logits = sketches[:count].reshape(-1, 784) @ weights().astype(np.float64)
        assert np.abs(served_scores(adapted, sketches[:count]) - softmax(logits)).max() <= 1e-5


@pytest.mark.parametrize("standard_opset", [True, False])
def test_probabilities_of_scikit_learn_are_found_next_to_the_label(tmp_path, sketches, standard_opset):
    """A label and a tensor of probabilities: the tensor has the scores, and the class names are in the classifier."""
    adapted = adapt(write_scikit_learn(tmp_path / "m.onnx", standard_opset=standard_opset), labels="")
    logits = sketches.reshape(-1, 784) / 255 @ weights().astype(np.float64)
    assert np.abs(served_scores(adapted, sketches) - softmax(logits)).max() <= 1e-5
    assert json.loads(properties(adapted)["sketchbatch.labels"]) == list(LABELS)


@pytest.mark.parametrize(("front", "factor"), [(clashing_names, 1), (doubled_in_a_branch, 2)])
def test_names_inside_the_source_do_not_clash(tmp_path, sketches, front, factor):
    """The source may use our names for other values, and refer to its weights in the branches of If."""
    adapted = adapt(write_model(tmp_path / "m.onnx", input_name="x", output_name="y", front=front))
    logits = factor * sketches.reshape(-1, 784).astype(np.float64) @ weights().astype(np.float64)
    assert np.abs(served_scores(adapted, sketches) - softmax(logits)).max() <= 1e-5


@pytest.mark.parametrize("edit", [list_weights_as_inputs, move_softmax_into_function])
def test_other_forms_of_the_file_are_read(tmp_path, sketches, edit):
    """Weights may be inputs, as in old files; layers may be functions of the model, as in new ones."""
    adapted = adapt(change(write_foreign("fits", tmp_path / "m.onnx"), edit))
    assert np.abs(served_scores(adapted, sketches) - expected("fits", sketches)).max() <= 1e-5
    assert [each.name for each in onnx.load(adapted).graph.input] == ["bitmaps"]


def test_a_model_that_computes_in_float16_is_adapted(tmp_path, sketches):
    """Input, weights and logits may have 16 bits; the softmax is added in 32 bits, so that each row sums to 1."""
    adapted = adapt(write_model(tmp_path / "m.onnx", input_type="float16", output_type="float16", ending="",
                                front=in_float16))  # fmt: skip
    scores = served_scores(adapted, sketches)
    assert np.abs(scores - expected("torch", sketches)).max() <= 1e-2
    assert np.abs(scores.sum(axis=1) - 1).max() <= 1e-6


@pytest.mark.parametrize("is_nhwc", [False, True])
@pytest.mark.parametrize("shape", [("N", "C", "H", "W"), None])
def test_a_layout_that_is_not_declared_is_found_by_running(tmp_path, sketches, is_nhwc, shape):
    """If every axis is variable, the layout is the first one with which the model runs; `--layout` states it."""
    source = write_convolution(tmp_path / "m.onnx", is_nhwc=is_nhwc, shape=shape)
    layout = "nhwc" if is_nhwc else "nchw"
    for flags in ((), ("--layout", layout)):
        assert np.abs(served_scores(adapt(source, *flags), sketches) - expected("torch", sketches)).max() <= 1e-5
    assert f"layout {layout}   [--layout]" in run_adapt(source, "--output", tmp_path / "n.onnx", "--labels", "a,b,c")


def test_outputs_and_nodes_without_use_are_dropped(tmp_path):
    """Only the nodes that the scores need remain; no added node computes a shape, so that CUDA runs all of them."""
    graph = onnx.load(adapt(write_foreign("two-outputs", tmp_path / "m.onnx"))).graph
    assert [each.name for each in graph.output] == ["scores"]
    assert "source/features" not in {name for node in graph.node for name in node.output}
    graph = onnx.load(adapt(write_foreign("torch", tmp_path / "t.onnx"))).graph
    added = [node.op_type for node in graph.node if node.name.startswith("adapt/")]
    assert added == ["Reshape", "Cast", "Div", "Softmax"]


@pytest.mark.parametrize(
    ("name", "softmax_flag", "operators"),
    [
        ("logits", "no", []),
        ("log-softmax", "no", []),
        ("sigmoid", "yes", ["Softmax"]),
        ("log-softmax", "yes", ["Softmax"]),
    ],
)
def test_the_softmax_can_be_forced_and_left_out(tmp_path, name, softmax_flag, operators):
    """`--softmax no` keeps the scores as they are, `--softmax yes` adds a softmax to any scores."""
    graph = onnx.load(adapt(write_foreign(name, tmp_path / "m.onnx"), "--softmax", softmax_flag)).graph
    added = [node.op_type for node in graph.node if node.name.startswith("adapt/source/")]
    assert [each for each in added if each != "Identity"] == operators


def test_the_output_with_the_scores_can_be_named(tmp_path, sketches):
    """With several outputs of the right shape, `--scores-output` names the one with the scores."""
    source = write_model(tmp_path / "m.onnx", labels=[str(number) for number in range(784)], classes=784,
                         extra_outputs=("features",))  # fmt: skip
    labels = ",".join(map(str, range(784)))
    adapted = adapt(source, "--scores-output", "scores", labels=labels)
    logits = sketches.reshape(-1, 784) @ weights(784).astype(np.float64)
    assert np.abs(served_scores(adapted, sketches) - softmax(logits)).max() <= 1e-5


def test_weights_behind_links_are_joined(tmp_path, sketches):
    """A model in a cache of Hugging Face, whose files are links to blobs, is adapted."""
    write_foreign("torch-external", tmp_path / "blobs" / "m.onnx")
    folder = tmp_path / "snapshots" / "abc"
    folder.mkdir(parents=True)
    for name in ("m.onnx", "m.onnx.data"):
        (folder / name).symlink_to(tmp_path / "blobs" / name)
    assert (
        np.abs(served_scores(adapt(folder / "m.onnx"), sketches) - expected("torch-external", sketches)).max() <= 1e-5
    )


def test_a_file_name_that_is_no_text_is_shown(tmp_path):
    """A source whose name has bytes that are not UTF-8 is adapted; the metadata show the name with replacements."""
    source = write_foreign("torch", tmp_path / os.fsdecode(b"mod\xe9l.onnx"))
    output = tmp_path / "model.onnx"
    run_adapt(source, "--output", output, "--labels", "ant,bee,cow")
    assert properties(output)["sketchbatch.name"] == "mod\ufffdl"


@pytest.mark.parametrize("text", ["bear,cat,dog", "bear\n\ncat\ndog\n"])
def test_a_labels_file_of_one_line_or_with_blank_lines_is_read(tmp_path, text):
    """The names in a file may stand in one line, separated by commas; blank lines are skipped."""
    (tmp_path / "labels.txt").write_text(text)
    adapted = adapt(write_foreign("torch", tmp_path / "m.onnx"), labels=str(tmp_path / "labels.txt"))
    assert json.loads(properties(adapted)["sketchbatch.labels"]) == list(LABELS)
