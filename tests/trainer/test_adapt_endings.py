"""Test that both ends of a model are understood: pixels that it scales itself, and scores that need no softmax."""

import re

import numpy as np
import onnx
import pytest
from adapted_graphs import change
from adapting import adapt, run_adapt, served_scores, softmax
from foreign_models import FOREIGN, LABELS, weights, write_model
from onnx import helper, numpy_helper
from sketchbatch_trainer.adapt import adapting
from sketchbatch_trainer.adapt.source import Runner, Source
from sketchbatch_trainer.errors import AdaptRefused
from sketchbatch_trainer.synthetic import draw

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def sketches() -> np.ndarray:
    """Return synthetic sketches of all classes, uint8 (48, 28, 28)."""
    return np.concatenate([draw(label, 16, seed=5) for label in LABELS])


def logits_of(bitmaps: np.ndarray, classes: int = 3, factor: float = 1 / 255) -> np.ndarray:
    """Return what the linear layer makes of pixels, float64 (rows, classes)."""
    return bitmaps.reshape(-1, 784) * factor @ weights(classes).astype(np.float64)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def front_of(*lines: str):
    """Return a front that has the given nodes in the text form of ONNX; it reads `flat` and ends with `scaled`."""

    def front(nodes, initializers, last):
        nodes.extend(map(onnx.parser.parse_node, lines))
        return "scaled"

    return front


def ended_by(*lines: str):
    """Return an edit that adds the given nodes, in the text form of ONNX, from `scores` to the output `ended`."""

    def edit(model):
        model.graph.node.extend(map(onnx.parser.parse_node, lines))
        model.graph.output[0].name = "ended"

    return edit


def with_weights_of(factor: float):
    """Return an edit that multiplies the weights."""

    def edit(model):
        [tensor] = [each for each in model.graph.initializer if each.name == "w"]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), "w"))

    return edit


def test_a_single_class_gets_a_sigmoid(tmp_path, sketches):
    """A softmax over one class is 1 for every drawing; a sigmoid keeps what the logit tells."""
    source = write_model(tmp_path / "m.onnx", input_type="float32", classes=1, ending="", labels=None)
    assert np.abs(served_scores(adapt(source, labels="cat"), sketches) - sigmoid(logits_of(sketches, 1))).max() <= 1e-5
    printed = run_adapt(source, "--output", tmp_path / "n.onnx", "--labels", "cat")
    assert "logits: a sigmoid is added   [--softmax" in printed


def test_small_logits_of_a_single_class_are_no_logarithms(tmp_path, sketches):
    """Logits near 0 are not the logarithms of probabilities that are 1 for every drawing."""
    source = change(
        write_model(tmp_path / "m.onnx", input_type="float32", classes=1, ending="", labels=None),
        with_weights_of(1e-2),
    )
    scores = served_scores(adapt(source, labels="cat"), sketches)
    assert np.abs(scores - sigmoid(logits_of(sketches, 1) * 1e-2)).max() <= 1e-6


@pytest.mark.parametrize("ending", ["", "Sigmoid"])
def test_a_softmax_over_a_single_class_is_refused(tmp_path, ending):
    """`--softmax yes` would make every score 1."""
    source = write_model(tmp_path / "m.onnx", classes=1, ending=ending, labels=None)
    with pytest.raises(AdaptRefused, match="--softmax yes does not fit a model with one class"):
        adapt(source, "--softmax", "yes", labels="cat")
    assert not (tmp_path / "out").exists()


FRONTS = {
    "shape-first": (
        "size = Shape(flat)",
        "divisor = Constant<value_float = 255.0>()",
        "scaled = Div(flat, divisor)",
    ),
    "shape-of-moved": (
        "same = Identity(flat)",
        "size = Shape(same)",
        "divisor = Constant<value = float {255}>()",
        "scaled = Div(same, divisor)",
    ),
    "value-float": ("divisor = Constant<value_float = 255.0>()", "scaled = Div(flat, divisor)"),
    "value-floats": ("divisor = Constant<value_floats = [255.0]>()", "scaled = Div(flat, divisor)"),
    "identity": (
        "number = Constant<value = float {255}>()",
        "divisor = Identity(number)",
        "scaled = Div(flat, divisor)",
    ),
    "cast": (
        "number = Constant<value_int = 255>()",
        "divisor = Cast<to = 1>(number)",
        "scaled = Div(flat, divisor)",
    ),
    "cast-like": (
        "number = Constant<value_ints = [255]>()",
        "divisor = CastLike(number, flat)",
        "scaled = Div(flat, divisor)",
    ),
    "pixels-cast-like": (
        "divisor = Constant<value_float = 255.0>()",
        "pixels = CastLike(flat, divisor)",
        "scaled = Div(pixels, divisor)",
    ),
    "factor": ("factor = Constant<value_float = 0.003921569>()", "scaled = Mul(factor, flat)"),
}


@pytest.mark.parametrize("name", FRONTS)
def test_pixels_that_the_model_scales_itself_are_not_scaled_twice(tmp_path, sketches, name):
    """The division by 255 is found after nodes that read only the shape, and whatever holds its number."""
    source = write_model(tmp_path / "m.onnx", input_type="float32", front=front_of(*FRONTS[name]))
    assert np.abs(served_scores(adapt(source), sketches) - softmax(logits_of(sketches))).max() <= 1e-5


@pytest.mark.parametrize("is_attribute", [False, True])
def test_scaling_inside_a_function_of_the_model_is_found(tmp_path, sketches, is_attribute):
    """Newer exporters of PyTorch write layers as functions; the divisor may be an attribute of the call."""

    def move_division_into_function(model):
        number = helper.make_node("Constant", [], ["n"], **({} if is_attribute else {"value_float": 255.0}))
        if is_attribute:
            number.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="by", type=1))
        body = [number, helper.make_node("Div", ["x", "n"], ["y"])]
        attributes = ["by"] if is_attribute else []
        opsets = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("mine", "Scale", ["x"], ["y"], body, opsets, attributes))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        [node] = [each for each in model.graph.node if each.output[0] == "scaled"]
        stated = {"by": 255.0} if is_attribute else {}
        node.CopyFrom(helper.make_node("Scale", ["flat"], ["scaled"], domain="mine", **stated))

    source = write_model(tmp_path / "m.onnx", input_type="float32", front=front_of("scaled = Identity(flat)"))
    adapted = adapt(change(source, move_division_into_function))
    assert np.abs(served_scores(adapted, sketches) - softmax(logits_of(sketches))).max() <= 1e-5


@pytest.mark.parametrize(
    "lines",
    [
        ("size = Shape(flat)", "scaled = Identity(flat)"),
        ("number = Constant<value_float = 2.0>()", "scaled = Div(flat, number)"),
        ("one = Constant<value_float = 1.0>()", "more = Add(flat, one)", "number = Constant<value_float = 255.0>()",
         "scaled = Div(number, more)"),
        ("text = Constant<value_string = \"255\">()", "scaled = Identity(flat)"),
    ],
)  # fmt: skip
def test_other_nodes_at_the_input_are_no_scaling_of_pixels(tmp_path, lines):
    """The pixels of such a model are scaled by 1/255 before it."""
    source = write_model(tmp_path / "m.onnx", input_type="float32", front=front_of(*lines))
    assert "1/255 (assumed)" in run_adapt(source, "--output", tmp_path / "n.onnx", "--labels", "a,b,c")


ENDINGS = {
    "sigmoid-clip": (
        ("raw = Sigmoid(scores)", "low = Constant<value_float = 0.001>()", "high = Constant<value_float = 0.999>()",
         "ended = Clip(raw, low, high)"),
        sigmoid,
    ),
    "hard-sigmoid": (("ended = HardSigmoid(scores)",), lambda logits: np.clip(logits * 0.2 + 0.5, 0, 1)),
    "by-hand": (
        ("minus = Neg(scores)", "power = Exp(minus)", "one = Constant<value_float = 1.0>()", "sum = Add(power, one)",
         "ended = Reciprocal(sum)"),
        sigmoid,
    ),
    "by-tanh": (
        ("half = Constant<value_float = 0.5>()", "halved = Mul(scores, half)", "bent = Tanh(halved)",
         "small = Mul(bent, half)", "ended = Add(small, half)"),
        sigmoid,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_independent_scores_stay_as_they_are_whatever_computes_them(tmp_path, sketches, name):
    """Scores of 0 to 1 that do not sum to 1 are independent, as the service takes them: no softmax is added."""
    lines, function = ENDINGS[name]
    source = change(write_model(tmp_path / "m.onnx", **(FOREIGN["torch"] | {"output_name": "scores"})),
                    ended_by(*lines))  # fmt: skip
    assert np.abs(served_scores(adapt(source), sketches) - function(logits_of(sketches))).max() <= 1e-5
    printed = run_adapt(source, "--output", tmp_path / "n.onnx", "--labels", "a,b,c")
    assert "independent: left as they are   [--softmax" in printed


@pytest.mark.parametrize("factor", [500, 4000, 8000, 50_000])
@pytest.mark.parametrize("ending", ["Softmax", "", "Sigmoid"])
def test_large_logits_do_not_make_a_model_unequal_to_its_source(tmp_path, factor, ending):
    """A difference that one rounding of the pixels explains is allowed, and the limit is printed."""
    source = write_model(tmp_path / "m.onnx", **(FOREIGN["torch"] | {"ending": ending, "classes": 10, "seed": 8}))
    change(source, with_weights_of(factor))
    labels = ",".join(f"class {number}" for number in range(10))
    printed = run_adapt(source, "--output", tmp_path / "n.onnx", "--labels", labels)
    [(difference, limit)] = re.findall(r"by at most (\S+) on 256 drawings \(limit (\S+)\)", printed)
    assert max(float(difference), float(limit)) <= 1e-3


@pytest.mark.parametrize("factor", [1, 1000])
def test_a_difference_that_rounding_does_not_explain_is_refused(tmp_path, monkeypatch, factor):
    """Scores that are wrong by 2e-3 are refused, however large the logits are."""
    source = change(write_model(tmp_path / "m.onnx", **(FOREIGN["torch"] | {"ending": "Softmax"})),
                    with_weights_of(factor))  # fmt: skip
    runner = Runner(onnx.load(source))
    wrong = Source(onnx.load(source), lambda values, output: runner.run(values)[output] - 2e-3, "changed")
    monkeypatch.setattr(adapting, "read", lambda path: wrong)
    with pytest.raises(AdaptRefused, match="not equal to its source: scores differ"):
        adapt(source)
