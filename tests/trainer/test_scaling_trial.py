"""Test that `sketchbatch-train adapt` shows a wrong scaling, and raises no alarm for the right one.

The models are trained here on synthetic sketches, each on pixels of another scaling; TensorFlow is not needed.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from adapted_graphs import divided_by_first_pixel_minus_7
from adapting import run_adapt
from foreign_models import LABELS, write_model
from onnx import TensorProto, helper, numpy_helper
from sketchbatch_client.errors import FileRefused
from sketchbatch_trainer.adapt.scaling import CANDIDATES, Scaling
from sketchbatch_trainer.adapt.trial_drawings import MAX_DRAWINGS, read_drawings
from sketchbatch_trainer.synthetic import draw
from sklearn.linear_model import LogisticRegression

ROWS = 100  # of each class


@pytest.fixture(scope="module")
def sketches() -> np.ndarray:
    """Return sketches of all classes for the training: uint8, (rows, 784), sorted by class."""
    return np.concatenate([draw(label, ROWS, seed=5) for label in LABELS]).reshape(-1, 784)


class Trained:
    """A linear model, trained on pixels of 0 to 1; it can be written as if it was trained on pixels of any scaling."""

    def __init__(self, sketches: np.ndarray, *, bias: bool) -> None:
        model = LogisticRegression(max_iter=200, fit_intercept=bias)
        model.fit(sketches / 255, np.repeat(range(len(LABELS)), ROWS))
        self.weights = model.coef_.T  # (784, 3)
        self.bias = np.broadcast_to(model.intercept_, 3)

    def write(self, path: Path, scaling: Scaling, *, ending: str = "Softmax") -> Path:
        """Write a model with the same scores for pixels of `scaling`: float32 (N, 784) -> (N, 3)."""
        slope, offset = scaling.affine
        weights = self.weights / (255 * slope)
        constants = {"w": weights, "b": self.bias - offset * weights.sum(axis=0)}
        initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["logits"]), helper.make_node(ending, ["logits"], ["y"])]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 784])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
        graph = helper.make_graph(nodes, "g", [x], [y], initializers)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        return path


@pytest.fixture(scope="module")
def trained(sketches) -> Trained:
    """Return a trained model."""
    return Trained(sketches, bias=True)


def report(source: Path, *flags: object) -> str:
    """Return what the command prints."""
    return run_adapt(source, "--labels", ",".join(LABELS), "--output", source.parent / "out.onnx", *flags)


def flags_of(scaling: Scaling) -> list[str]:
    """Return the flags of the command that select a scaling."""
    return ["--scale", scaling.text, *(["--invert"] if scaling.invert else [])]


def warning_in(text: str) -> str:
    """Return the line of the report that warns of the scaling; empty if there is none."""
    return next((line for line in text.splitlines() if line.startswith("WARNING")), "")


@pytest.mark.parametrize("scaling", [*CANDIDATES[::2], CANDIDATES[1]], ids=lambda scaling: scaling.flags)
def test_the_right_scaling_raises_no_alarm(tmp_path, trained, scaling):
    """A model that receives its pixels as in its training is right on most sketches, and no line warns."""
    text = report(trained.write(tmp_path / "m.onnx", scaling), *flags_of(scaling))
    assert warning_in(text) == ""
    [row] = [line for line in text.splitlines() if line.endswith("<- chosen")]
    assert float(row.partition("%")[0].split()[-1]) > 90


@pytest.mark.parametrize(
    ("of_training", "stated", "proposed"),
    [
        ("1/255", "0..255", "--scale 1/255"),
        ("0..255", "1/255", "--scale 0..255"),
        ("-1..1", "0..255", "--scale -1..1"),
    ],
)
def test_another_scaling_is_proposed_if_the_stated_one_is_wrong(tmp_path, trained, of_training, stated, proposed):
    """A wrong factor is seen at once, also where the accuracy alone does not show it."""
    source = trained.write(tmp_path / "m.onnx", Scaling.parse(of_training))
    assert f"run again with {proposed}, unless" in warning_in(report(source, "--scale", stated))


@pytest.mark.parametrize("is_inverted", [False, True])
def test_a_wrong_inversion_is_seen(tmp_path, trained, is_inverted):
    """A model of dark ink on white paper needs --invert, another one must not have it."""
    source = trained.write(tmp_path / "m.onnx", Scaling(invert=is_inverted))
    text = report(source, *([] if is_inverted else ["--invert"]))
    assert f"run again with --scale 1/255{' --invert' if is_inverted else ''}, unless" in warning_in(text)


def test_a_wrong_factor_that_leaves_the_accuracy_as_it_is(tmp_path, sketches):
    """Without a bias, a linear model ranks the classes alike at 0..1 and 0..255: then saturated scores warn."""
    source = Trained(sketches, bias=False).write(tmp_path / "m.onnx", Scaling())
    assert warning_in(report(source)) == ""
    warning = warning_in(report(source, "--scale", "0..255"))
    assert "with --scale 0..255 almost every score is 0 or 1, with --scale 1/255" in warning
    assert "run again with --scale 1/255" in warning


def test_scores_that_are_no_shares_are_compared_by_accuracy_alone(tmp_path, trained):
    """Independent scores have no column for the highest score, and a wrong inversion still shows."""
    source = trained.write(tmp_path / "m.onnx", Scaling(), ending="Sigmoid")
    text = report(source, "--invert")
    assert "run again with --scale 1/255, unless" in warning_in(text)
    [row] = [line for line in text.splitlines() if line.endswith("<- chosen")]
    assert row.split()[-3].endswith("%")


def test_sketches_prove_nothing_about_a_model_of_other_drawings(tmp_path, sketches):
    """The command says that it cannot tell, instead of proposing the best of bad scalings."""
    other = Trained(np.random.default_rng(0).permuted(sketches, axis=1), bias=True)
    text = report(other.write(tmp_path / "m.onnx", Scaling()))
    assert warning_in(text) == ""
    assert "note:     the model knows few of the sketches: compare on drawings of your own   [--drawings]" in text


def test_drawings_of_a_folder(tmp_path, trained, sketches):
    """`--drawings FOLDER` takes an equal number per label, and drawings of other labels are left out."""
    for index, label in enumerate(LABELS):
        np.save(tmp_path / f"{label}.npy", np.tile(sketches[index * ROWS : (index + 1) * ROWS], (5, 1)))
    np.save(tmp_path / "unknown.npy", sketches[:1])
    drawings = read_drawings(tmp_path, (*LABELS, "fox"))
    assert np.bincount(drawings.class_index).tolist() == [MAX_DRAWINGS // 3] * 3
    (tmp_path / "model").mkdir()
    source = trained.write(tmp_path / "model" / "m.onnx", Scaling(invert=True))
    text = report(source, "--drawings", tmp_path)
    assert f"of each scaling on 999 drawings (drawings in the folder {tmp_path.name})" in text
    assert "run again with --scale 1/255 --invert" in warning_in(text)


def test_drawings_without_finite_scores_are_counted(tmp_path, sketches):
    """The command warns of drawings for which the service would return an error."""
    with_a_seven = sketches.copy()
    with_a_seven[:, 0] = [7, *[0] * (len(sketches) - 1)]
    for index, label in enumerate(LABELS):
        np.save(tmp_path / f"{label}.npy", with_a_seven[index * ROWS : (index + 1) * ROWS])
    (tmp_path / "model").mkdir()
    source = write_model(tmp_path / "model" / "m.onnx", front=divided_by_first_pixel_minus_7)
    text = report(source, "--drawings", tmp_path)
    assert "1 of 300 drawings have scores that are NaN or infinite" in warning_in(text)


def test_a_folder_with_drawings_of_other_labels_is_refused(tmp_path, trained, sketches):
    """No file is written if the scalings cannot be compared as requested."""
    np.save(tmp_path / "fox.npy", sketches[:1])
    (tmp_path / "model").mkdir()
    source = trained.write(tmp_path / "model" / "m.onnx", Scaling())
    with pytest.raises(FileRefused, match="expected drawings of bear, cat, dog, got fox"):
        report(source, "--drawings", tmp_path)
    assert not (tmp_path / "model" / "out.onnx").exists()


def test_more_labels_than_drawings(tmp_path):
    """With thousands of labels, the drawings are of labels at equal distances, one of each."""
    labels = tuple(f"class {number:04}" for number in range(MAX_DRAWINGS + 5))
    for label in labels:
        np.save(tmp_path / f"{label}.npy", np.zeros((2, 784), np.uint8))
    drawings = read_drawings(tmp_path, labels)
    assert 0 < len(drawings.bitmaps) <= MAX_DRAWINGS
    assert drawings.class_index.tolist() == list(range(0, len(labels), 2))
