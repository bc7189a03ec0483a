"""Training and export: repeatable, balanced, refused when ONNX and Keras disagree."""

import csv
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sketchbatch_trainer import export as exporting
from sketchbatch_trainer.drawings import read_drawings, write_bitmaps, write_source
from sketchbatch_trainer.errors import ExportRefused, RunIncomplete
from sketchbatch_trainer.export import compare, export
from sketchbatch_trainer.recipes import ARTICLE
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.sketches import SOURCE, draw

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # TensorFlow's and Keras's own
]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Synthetic sketches, few and uneven."""
    folder = tmp_path_factory.mktemp("sketches")
    for rows, label in ((30, "bear"), (90, "cat"), (60, "dog")):
        write_bitmaps(folder / f"{label}.npy", draw(label, rows, seed=0))
    write_source(folder, SOURCE)
    return read_drawings(folder, ("bear", "cat", "dog"))


def trained(drawings, folder, seed=0) -> Run:
    """A run of two epochs."""
    from sketchbatch_trainer.training import train

    run = Run(folder)
    train(drawings, replace(ARTICLE, max_epochs=2, batch_rows=32), run, seed=seed)
    return run


def weights(run: Run):
    """All of a run's weights in one array."""
    import keras

    return np.concatenate([each.ravel() for each in keras.saving.load_model(run.keras).get_weights()])


@pytest.fixture(scope="module")
def run(drawings, tmp_path_factory) -> Run:
    """One run, trained."""
    return trained(drawings, tmp_path_factory.mktemp("run"))


def test_same_seed_and_drawings_give_the_same_weights(drawings, run, tmp_path):
    """Bit for bit; another seed gives others."""
    assert np.array_equal(weights(run), weights(trained(drawings, tmp_path / "again")))
    assert not np.array_equal(weights(run), weights(trained(drawings, tmp_path / "other", seed=1)))


def test_the_network_is_the_articles(run):
    """Two convolutions, one max-pool, two dense layers each with L2, batch normalisation and dropout, then softmax."""
    import keras

    layers = keras.saving.load_model(run.keras).layers
    assert [type(layer).__name__ for layer in layers] == [
        "InputLayer", "Rescaling", "Reshape", "Conv2D", "Conv2D", "MaxPooling2D", "StaticFlatten",
        "Dense", "BatchNormalization", "Dropout", "Dense", "BatchNormalization", "Dropout", "Dense",
    ]  # fmt: skip
    dense = [layer for layer in layers if type(layer).__name__ == "Dense"]
    assert [layer.kernel_regularizer is not None for layer in dense] == [True, True, False]


def test_every_class_weighs_the_same():
    """Rare classes count more, so that weight times rows is equal; the mean weight of a row is 1."""
    from sketchbatch_trainer.training import class_weights

    class_index = np.repeat([0, 1, 2], [10, 40, 50])
    found = class_weights(class_index)
    assert [found[0] * 10, found[1] * 40, found[2] * 50] == pytest.approx([100 / 3] * 3)
    assert np.mean([found[index] for index in class_index]) == pytest.approx(1)


def test_training_stops_when_validation_no_longer_gains(drawings, tmp_path):
    """`patience` epochs after the best one, whose weights are kept."""
    import keras
    from sketchbatch_trainer.training import train

    run = Run(tmp_path)
    hasty = replace(ARTICLE, max_epochs=40, batch_rows=32, learning_rate=0.1, patience=1)
    train(drawings, hasty, run, seed=0)
    with run.history.open() as file:
        losses = [float(line["val_loss"]) for line in csv.DictReader(file)]
    assert len(losses) == int(np.argmin(losses)) + 2 < 40
    model = keras.saving.load_model(run.keras)
    kept = model.evaluate(drawings.validation.bitmaps, drawings.validation.class_index, verbose=0)[0]
    assert kept == pytest.approx(min(losses), rel=1e-3)


def test_training_again_removes_what_the_last_run_left(drawings, tmp_path):
    """No later step takes an old model, score or report for the new one's."""
    run = Run(tmp_path)
    (tmp_path / "test").mkdir()
    stale = [run.onnx, run.scores, run.metrics, run.report, run.test / "zebra.npy"]
    for path in stale:
        path.write_text("old")
    trained(drawings, tmp_path)
    assert not [path for path in stale if path.exists()]


def test_rare_classes_count_as_much_in_the_loss(drawings, tmp_path, run, monkeypatch):
    """Without the weights the same training ends elsewhere."""
    import sketchbatch_trainer.training as training

    monkeypatch.setattr(training, "class_weights", lambda class_index: None)
    assert not np.array_equal(weights(run), weights(trained(drawings, tmp_path)))


def test_a_run_says_what_made_it(drawings, run):
    """History of each epoch, configuration, held-out drawings."""
    with run.history.open() as file:
        history = list(csv.DictReader(file))
    assert list(history[0]) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert len(history) == 2
    config = run.read_config()
    assert config["name"] == "synthetic-bear-cat-dog"
    assert (config["source"], config["data_digest"], config["seed"]) == (SOURCE, drawings.digest, 0)
    assert config["rows"]["test"] == sum(len(np.load(path)) for path in run.test.glob("*.npy"))


def test_the_exported_file_describes_itself_and_agrees_with_keras(drawings, run):
    """One file: uint8 in, softmax out, any number of rows, labels and all the rest in metadata_props."""
    import keras

    parity = export(run, version=3, licence="CC0")
    assert 0 <= parity.max_difference <= 1e-4
    session = ort.InferenceSession(run.onnx, providers=["CPUExecutionProvider"])
    bitmaps = drawings.test.bitmaps
    scores = session.run(["scores"], {"bitmaps": bitmaps})[0]
    operators = {node.op_type for node in onnx.load(run.onnx).graph.node}
    assert not operators & {"Shape", "Gather", "Slice", "Concat"}  # nothing that must run on the CPU
    assert np.abs(scores - keras.saving.load_model(run.keras).predict(bitmaps, verbose=0)).max() <= 1e-4
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert session.run(["scores"], {"bitmaps": bitmaps[:1]})[0].shape == (1, 3)
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["sketchbatch.labels"]) == ["bear", "cat", "dog"]
    assert (described["sketchbatch.version"], described["sketchbatch.licence"]) == ("3", "CC0")
    assert described["sketchbatch.data_digest"] == drawings.digest
    accuracy = (scores.argmax(axis=1) == drawings.test.class_index).mean()
    assert json.loads(described["sketchbatch.metrics"])["accuracy"] == pytest.approx(accuracy)
    assert json.loads(described["sketchbatch.config"])["seed"] == 0


def test_export_refuses_when_onnx_and_keras_disagree(run, monkeypatch):
    """A graph whose last bias is off is never written, and the old file does not stay to be taken for it."""
    export(run)
    convert = exporting.to_onnx

    def off(model) -> onnx.ModelProto:
        graph = convert(model)
        bias = next(i for i in graph.graph.initializer if i.dims == [3])
        values = onnx.numpy_helper.to_array(bias) + np.array([1, 0, 0], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return graph

    monkeypatch.setattr(exporting, "to_onnx", off)
    with pytest.raises(ExportRefused, match=r"differ by at most .* \(limit 1e-04\)"):
        export(run)
    assert not run.onnx.exists()
    assert not list(run.folder.glob(".*"))


def test_scores_that_are_no_numbers_are_refused():
    """NaN is not within any tolerance."""
    with pytest.raises(ExportRefused):
        compare(np.zeros((2, 3)), np.full((2, 3), np.nan))


def test_a_step_out_of_order_names_the_one_to_run_first(tmp_path):
    """The message is the command."""
    with pytest.raises(RunIncomplete, match="first run: sketchbatch-train train"):
        export(Run(tmp_path))
