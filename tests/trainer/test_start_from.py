"""Test that a training can start from an exported model file, with the same scores and fitting batch statistics."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_models import write_foreign
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset, write_bitmaps, write_source
from sketchbatch_trainer.errors import RunRefused
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.synthetic import LABELS, SOURCE, draw
from sketchbatch_trainer.train.recipes import COMPACT, FINETUNE, NETWORKS, fit_rows
from sketchbatch_trainer.train.starting_point import ModelFile, find_start, fit_recipe

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = ("quickdraw-345", "animals-10", "bear-cat-dog")


def shipped(name: str) -> ModelFile:
    """Return the shipped model file of a name."""
    return ModelFile(MODELS / name / "1" / "model.onnx")


@pytest.fixture(scope="module")
def sketches():
    """Return 150 synthetic sketches of three kinds: uint8, (150, 28, 28)."""
    return np.concatenate([draw(label, 50, seed=0) for label in LABELS])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Return a dataset of few synthetic sketches, which has three splits."""
    folder = tmp_path_factory.mktemp("sketches")
    for label in LABELS:
        write_bitmaps(folder / f"{label}.npy", draw(label, 30, seed=0))
    write_source(folder, SOURCE)
    return read_dataset(DatasetRequest(folder=folder, labels=LABELS))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_rebuilt_network_has_the_scores_of_its_file(name, sketches):
    """The Keras network that is rebuilt from a shipped file returns the file's scores within 1e-5."""
    from sketchbatch_trainer.train.onnx_weights import rebuild

    model = rebuild(shipped(name), sketches[::2])
    expected = ort.InferenceSession(shipped(name).path).run(["scores"], {"bitmaps": sketches})[0]
    assert np.abs(np.asarray(model(sketches, training=False)) - expected).max() < 1e-5


def test_a_rebuilt_network_runs_the_same_function_in_training(sketches):
    """In training mode, on the drawings of the statistics, a rebuilt network without dropout has the file's scores.

    Training normalises with the statistics of the batch. So its first step would otherwise change every score.
    """
    from sketchbatch_trainer.train.networks import build
    from sketchbatch_trainer.train.onnx_weights import load_weights
    from sketchbatch_trainer.train.starting_point import network_of

    file = shipped("animals-10")
    model = build(replace(network_of(file), dropout=0.0), 10)
    load_weights(model, file.read_graph(), sketches)
    inference, training = (np.asarray(model(sketches, training=flag)) for flag in (False, True))
    assert np.abs(training - inference).max() < 1e-3


def test_a_training_starts_from_a_shipped_file(dataset, tmp_path):
    """A training that starts from a file begins with the file's weights, and records the file in its config.

    The last layer is copied class by class, because the file has all labels of the training.
    """
    import keras
    import tensorflow as tf
    from sketchbatch_trainer.train.training import TrainingRequest, train

    class Silent:
        on_start = on_step = on_epoch = lambda *_: None

    start = find_start(MODELS / "animals-10")
    frozen = replace(fit_recipe(FINETUNE, None, start), learning_rate=0.0, average_decay=0.0, max_epochs=1)
    request = TrainingRequest(dataset=dataset, recipe=frozen, seed=0, start_from=start)
    tf.config.run_functions_eagerly(True)
    try:
        train(request, Run(tmp_path), Silent())
    finally:
        tf.config.run_functions_eagerly(False)
    graph = start.read_graph()
    last = next(onnx.numpy_helper.to_array(each) for each in graph.graph.initializer if "logits" in each.name)
    columns = [start.read_config()["labels"].index(label) for label in LABELS]
    trained = keras.saving.load_model(Run(tmp_path).keras, compile=False).get_layer("logits").get_weights()[0]
    assert np.array_equal(trained, last[:, columns])
    origin = Run(tmp_path).read_config()["start_from"]
    assert origin == {"name": "animals-10", "recipe": "finetune", "seed": 0, "file_digest": start.digest()}


def test_a_changed_file_is_refused(tmp_path, sketches):
    """A file whose graph no longer computes the network of its config is refused, and so are files of other tools."""
    from sketchbatch_trainer.train.onnx_weights import rebuild

    graph = shipped("bear-cat-dog").read_graph()
    first_relu = next(node for node in graph.graph.node if node.op_type == "Relu")
    first_relu.op_type = "Sigmoid"
    onnx.save(graph, tmp_path / "changed.onnx")
    with pytest.raises(RunRefused, match="its scores and those of the rebuilt network differ by"):
        rebuild(ModelFile(tmp_path / "changed.onnx"), sketches)
    for each in graph.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT:
            each.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each).astype(np.float16), each.name))
    onnx.save(graph, tmp_path / "float16.onnx")
    with pytest.raises(RunRefused, match=r"not an unchanged float32 file .* got \[\('float16'"):
        rebuild(ModelFile(tmp_path / "float16.onnx"), sketches)


def test_a_start_is_a_run_a_file_or_the_highest_version_of_a_folder(tmp_path):
    """`find_start` accepts a run folder, a model file, and a folder NAME with VERSION/model.onnx."""
    file = MODELS / "bear-cat-dog" / "1" / "model.onnx"
    for version in ("2", "10", "old"):
        (tmp_path / "named" / version).mkdir(parents=True)
    for version in ("2", "10"):
        shutil.copyfile(file, tmp_path / "named" / version / "model.onnx")
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.config.write_text("{}")
    assert find_start(run.folder) == run
    shutil.copyfile(file, run.onnx)
    assert find_start(run.folder) == ModelFile(run.onnx)
    run.keras.write_bytes(b"")
    assert find_start(run.folder) == run
    assert find_start(file) == ModelFile(file)
    assert find_start(tmp_path / "named") == ModelFile(tmp_path / "named" / "10" / "model.onnx")
    with pytest.raises(RunRefused, match="no such file or folder; start from a run folder, the folder models/quick"):
        find_start(tmp_path / "none")
    with pytest.raises(RunRefused, match=r"holds the models animals-10, bear-cat-dog, quickdraw-345: name one of them"):
        find_start(MODELS)
    with pytest.raises(RunRefused, match="holds no run and no file VERSION/model"):
        find_start(tmp_path / "named" / "old")


def test_files_that_are_not_models_are_refused_in_one_line(tmp_path):
    """A file that is not ONNX, and an ONNX file without a network of this project, are refused in one line."""
    (tmp_path / "page.onnx").write_text("<html>not found</html>")
    with pytest.raises(RunRefused, match=r"page\.onnx: not an ONNX model that can be read"):
        find_start(tmp_path / "page.onnx").read_config()
    with pytest.raises(RunRefused, match="a training cannot start from it; start from a run folder"):
        find_start(write_foreign("torch", tmp_path / "torch.onnx")).read_config()


def test_the_network_follows_from_the_start():
    """Without `--network`, a recipe has the network of its start, with the dropout of the recipe."""
    light = fit_recipe(FINETUNE, None, shipped("bear-cat-dog")).network
    assert light == replace(NETWORKS["light"], dropout=FINETUNE.network.dropout)
    assert fit_recipe(FINETUNE, None, shipped("quickdraw-345")) == FINETUNE
    assert fit_recipe(COMPACT, None, None) == COMPACT


def test_few_drawings_get_smaller_batches_and_more_epochs():
    """A recipe has at least `min_epoch_steps` steps of 32 rows or more per epoch, and at least `min_steps` steps."""
    recipe = replace(FINETUNE, batch_rows=128, min_epoch_steps=8, min_steps=150, max_epochs=24)
    fitted = {rows: fit_rows(recipe, rows) for rows in (40, 200, 800, 20_000)}
    assert {rows: each.batch_rows for rows, each in fitted.items()} == {40: 32, 200: 32, 800: 100, 20_000: 128}
    assert {rows: each.max_epochs for rows, each in fitted.items()} == {40: 75, 200: 24, 800: 24, 20_000: 24}


def test_finetune_without_a_start_is_an_error(tmp_path):
    """Without a start, `--recipe finetune` ends with one line that names the shipped model and the option."""
    program = "from sketchbatch_trainer.cli import main; main()"
    command = [sys.executable, "-c", program, "train", "--recipe", "finetune", "--run", str(tmp_path / "run")]
    finished = subprocess.run([*command, "--data", str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr == (
        "sketchbatch-train: recipe finetune needs initial weights: add --start-from models/quickdraw-345 (the shipped "
        "model of 345 classes), or another run or model.onnx; recipe compact starts from random weights\n"
    )
    assert not (tmp_path / "run").exists()


def test_config_of_shipped_files_states_their_labels():
    """The config of each shipped file has the labels of the file, because the last layer is copied by them."""
    for name in SHIPPED:
        graph = shipped(name).read_graph()
        labels = {each.key: each.value for each in graph.metadata_props}["sketchbatch.labels"]
        assert shipped(name).read_config()["labels"] == json.loads(labels)
