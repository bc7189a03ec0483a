"""Test that models that would answer wrongly are found at load, and that the kind of the scores is found, too.

Each model here loads without an error, and gives finite scores for most drawings. A trial of the model finds the fault.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_models import write_foreign, write_model
from onnx import NodeProto, TensorProto, helper, numpy_helper
from sketchbatch_service.engines.cpu import open_session
from sketchbatch_service.engines.cuda import CudaEngine, CudaOptions
from sketchbatch_service.engines.cuda_device import Device
from sketchbatch_service.engines.parity import Reference, random_drawings
from sketchbatch_service.engines.score_kind import kind_of
from sketchbatch_service.engines.trial import tolerance_of, try_out
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models.loader import LoadOptions, load_models
from structlog.testing import capture_logs

Nodes, Initializers = list[NodeProto], list[TensorProto]


def batch_norm(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Normalise each pixel over the batch, as batch normalisation in training mode does."""
    for name, value in (("scale", 1), ("bias", 0), ("mean", 0), ("variance", 1)):
        initializers.append(numpy_helper.from_array(np.full(784, value, np.float32), name))
    names = ["scale", "bias", "mean", "variance"]
    nodes.append(helper.make_node("BatchNormalization", [last, *names], ["normed", "m", "v"], training_mode=1))
    return "normed"


def divided_by_the_batch(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Divide the pixels by the largest pixel of the batch."""
    nodes.append(helper.make_node("ReduceMax", [last], ["largest"], keepdims=0))
    nodes.append(helper.make_node("Div", [last, "largest"], ["divided"]))
    nodes.append(helper.make_node("Mul", ["divided", "255"], ["scaled"]))
    initializers.append(numpy_helper.from_array(np.float32(255), "255"))
    return "scaled"


def instance_norm(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Normalise each pixel over the batch with InstanceNormalization, on transposed axes."""
    for name, value in (("scale", 1), ("bias", 0)):
        initializers.append(numpy_helper.from_array(np.full(784, value, np.float32), name))
    initializers.append(numpy_helper.from_array(np.array([1, 784, -1]), "as one"))
    initializers.append(numpy_helper.from_array(np.array([784, -1]), "as many"))
    nodes.append(helper.make_node("Transpose", [last], ["turned"], perm=[1, 0]))
    nodes.append(helper.make_node("Reshape", ["turned", "as one"], ["one"]))
    nodes.append(helper.make_node("InstanceNormalization", ["one", "scale", "bias"], ["normed"]))
    nodes.append(helper.make_node("Reshape", ["normed", "as many"], ["many"]))
    nodes.append(helper.make_node("Transpose", ["many"], ["back"], perm=[1, 0]))
    return "back"


def attention(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Mix the rows of the batch by their similarity."""
    nodes.append(helper.make_node("Transpose", [last], ["turned"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", [last, "turned"], ["similarity"]))
    initializers.append(numpy_helper.from_array(np.float32(1e-6), "small"))
    nodes.append(helper.make_node("Mul", ["similarity", "small"], ["scaled"]))
    nodes.append(helper.make_node("Softmax", ["scaled"], ["shares"], axis=1))
    nodes.append(helper.make_node("MatMul", ["shares", last], ["mixed"]))
    return "mixed"


def dynamically_quantised(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Quantise the pixels by the range of the batch, as `quantize_dynamic` of ONNX Runtime does."""
    initializers.append(numpy_helper.from_array(np.float32(200_000), "large"))
    initializers.append(numpy_helper.from_array(np.array([1]), "columns"))
    nodes.append(helper.make_node("ReduceSum", [last, "columns"], ["ink"], keepdims=1))
    nodes.append(helper.make_node("Mul", [last, "ink"], ["wide"]))
    nodes.append(helper.make_node("DynamicQuantizeLinear", ["wide"], ["q", "step", "zero"]))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["rounded"]))
    nodes.append(helper.make_node("Div", ["rounded", "large"], ["narrow"]))
    return "narrow"


def noise(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Add random numbers to the pixels: other ones in each call, and the same sequence after each load."""
    nodes.append(helper.make_node("RandomNormalLike", [last], ["noise"], scale=50.0, seed=7.0))
    nodes.append(helper.make_node("Add", [last, "noise"], ["noisy"]))
    return "noisy"


def divided_by_the_row(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Divide the pixels of each drawing by its largest pixel; a blank drawing gives 0 / 0."""
    initializers.append(numpy_helper.from_array(np.array([1]), "columns"))
    nodes.append(helper.make_node("ReduceMax", [last, "columns"], ["largest"], keepdims=1))
    nodes.append(helper.make_node("Div", [last, "largest"], ["divided"]))
    return "divided"


def standardised(nodes: Nodes, initializers: Initializers, last: str) -> str:
    """Subtract the mean of each drawing, and divide by its deviation; a drawing of one grey level gives 0 / 0."""
    initializers.append(numpy_helper.from_array(np.array([1]), "columns"))
    nodes.append(helper.make_node("ReduceMean", [last, "columns"], ["mean"], keepdims=1))
    nodes.append(helper.make_node("Sub", [last, "mean"], ["centred"]))
    nodes.append(helper.make_node("ReduceL2", ["centred", "columns"], ["deviation"], keepdims=1))
    nodes.append(helper.make_node("Div", ["centred", "deviation"], ["standard"]))
    return "standard"


BATCH_DEPENDENT = [batch_norm, divided_by_the_batch, instance_norm, attention, dynamically_quantised]
NOT_FINITE = [divided_by_the_row, standardised]


def load(path: Path, **options: object) -> Callable[[np.ndarray], np.ndarray]:
    """Load the file at `path`, and return a function that computes scores with its batcher."""
    batcher = load_models(path, LoadOptions(provider="cpu", **options)).get("", "").batcher

    def scores(drawings: np.ndarray) -> np.ndarray:
        future = batcher.submit(drawings)
        batcher.take(1).run()
        return future.result(0).scores

    return scores


def refusal(path: Path, **options: object) -> str:
    """Return the message with which the file at `path` is refused."""
    with pytest.raises(ModelRefused) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("front", BATCH_DEPENDENT, ids=lambda front: front.__name__)
def test_a_model_whose_scores_depend_on_the_batch_is_refused(tmp_path, front):
    """A drawing must have the same scores alone and in a batch; else drawings of other clients would change them."""
    message = refusal(write_model(tmp_path / "m.onnx", front=front))
    assert re.search(r"scores of a drawing depend on the other rows of its batch: they differ by up to \S+ ", message)
    assert "--allow-unstable-scores" in message


def test_a_softmax_over_the_batch_is_refused(tmp_path):
    """A softmax over axis 0 makes the scores of a class sum to 1, and so depends on the other rows."""
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    [softmax] = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.attribute[0].i = 0
    onnx.save(model, path)
    assert "depend on the other rows of its batch" in refusal(path)


def test_a_model_that_depends_on_the_position_in_the_batch_is_refused(tmp_path):
    """A graph that treats the first row otherwise than the second gives a drawing different scores at each place."""

    def numbered(nodes: Nodes, initializers: Initializers, last: str) -> str:
        initializers.append(numpy_helper.from_array(np.array([0]), "rows"))
        nodes.append(helper.make_node("CumSum", [last, "zero"], ["sums"]))
        initializers.append(numpy_helper.from_array(np.array(0), "zero"))
        return "sums"

    assert "depend on the other rows of its batch" in refusal(write_model(tmp_path / "m.onnx", front=numbered))


def test_a_model_that_is_not_deterministic_is_refused(tmp_path):
    """The same drawings must have the same scores in two calls."""
    message = refusal(write_model(tmp_path / "m.onnx", front=noise))
    assert re.search(r"the same drawings have other scores in a second call: they differ by up to \S+ ", message)
    assert "depend on the other rows" not in message
    assert "--allow-unstable-scores" in message


@pytest.mark.parametrize(
    ("front", "which"),
    [(divided_by_the_row, "a blank drawing"), (standardised, "a blank drawing and a drawing of ink only")],
    ids=["row-norm", "standardised"],
)
def test_a_model_that_is_not_finite_for_a_blank_drawing_is_refused(tmp_path, front, which):
    """A blank drawing, and a drawing of ink only, must have finite scores."""
    message = refusal(write_model(tmp_path / "m.onnx", front=front))
    assert f"the scores of {which} are not finite (a division by the ink or the contrast of a drawing?)" in message
    assert "--allow-unstable-scores" in message


def test_a_model_that_is_never_finite_is_refused(tmp_path):
    """Weights that are too large give infinite scores for every drawing."""
    path = write_model(tmp_path / "m.onnx", ending="")
    model = onnx.load(path)
    model.graph.node.insert(3, helper.make_node("Exp", ["raw"], ["logits"]))
    model.graph.node[2].output[0] = "raw"
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + np.float32(1), "w"))
    onnx.save(model, path)
    assert "the scores of 16 of 17 trial drawings are not finite" in refusal(path)


def test_an_unstable_model_is_not_blamed_on_cuda(tmp_path):
    """The trial runs before the parity check of CUDA, which would also fail for this model, but not name the cause."""
    path = write_model(tmp_path / "m.onnx", front=batch_norm)
    with pytest.raises(ModelRefused, match="depend on the other rows of its batch"):
        load_models(path, LoadOptions(provider="cuda"))


def test_the_padding_of_cuda_batches_passes_the_trial(tiny_model):
    """The scores of the CUDA engine are stable, although it pads a batch to its bucket with rows of earlier batches."""
    session = open_session(tiny_model)
    engine = CudaEngine(session, Device("cpu"), Reference(session, 3), max_batch_rows=40, options=CudaOptions())
    engine.warm_up()
    assert try_out(engine.predict, classes=3, batch_rows=40).faults == ()


@pytest.mark.parametrize("rows", [2, 3, 5, 7, 16, 17])
def test_a_model_that_fails_at_one_batch_size_is_refused(tmp_path, rows):
    """Batches have any size, so a graph that fails for one of them would fail requests by chance."""
    path = write_failing_at(tmp_path / "m.onnx", rows)
    message = refusal(path, allows_unstable_scores=True)
    assert f"the model fails on {rows} rows" in message
    assert message.endswith("export it with an open batch (dynamic_axes in PyTorch)")


def test_a_model_that_fails_at_the_chosen_batch_size_is_refused(tmp_path):
    """The largest batch size of the service is tried, too."""
    assert "fails on 40 rows" in refusal(write_failing_at(tmp_path / "m.onnx", 40), max_batch_rows=40)


def test_a_small_batch_size_limits_the_trial(tmp_path):
    """The trial makes no call with more rows than --max-batch-rows allows."""
    load(write_failing_at(tmp_path / "m.onnx", 17), max_batch_rows=16)


def write_failing_at(path: Path, rows: int) -> Path:
    """Write a model whose graph fails for batches of exactly `rows` rows."""

    def failing(nodes: Nodes, initializers: Initializers, last: str) -> str:
        constants = {"rows": [rows], "outside": [99_999_999], "first": [0], "only": [0.0]}
        for name, value in constants.items():
            kind = np.float32 if name == "only" else np.int64
            initializers.append(numpy_helper.from_array(np.array(value, kind), name))
        nodes.append(helper.make_node("Shape", [last], ["size"], end=1))
        nodes.append(helper.make_node("Equal", ["size", "rows"], ["is bad"]))
        nodes.append(helper.make_node("Where", ["is bad", "outside", "first"], ["index"]))
        nodes.append(helper.make_node("Gather", ["only", "index"], ["zero"]))
        nodes.append(helper.make_node("Add", [last, "zero"], ["same"]))
        return "same"

    return write_model(path, front=failing)


@pytest.mark.parametrize("front", [*BATCH_DEPENDENT, noise, *NOT_FINITE], ids=lambda front: front.__name__)
def test_unstable_scores_are_served_if_they_are_allowed(tmp_path, front):
    """With --allow-unstable-scores the model is served, and a warning has the reason for which it would be refused."""
    path = write_model(tmp_path / "m.onnx", front=front)
    with capture_logs() as log:
        scores = load(path, allows_unstable_scores=True)
    assert scores(random_drawings(4)).shape == (4, 3)
    [warning] = [event for event in log if event["event"] == "unstable scores, allowed by --allow-unstable-scores"]
    assert (warning["log_level"], warning["model"]) == ("warning", str(path))
    assert warning["cause"] in refusal(path)


@pytest.mark.parametrize("name", ["bear-cat-dog", "animals-10", "quickdraw-345"])
def test_the_shipped_models_pass_the_trial(root, name):
    """The trial refuses none of the shipped models, and finds probabilities in each."""
    [path] = (root / "models" / name).glob("*/model.onnx")
    model = load_models(path, LoadOptions(provider="cpu")).get("", "")
    assert model.score_kind == "probabilities"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fits", "probabilities"),
        ("logits", "logits"),
        ("log-softmax", "log-probabilities"),
        ("sigmoid", "independent"),
        ("ten-thousand", "probabilities"),
    ],
)
def test_the_kind_of_the_scores_is_found(tmp_path, name, kind):
    """Scores that are not probabilities are announced, with the command that makes them probabilities.

    A softmax would not make probabilities of independent scores, so the announcement of these has no command.
    """
    path = write_foreign(name, tmp_path / "m.onnx")
    with capture_logs() as log:
        model = load_models(path, LoadOptions(provider="cpu")).get("", "")
    assert model.score_kind == kind
    warnings = [event for event in log if event["event"] == "the scores of a row are not probabilities"]
    if kind == "probabilities":
        assert warnings == []
    else:
        [warning] = warnings
        assert (warning["log_level"], warning["model"], warning["scores"]) == ("warning", str(path), kind)
        remedy = "" if kind == "independent" else f"sketchbatch-train adapt {path} --softmax yes --output model.onnx"
        assert warning.get("remedy", "") == remedy


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], "probabilities"),
        ([[1.0], [1.0]], "probabilities"),
        ([[0.2, 0.804], [0.0, 0.996]], "probabilities"),  # float16
        ([[0.2, 0.8], [0.2, 0.7]], "independent"),
        ([[0.0, 0.0], [1.0, 1.0]], "independent"),
        ([[-0.2231, -1.6094], [0.0, -80.0]], "log-probabilities"),
        ([[-0.2231, -1.6094], [-3.0, -80.0]], "logits"),
        ([[0.2, 0.8], [1.2, -0.2]], "logits"),
        ([[np.nan, 0.0], [0.5, 0.5]], "probabilities"),
        ([[np.nan, 0.0], [np.inf, 0.5]], "logits"),
    ],
)
def test_the_kind_fits_all_finite_rows(scores, kind):
    """All rows must agree with the kind; rows that are not finite say nothing about it."""
    assert kind_of(np.array(scores, np.float32)) == kind


@pytest.mark.parametrize(("variant", "passes"), [("", False), ("float32", False), ("float16", False), ("int8", True)])
def test_the_tolerance_depends_on_the_number_format(variant, passes):
    """Rounding to int8 may change a score by 0.02 in a batch of another size; in other formats that is a fault."""

    def predict(drawings: np.ndarray) -> np.ndarray:
        shift = 0.02 if len(drawings) == 5 else 0.0
        return np.tile(np.array([0.5 + shift, 0.5 - shift], np.float32), (len(drawings), 1))

    trial = try_out(predict, classes=2, batch_rows=16, tolerance=tolerance_of(variant))
    assert (trial.faults == ()) is passes


@pytest.mark.parametrize(("batch_rows", "row"), [(40, 0), (40, 39), (3, 2)])
def test_every_row_of_the_largest_batch_is_compared(batch_rows, row):
    """A fault in one row of a batch of the largest size is found."""

    def predict(drawings: np.ndarray) -> np.ndarray:
        scores = np.full((len(drawings), 2), 0.5, np.float32)
        if len(drawings) == batch_rows:
            scores[row] = 0.6, 0.4
        return scores

    [fault] = try_out(predict, classes=2, batch_rows=batch_rows).faults
    assert fault.startswith("the scores of a drawing depend on the other rows of its batch: they differ by up to 0.1 ")


def test_the_tolerance_grows_with_the_scores():
    """Sums of large logits have large rounding errors, so the tolerance is a share of the largest score."""

    def predict(drawings: np.ndarray) -> np.ndarray:
        return np.full((len(drawings), 2), 2000.0 + len(drawings) / 16, np.float32)

    assert try_out(predict, classes=2, batch_rows=16).faults == ()
