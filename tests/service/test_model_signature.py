"""Test which inputs, outputs and labels of a model file fit, and what the service says about a file that does not fit.

Users bring models from PyTorch, Keras and scikit-learn. One message must list everything that does not fit, and end
with the one command that writes a file that fits.
"""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_models import weights, write_foreign, write_model
from onnx import TensorProto, helper, numpy_helper
from sketchbatch_service.engines.cpu import open_session
from sketchbatch_service.engines.cuda import CudaEngine, CudaOptions
from sketchbatch_service.engines.cuda_device import Device
from sketchbatch_service.engines.parity import Reference, random_drawings
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models.loader import LoadOptions, load_models
from sketchbatch_service.models.registry import ServedModel


def refusal(path: Path) -> str:
    """Return the message with which the file at `path` is refused, without the path at its beginning."""
    with pytest.raises(ModelRefused) as caught:
        load_models(path, LoadOptions(provider="cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def served(path: Path) -> ServedModel:
    """Return the model of the file at `path`, loaded on the CPU."""
    return load_models(path, LoadOptions(provider="cpu")).get("", "")


def scores_of(model: ServedModel, drawings: np.ndarray) -> np.ndarray:
    """Return the scores that `model` gives to the drawings."""
    future = model.batcher.submit(drawings)
    model.batcher.take(1).run()
    return future.result(0).scores


def linear_scores(drawings: np.ndarray) -> np.ndarray:
    """Return the scores of the linear model of `foreign_models`, computed with NumPy."""
    logits = drawings.reshape(-1, 784).astype(np.float32) @ weights()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_one_message_lists_everything_that_does_not_fit(tmp_path):
    """PyTorch's export has another input and no labels: one message says both, and has the command that mends both."""
    path = write_foreign("torch", tmp_path / "t.onnx")
    assert refusal(path) == (
        "input must be uint8 (N, 28, 28), got input: float32 (N, 1, 28, 28); "
        "no labels in metadata (optimisers and converters drop them): "
        f"`sketchbatch-train adapt {path} --labels FILE --output model.onnx` writes a file that fits"
    )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("keras", ["got keras_tensor: float32 (N, 28, 28, 1)", "no labels in metadata"]),
        ("tf2onnx-savedmodel", ["got input_1:0: float32 (N, 28, 28, 1)", "no labels in metadata"]),
        (
            "torch-batch1",
            [
                "got input.1: float32 (1, 1, 28, 28)",
                "output must be float32 (N, classes), got 19: float32 (1, 3)",
                "the batch is fixed to 1: export it open (dynamic_axes or dynamic_shapes in PyTorch)",
                "no labels in metadata",
            ],
        ),
        ("flat784", ["got bitmaps: uint8 (N, 784)"]),
        (
            "fp16-io",
            [
                "got bitmaps: float16 (N, 28, 28)",
                "got scores: float16 (N, 3)",
                "float16 inside the graph only: convert with keep_io_types=True",
            ],
        ),
        (
            "argmax-int64",
            [
                "output must be float32 (N, classes), got label: int64 (N)",
                "scores are wanted, not labels: options={'zipmap': False}",
            ],
        ),
        ("wrong-label-count", ["6 labels for 3 classes"]),
    ],
)
def test_a_foreign_export_is_told_what_does_not_fit(tmp_path, name, parts):
    """The message for each kind of export names each part that does not fit, in NumPy's names of the types."""
    message = refusal(write_foreign(name, tmp_path / "m.onnx"))
    assert [part for part in parts if part not in message] == []
    assert "tensor(" not in message
    assert message.endswith(" --output model.onnx` writes a file that fits")
    assert (" --labels FILE " in message) == ("labels in metadata" in message or "labels for" in message)
    assert ("export it again, then" in message) == ("scores are wanted" in message)


@pytest.mark.parametrize(
    ("unfit", "batch"),
    [
        ({"input_shape": (1, 28, 28), "rows_out": 1}, 1),
        ({"rows_out": 1}, 1),
        ({"input_shape": (16, 28, 28), "rows_out": 16}, 16),
    ],
)
def test_a_fixed_batch_is_named_with_the_remedy(tmp_path, unfit, batch):
    """A batch size that is fixed in the input, or in the output only, is called a fixed batch."""
    message = refusal(write_model(tmp_path / "b.onnx", **unfit))
    assert message.count(f"the batch is fixed to {batch}: export it open") == 1
    assert "dynamic_axes" in message


def test_a_model_with_an_output_for_each_class_must_be_exported_again(tmp_path):
    """No output of one column can be the scores, so the message asks for no name of one."""
    bitmaps = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 784])
    names = ["o1", "o2", "o3"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in names]
    nodes = [helper.make_node("ReduceMean", ["x"], [name], axes=[1]) for name in names]
    model = helper.make_model(
        helper.make_graph(nodes, "three", [bitmaps], outputs), opset_imports=[helper.make_opsetid("", 13)], ir_version=9
    )
    onnx.save(model, tmp_path / "three.onnx")
    message = refusal(tmp_path / "three.onnx")
    assert "these outputs must be joined into one, float32 (N, classes): o1: float32 (N, 1) and o2" in message
    assert "--scores-output" not in message
    assert ": export it again, then `sketchbatch-train adapt" in message


@pytest.mark.parametrize("shape", [(28, 28), (784,)])
def test_a_model_of_a_single_bitmap_must_be_exported_again(tmp_path, shape):
    """`adapt` cannot add an axis for the rows, so the message does not promise it."""
    message = refusal(write_model(tmp_path / "b.onnx", input_shape=shape))
    assert "the input has no axis for the rows: export it with one" in message
    assert "the batch is fixed" not in message
    assert ": export it again, then `sketchbatch-train adapt" in message


@pytest.mark.parametrize("rows", [1, 16])
def test_a_batch_that_is_open_by_name_only_is_fixed(tmp_path, rows):
    """A model whose Reshape node fixes the batch has a fixed batch, although its input has a name for the batch."""
    path = write_model(tmp_path / "b.onnx")
    model = onnx.load(path)
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([rows, 784]), "shape"))
    onnx.save(model, path)
    assert f"the batch is fixed to {rows}" in refusal(path)


def test_the_command_in_the_message_can_be_copied(tmp_path):
    """A path with a blank is quoted for the shell, and the command does not write over its own source.

    The command asks for labels only if those of the file do not fit.
    """
    path = write_model(tmp_path / "my models" / "model.onnx", labels=None)
    assert f"`sketchbatch-train adapt '{path}' --labels FILE --output adapted.onnx`" in refusal(path)
    path = write_model(tmp_path / "model.onnx", input_type="float32")
    assert f"`sketchbatch-train adapt {path} --output adapted.onnx`" in refusal(path)


@pytest.mark.parametrize(
    ("input_name", "output_name"), [("input_1:0", "scores"), ("bitmaps", "Identity:0"), ("input_1:0", "Identity:0")]
)
def test_the_names_of_one_input_and_one_output_do_not_matter(tmp_path, input_name, output_name):
    """A file with one input and one output that fit is served whatever their names, and its scores are right."""
    path = write_model(tmp_path / "s.onnx", input_name=input_name, output_name=output_name)
    model, drawings = served(path), random_drawings(9)
    assert np.allclose(scores_of(model, drawings), linear_scores(drawings), atol=1e-6)
    assert (model.artifact.names.input, model.artifact.names.scores) == (input_name, output_name)


def test_the_cuda_engine_uses_the_names_of_the_file(tmp_path):
    """The CUDA engine and the session on the CPU for its parity check use the tensor names of the file."""
    model = served(write_model(tmp_path / "s.onnx", input_name="input_1:0", output_name="Identity:0"))
    session, drawings = open_session(model.file.path), random_drawings(5)
    reference = Reference(session, 3, model.artifact.names)
    engine = CudaEngine(session, Device("cpu"), reference, max_batch_rows=8, options=CudaOptions())
    engine.warm_up()
    assert np.allclose(engine.predict(drawings), linear_scores(drawings), atol=1e-6)


def test_the_output_scores_wins_among_several_that_fit(tmp_path):
    """Of several outputs that fit, the one called `scores` has the scores."""
    assert served(write_foreign("two-outputs", tmp_path / "m.onnx")).artifact.names.scores == "scores"


def test_the_number_of_labels_decides_between_outputs_without_that_name(tmp_path):
    """Of several outputs without the name `scores`, the one with a column for each label has the scores."""
    path = write_model(tmp_path / "m.onnx", output_name="probabilities", extra_outputs=("features",))
    assert served(path).artifact.names.scores == "probabilities"


def test_several_outputs_that_fit_equally_are_refused(tmp_path):
    """If two outputs fit equally, the message names both, and how to say which one has the scores."""
    path = write_model(tmp_path / "m.onnx", output_name="a")
    model = onnx.load(path)
    model.graph.node.add(op_type="Identity", input=["a"], output=["b"])
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3]))
    onnx.save(model, path)
    message = refusal(path)
    assert "one of these outputs must be called scores: a: float32 (N, 3) and b: float32 (N, 3)" in message
    assert f"adapt {path} --scores-output NAME --output model.onnx" in message


def test_two_inputs_are_refused(tmp_path):
    """A model with a second input cannot be run, and the message lists both inputs."""
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    message = refusal(path)
    assert "the model must have one input, got bitmaps: uint8 (N, 28, 28) and temperature: float32 (1)" in message
    assert ": export it again, then `sketchbatch-train adapt" in message


def test_the_maps_of_scikit_learn_are_labels_and_not_scores(tmp_path):
    """skl2onnx writes labels and a list of maps by default; the message shows both types, and the option for scores."""
    path = write_model(tmp_path / "m.onnx", output_name="p")
    model = onnx.load(path)
    model.graph.node.add(op_type="ZipMap", domain="ai.onnx.ml", input=["p"], output=["output_probability"])
    model.graph.node[-1].attribute.append(helper.make_attribute("classlabels_strings", ["a", "b", "c"]))
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_value_info("output_probability", kind))
    onnx.save(model, path)
    message = refusal(path)
    assert "got output_probability: seq(map(string,float32));" in message
    assert "scores are wanted, not labels: options={'zipmap': False}" in message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["bear\r", "cat", "dog"], r"label 0 'bear\\r' begins or ends with white space"),
        (["bear", " cat", "dog"], r"label 1 ' cat' begins or ends with white space"),
        (["bear", "cat\u3000", "dog"], r"label 1 'cat\\u3000' begins or ends with white space"),
        (["bear", "ice\ncream", "dog"], r"label 1 'ice\\ncream' contains '\\n'"),
        (["bear", "ice\u00a0cream", "dog"], r"label 1 'ice\\xa0cream' contains '\\xa0'"),
        (["bear", "cat\u200b", "dog"], r"label 1 'cat\\u200b' contains '\\u200b'"),
        (["\ufeffbear", "cat", "dog"], r"label 0 '\\ufeffbear' contains '\\ufeff'"),
        (["bear", "c\x00t", "dog"], r"label 1 'c\\x00t' contains '\\x00'"),
        (["bear", "", "dog"], r"label 1 is empty"),
        (["bear\r", "cat\r", "dog\r"], r"label 0 'bear\\r' .* \(and 2 more\)"),
        (["bear", "cat", "cat"], r"label 2 'cat' occurs twice"),
        (["jos\u00e9", "jose\u0301", "dog"], r"labels 'jos\\xe9' and 'jose\\u0301' are the same in Unicode's NFC"),
    ],
)
def test_labels_that_cannot_be_told_apart_by_eye_are_refused(tmp_path, labels, message):
    """Labels with characters that cannot be seen are refused; the message shows these characters."""
    refused = refusal(write_model(tmp_path / "m.onnx", labels=labels))
    assert re.search(message, refused)
    assert "sketchbatch-train adapt" in refused


@pytest.mark.parametrize(
    "labels",
    [
        ["a,b", 'say "b"', "<b>"],
        ["=1+1", "cat", "CAT"],
        ["ice cream", "jos\u00e9", "\u0642\u0637"],
        ["jose\u0301", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e"],
    ],
)
def test_labels_of_any_script_are_served(tmp_path, labels):
    """Punctuation, capital letters, other scripts, joined emojis and decomposed accents are fine."""
    assert served(write_model(tmp_path / "m.onnx", labels=labels)).artifact.labels == tuple(labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"0": "bear"}), 'sketchbatch.labels must be a JSON list of names, got \'{"0": "bear"}\''),
        (json.dumps([0, 1, 2]), "sketchbatch.labels must be a JSON list of names, got '[0, 1, 2]'"),
        ("[]", "sketchbatch.labels must be a JSON list of names, got '[]'"),
        ("['bear', 'cat']", "sketchbatch.labels must be JSON, got \"['bear', 'cat']\""),
    ],
)
def test_labels_in_another_form_are_refused(tmp_path, text, message):
    """Labels that are not a JSON list of names are shown as they are in the file."""
    assert message in refusal(write_model(tmp_path / "m.onnx", labels=None, metadata={"sketchbatch.labels": text}))
