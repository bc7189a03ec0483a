"""Test that `sketchbatch-train adapt` refuses what it cannot adapt, in one line with the remedy, and writes no file."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from adapted_graphs import (
    divided_by_own_mean,
    even_rows_only,
    four_rows_only,
    hidden_layer,
    logarithm,
    minus_batch_mean,
    reshape_to,
    write_scikit_learn,
)
from adapting import adapt, properties, run_adapt
from foreign_models import FOREIGN, LABELS, write_foreign, write_model
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from sketchbatch_client import errors as client_errors
from sketchbatch_client.errors import DiskFull
from sketchbatch_trainer.adapt import adapting
from sketchbatch_trainer.adapt.source import Source
from sketchbatch_trainer.errors import AdaptRefused, OutputRefused

pytestmark = pytest.mark.timeout(120)  # some cases start Python on busy CPUs


def refusal(source: Path, *flags: object, labels: str = "bear,cat,dog") -> str:
    """Return the message of a refused model; check that it has one line and that no file was written."""
    with pytest.raises(AdaptRefused) as caught:
        adapt(source, *flags, labels=labels)
    message = str(caught.value)
    assert "\n" not in message
    assert "onnxruntime_src" not in message
    assert not (source.parent / "out").exists()
    return message


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"rows_out": 4, "input_shape": (4, 784), "front": four_rows_only}, ["any number of rows", "dynamic_axes"]),
        ({"front": four_rows_only}, ["any number of rows", "dynamic_axes={'bitmaps': {0: 'N'}}", "dynamic_shapes"]),
        ({"front": reshape_to(5, 3, 784)}, ["the model fails on 2 rows", "dynamic_axes"]),
        ({"front": even_rows_only}, ["fails on 1 row", "dynamic_axes"]),
        ({"front": minus_batch_mean, "opset": 13}, ["depend on the other rows", "model.eval()"]),
        ({"front": logarithm}, ["must be finite numbers, got NaN or infinity"]),
        ({"output_type": "int64", "output_name": "label"}, ["got label: int64 (N)", "not the best class or its score"]),
        ({"classes": 6}, ["the model has 6 classes", "there are 3 labels", "scores: float32 (N, 6)"]),
        ({"classes": 1}, ["the model has 1 classes", "one score per class"]),
        ({"input_shape": ("N", 32, 32)}, ["(N, 28, 28), (N, 784)", "got bitmaps: uint8 (N, 32, 32)"]),
        (
            {"input_shape": ("N", 3, 28, 28), "input_type": "float32"},
            ["got bitmaps: float32 (N, 3, 28, 28)", "repeat the one channel", "inside the model, and export it again"],
        ),
        ({"input_type": "int8"}, ["got bitmaps: int8 (N, 28, 28)", "change the type of the pixels inside the model"]),
        ({"input_shape": (28, 28)}, ["no axis for the rows", "got bitmaps: uint8 (28, 28)", "batch axis"]),
        ({"ir": 99}, ["its IR version is 99", "reads", "export it with an older onnx"]),
        ({"opset": 99}, ["its opset is 99", "opset_version"]),
        ({"opset": 5, "ending": ""}, ["its opset is 5"]),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_remedy(tmp_path, model, parts):
    """The message names what was found, what is expected, and how to export the model so that it fits."""
    message = refusal(write_model(tmp_path / "m.onnx", **model))
    assert [part for part in parts if part not in message] == [], message
    assert ("dynamic_axes" in message) == ("dynamic_axes" in parts or "dynamic_shapes" in parts), message


def test_dictionaries_of_scikit_learn_are_refused(tmp_path):
    """skl2onnx writes dictionaries instead of a tensor by default; the message has the option against it."""
    message = refusal(write_scikit_learn(tmp_path / "m.onnx", zipmap=True))
    assert "output_probability: sequence" in message
    assert "options={'zipmap': False}" in message


def test_several_inputs_are_refused(tmp_path):
    """A model of bitmaps has one input."""
    source = write_model(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.input.append(helper.make_tensor_value_info("is_training", TensorProto.BOOL, []))
    onnx.save(model, source)
    assert "must have one input" in (message := refusal(source))
    assert "is_training: bool" in message
    assert "with constants for the other inputs" in message


def test_scores_with_exchanged_axes_are_refused(tmp_path):
    """Scores of the shape (classes, rows) would be exchanged in every batch; the message says what to do."""
    source = write_model(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.node.append(helper.make_node("Transpose", ["scores"], ["transposed"], perm=[1, 0]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("transposed", TensorProto.FLOAT, [3, "N"]))
    onnx.save(model, source)
    assert "one column per drawing: transpose the scores inside the model" in refusal(source)


def test_dynamic_quantisation_is_refused(tmp_path):
    """Its scores of a drawing depend on the largest value in the batch: the service would refuse the file."""
    source = write_model(tmp_path / "m.onnx", **FOREIGN["torch"] | {"front": hidden_layer})
    quantize_dynamic(source, tmp_path / "quantised.onnx")
    assert "depend on the other rows or on chance" in (message := refusal(tmp_path / "quantised.onnx"))
    assert "without dynamic quantisation" in message


def test_missing_labels_are_counted(tmp_path):
    """Without labels, the message says how many names the model needs."""
    source = write_foreign("torch", tmp_path / "m.onnx")
    assert "--labels is missing: the model has 3 classes" in refusal(source, labels="")


def test_two_fitting_outputs_need_a_name(tmp_path):
    """If the command cannot tell which output has the scores, the user names it; a wrong name causes a list of all."""
    labels = ",".join(map(str, range(784)))
    source = write_model(tmp_path / "m.onnx", labels=None, classes=784, extra_outputs=("features",))
    assert "scores, features; name one with --scores-output" in refusal(source, labels=labels)
    message = refusal(source, "--scores-output", "probs", labels=labels)
    assert message == "--scores-output must be one of scores, features, got 'probs'"


def test_missing_external_data_are_named(tmp_path):
    """Weights in another file must be in the folder of the model."""
    source = write_foreign("torch-external", tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    assert "m.onnx.data is missing" in refusal(source)


@pytest.mark.parametrize("scale", ["1", "1/0", "0..0", "0.1307", "1,0", "nan", "x", "1e-60"])
def test_a_scale_must_have_one_of_three_forms(tmp_path, scale):
    """`--scale` is a factor, a range or mean and standard deviation; a number alone is a factor."""
    source = write_foreign("torch", tmp_path / "m.onnx")
    if scale in ("1", "0.1307"):
        adapt(source, "--scale", scale)
    else:
        assert f"0.1307,0.3081, got '{scale}'" in refusal(source, "--scale", scale)


@pytest.mark.parametrize(
    ("scale", "remedy"),
    [
        ("255", "would multiply the pixels by 255; to divide them, write 1/255"),
        ("33.3,78.6", "divide those of pixels in 0..255 by 255"),
        ("0.5,-0.5", "0 to 1 each"),
    ],
)
def test_an_implausible_scale_is_refused(tmp_path, scale, remedy):
    """A factor above 1, and a mean or deviation of pixels in 0..255, would give the model nearly constant input."""
    source = write_foreign("torch", tmp_path / "m.onnx")
    assert remedy in refusal(source, "--scale", scale)


def test_labels_in_another_order_than_in_the_model_are_refused(tmp_path):
    """If the model states its own names, the same names in another order would exchange the classes."""
    source = write_scikit_learn(tmp_path / "m.onnx")
    reason = "LinearClassifier of the model has the same names in the order bear, cat, dog: leave --labels out"
    assert reason in refusal(source, "--labels", "dog,cat,bear")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("pipe", "must be a regular file, got a device or a pipe"),
        ("m.onnx", "must be another file than those of the source"),
        ("m.onnx.data", "must be another file than those of the source"),
        ("m.onnx/model.onnx", "m.onnx is a file, not a folder"),
    ],
)
def test_the_output_replaces_no_device_and_no_file_of_the_source(tmp_path, output, reason):
    """The output must be a new or a regular file, and neither the source nor the file of its weights."""
    source = write_foreign("torch-external", tmp_path / "m.onnx")
    weights = (tmp_path / "m.onnx.data").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AdaptRefused, match=reason):
        run_adapt(source, "--output", tmp_path / output, "--labels", "ant,bee,cow")
    assert (tmp_path / "m.onnx.data").read_bytes() == weights
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("other", ["drawings", "another model"])
def test_the_output_replaces_only_model_files_of_sketchbatch(tmp_path, other):
    """A file of another program stays; an earlier output of the command is replaced."""
    source, output = write_foreign("torch", tmp_path / "m.onnx"), tmp_path / "out.onnx"
    if other == "drawings":
        output.write_bytes(b"\x93NUMPY\x01\x00 drawings")
    else:
        write_foreign("keras", output)
    before = output.read_bytes()
    refusals = (OutputRefused, client_errors.OutputRefused)
    with pytest.raises(refusals, match=r"out\.onnx: (exists, and is no model|expected an exported model, got)"):
        run_adapt(source, "--output", output, "--labels", "ant,bee,cow")
    assert output.read_bytes() == before
    output.unlink()
    for _ in range(2):
        run_adapt(source, "--output", output, "--labels", "ant,bee,cow")


def test_a_model_without_scores_of_a_blank_drawing_is_refused(tmp_path):
    """A model that divides by the deviation of each drawing has no scores of a blank one; the service refuses it."""
    source = write_model(tmp_path / "m.onnx", front=divided_by_own_mean, opset=13)
    assert "the scores of a blank drawing, or of one of ink only, are not finite" in refusal(source)


def test_pixels_of_an_integer_input_have_no_scale(tmp_path):
    """An input of integers receives 0 to 255; a scale would be lost in rounding."""
    source = write_foreign("fits", tmp_path / "m.onnx")
    assert "leave --scale out" in refusal(source, "--scale", "1/255")


def test_a_layout_must_fit_the_declared_shape(tmp_path):
    """`--layout` chooses among the layouts that the input allows."""
    source = write_foreign("keras", tmp_path / "m.onnx")
    assert "needs an input of the shape (N, 1, 28, 28)" in refusal(source, "--layout", "nchw")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"", "empty"),
        (b"no model", "unknown kind"),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path, content, kind):
    """The first bytes tell what the file is."""
    source = tmp_path / "m.onnx"
    source.write_bytes(content)
    message = refusal(source)
    assert message.startswith(f"{source}: expected a model, got ")
    assert kind in message


def test_a_keras_file_that_is_none_is_named_before_tensorflow_is_imported(tmp_path):
    """A pointer of git LFS under the name of a Keras file is refused at once."""
    source = tmp_path / "m.keras"
    source.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "expected a model, got a git LFS pointer" in refusal(source)


def test_paths_are_checked(tmp_path):
    """The source must exist; the output must be another file."""
    assert refusal(tmp_path / "none.onnx") == f"{tmp_path / 'none.onnx'}: no such file or folder"
    source = write_foreign("fits", tmp_path / "m.onnx")
    content = source.read_bytes()
    for output in (source, tmp_path):
        with pytest.raises(AdaptRefused, match="--output"):
            run_adapt(source, "--output", output, "--labels", "bear,cat,dog")
    assert source.read_bytes() == content


def test_a_model_with_other_scores_than_its_source_is_not_written(tmp_path, monkeypatch):
    """The comparison with the source decides: if it fails, an existing file stays as it is."""
    source = write_foreign("fits", tmp_path / "m.onnx")
    before = adapt(source).read_bytes()
    wrong = Source(onnx.load(source), lambda values, output: np.full((len(values), 3), 1 / 3), "changed")
    monkeypatch.setattr(adapting, "read", lambda path: wrong)
    with pytest.raises(AdaptRefused, match="not equal to its source: scores differ"):
        adapt(source)
    assert (tmp_path / "out" / "m.onnx").read_bytes() == before


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """The file is replaced as a whole; a partial file is removed."""
    source = write_foreign("fits", tmp_path / "m.onnx")
    adapted = adapt(source)
    before = adapted.read_bytes()

    def half_written(model, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(onnx, "save", half_written)
    with pytest.raises(DiskFull):
        adapt(source)
    assert adapted.read_bytes() == before
    assert [each.name for each in adapted.parent.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "bear\ncat\r\ndog\n"),
        ("labels.txt", "\ufeffbear\ncat\ndog"),
        ("labels.txt", "0 bear\n1 cat\n2 dog\n"),
        ("labels.json", '["bear", "cat", "dog"]'),
        ("names.json", '{"0": "bear", "2": "dog", "1": "cat"}'),
        ("names.txt", "{0: 'bear', 1: 'cat', 2: 'dog'}"),
        ("classes.json", '{"bear": 0, "cat": 1, "dog": 2}'),
    ],
)
def test_labels_are_read_from_files(tmp_path, name, text):
    """A file has one name per line, with its number or without, a JSON list, or a dictionary of index and name."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    adapted = adapt(write_foreign("torch", tmp_path / "m.onnx"), labels=str(tmp_path / name))
    assert json.loads(properties(adapted)["sketchbatch.labels"]) == list(LABELS)


def test_labels_of_ultralytics_are_found_in_the_model(tmp_path):
    """Without `--labels`, the names in the metadata of the model are used."""
    metadata = {"names": "{0: 'bear', 1: 'cat', 2: 'dog'}"}
    adapted = adapt(write_model(tmp_path / "m.onnx", labels=None, metadata=metadata), labels="")
    assert json.loads(properties(adapted)["sketchbatch.labels"]) == list(LABELS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('["bear", "", "dog"]', "label 1 is empty"),
        ('["bear", "cat\\r", "dog"]', "label 1 'cat\\r' begins or ends with white space"),
        ('["bear", "c\\u200bat", "dog"]', "label 1 'c\\u200bat' contains '\\u200b'"),
        ('["\\u00e9", "e\\u0301", "dog"]', "are the same in Unicode's NFC form"),
        ('["bear", "cat", "cat"]', "label 2 'cat' occurs twice"),
        ("{{}}", "must be a list or a dictionary of names, got '{{}}'"),
        ("[]", "the list is empty, write one name per line"),
        ("[0, 1, 2]", "each name must be text, got 0"),
        ('{"0": "bear", "1": "cat", "3": "dog"}', "the indices must be 0 to 2, got 0, 1, 3"),
        ("[bear", "must be a list or a dictionary of names, got '[bear'"),
        ("bear\ncat", "the model has 3 classes, and there are 2 labels"),
    ],
)
def test_odd_labels_are_refused(tmp_path, text, problem):
    """Names must be different, and must not be empty or have control characters or outer white space."""
    (tmp_path / "labels").write_text(text)
    assert problem in refusal(write_foreign("torch", tmp_path / "m.onnx"), labels=str(tmp_path / "labels"))


def test_a_missing_labels_file_is_named(tmp_path):
    """A value that looks like a path is not taken as a name."""
    source = write_foreign("torch", tmp_path / "m.onnx")
    assert refusal(source, labels="labels.txt") == "--labels labels.txt: no such file"


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from sketchbatch_trainer.cli import main
main()
"""


@pytest.mark.parametrize(
    ("blocked", "command", "message"),
    [
        ({"tensorflow", "keras", "tf2onnx", "h5py", "tensorboard"}, ["adapt", "m.onnx"], ""),
        ({"onnx"}, ["adapt", "m.onnx"], "onnx is not installed: pip install 'sketchbatch-trainer[adapt]'"),
        ({"keras"}, ["export", "--run", "r"], "keras is not installed: pip install 'sketchbatch-trainer[train]'"),
        (
            {"matplotlib"},
            ["explore", "--output", "o.html"],
            "matplotlib is not installed: pip install 'sketchbatch-trainer[explore]'",
        ),
        ({"onnx"}, ["train", "--run", "r"], "onnx is not installed: pip install 'sketchbatch-trainer[train]'"),
        ({"onnx"}, ["report", "--run", "r"], "onnx is not installed: pip install 'sketchbatch-trainer[train]'"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, blocked, command, message):
    """An .onnx file needs no TensorFlow. A command that lacks packages names the extra that installs them."""
    write_foreign("torch", tmp_path / "m.onnx")
    flags = ["--labels", "bear,cat,dog", "--output", "out/m.onnx"] if command[0] == "adapt" else []
    program = [sys.executable, "-c", BLOCKER.format(blocked=blocked), *command, *flags]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    way = ", or in a checkout `make setup`, which installs .venv"
    assert result.stderr == (f"sketchbatch-train: {message}{way}\n" if message else "")
    assert result.returncode == bool(message)
    assert (tmp_path / "out" / "m.onnx").is_file() == (not message)
