"""Test that a training can start from a model file, with the same scores and with batch statistics that fit."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_models import write_foreign, write_model
from kinds_of_files import zipped
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset, write_bitmaps, write_source
from sketchbatch_trainer.errors import RunRefused
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.synthetic import LABELS, SOURCE, draw
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE, NETWORKS, fit_rows, with_network
from sketchbatch_trainer.train.starting_point import ModelFile, find_start, fit_recipe

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = ("quickdraw-345", "animals-10", "bear-cat-dog")


def shipped(name: str) -> ModelFile:
    """Return the shipped model file of a name."""
    start = find_start(MODELS / name)
    assert isinstance(start, ModelFile)
    return start


class Silent:
    """A training listener that ignores the progress."""

    on_start = on_step = on_epoch = lambda *_: None


def train(dataset, folder, recipe, start, seed=0) -> Run:
    """Train a model in `folder`, without TensorFlow graphs, which take long to trace; return the run."""
    import tensorflow as tf
    from sketchbatch_trainer.train.training import TrainingRequest
    from sketchbatch_trainer.train.training import train as train_model

    tf.config.run_functions_eagerly(True)
    try:
        request = TrainingRequest(dataset=dataset, recipe=recipe, seed=seed, start_from=start)
        train_model(request, Run(folder), Silent())
    finally:
        tf.config.run_functions_eagerly(False)
    return Run(folder)


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
    """On the drawings of its batch statistics, a rebuilt network without dropout has the same scores in training mode.

    In training mode, batch normalisation uses the statistics of the batch instead of the stored statistics. If the two
    differed, the first step of a training would change every score.
    """
    from sketchbatch_trainer.train.networks import build
    from sketchbatch_trainer.train.onnx_weights import load_weights
    from sketchbatch_trainer.train.starting_point import network_of

    file = shipped("animals-10")
    model = build(replace(network_of(file), dropout=0.0), 10)
    load_weights(model, file.read_graph(), sketches)
    inference, training = (np.asarray(model(sketches, training=flag)) for flag in (False, True))
    assert np.abs(training - inference).max() < 1e-3


def test_a_new_last_layer_begins_with_the_same_weights_for_each_seed(tmp_path):
    """Otherwise the average of runs with several seeds would be worse than each of them."""
    from sketchbatch_trainer.train.training import load_model

    for label, kind in (("house", "cat"), ("kite", "dog")):
        write_bitmaps(tmp_path / "drawings" / f"{label}.npy", draw(kind, 30, seed=0))
    dataset = read_dataset(DatasetRequest(folder=tmp_path / "drawings", labels=("house", "kite")))
    start = find_start(MODELS / "bear-cat-dog")
    frozen = replace(fit_recipe(FINETUNE, None, start), learning_rate=0.0, average_decay=0.0, max_epochs=1)
    kernels = [
        load_model(train(dataset, tmp_path / str(seed), frozen, start, seed)).get_layer("logits").get_weights()[0]
        for seed in (0, 1)
    ]
    assert kernels[0].std() > 0.01
    assert (kernels[0] == kernels[1]).all()


def test_a_training_starts_from_a_shipped_file(dataset, tmp_path):
    """A training that starts from a file begins with the file's weights, and records the file in its config.

    The last layer is copied class by class, because the file has all labels of the training.
    """
    import keras

    start = find_start(MODELS / "animals-10")
    frozen = replace(fit_recipe(FINETUNE, None, start), learning_rate=0.0, average_decay=0.0, max_epochs=1)
    run = train(dataset, tmp_path, frozen, start)
    graph = start.read_graph()
    last = next(onnx.numpy_helper.to_array(each) for each in graph.graph.initializer if "logits" in each.name)
    columns = [start.read_config()["labels"].index(label) for label in LABELS]
    trained = keras.saving.load_model(run.keras, compile=False).get_layer("logits").get_weights()[0]
    assert np.array_equal(trained, last[:, columns])
    origin = run.read_config()["start_from"]
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


def adapted(path: Path, *, flatten: str = "Flatten") -> Path:
    """Write a small CNN as PyTorch exports it and `sketchbatch-train adapt` wraps it; return `path`.

    `flatten` is Flatten, or Shape for the shape arithmetic of PyTorch's `view`.
    """
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "row": np.array([-1, 1, 28, 28]),
        "scale": np.array(1 / 255, np.float32),
        "conv1.weight": weights(8, 1, 3, 3),
        "conv1.bias": weights(8, 1).ravel(),
        "depthwise.weight": weights(8, 1, 3, 3),
        "bn.scale": np.full(8, 1.5, np.float32),
        "bn.bias": weights(8, 1).ravel(),
        "bn.mean": np.full(8, 0.1, np.float32),
        "bn.variance": np.full(8, 0.5, np.float32),
        "fc1.weight": weights(16, 8 * 7 * 7),
        "fc1.bias": weights(16, 1).ravel(),
        "fc2.weight": weights(3, 16),
        "fc2.bias": weights(3, 1).ravel(),
        "zero": np.array(0),
        "axis": np.array([0]),
        "rest": np.array([-1]),
    }
    node = onnx.helper.make_node
    nodes = [
        node("Reshape", ["bitmaps", "row"], ["images"]),
        node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["floats", "scale"], ["input"]),
        node("Conv", ["input", "conv1.weight", "conv1.bias"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "depthwise.weight"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=8),
        node("BatchNormalization", ["c2", "bn.scale", "bn.bias", "bn.mean", "bn.variance"], ["n2"]),
        node("MaxPool", ["n2"], ["p2"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        *{
            "Flatten": [node("Flatten", ["p2"], ["flat"])],
            "Shape": [
                node("Shape", ["p2"], ["shape"]),
                node("Gather", ["shape", "zero"], ["rows"]),
                node("Unsqueeze", ["rows", "axis"], ["rows1"]),
                node("Concat", ["rows1", "rest"], ["target"], axis=0),
                node("Reshape", ["p2", "target"], ["flat"]),
            ],
        }[flatten],
        node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["f1"], transB=1),
        node("Relu", ["f1"], ["features"]),
        node("Gemm", ["features", "fc2.weight", "fc2.bias"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "cnn",
        [value("bitmaps", onnx.TensorProto.UINT8, ["N", 28, 28])],
        [value("scores", onnx.TensorProto.FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {"sketchbatch.labels": json.dumps(["cat", "bear", "dog"])})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("flatten", ["Flatten", "Shape"])
def test_an_adapted_file_is_rebuilt_with_its_scores(tmp_path, sketches, flatten):
    """The network that is rebuilt from an adapted file returns the file's scores within 1e-5, also after its export.

    The exported graph computes no shapes, which `sketchbatch-serve --provider cuda` would refuse.
    """
    from sketchbatch_trainer.export.exporting import to_onnx
    from sketchbatch_trainer.export.held_out import onnx_scores
    from sketchbatch_trainer.train.graph_network import rebuild_graph

    file = ModelFile(adapted(tmp_path / "adapted.onnx", flatten=flatten))
    expected = ort.InferenceSession(file.path).run(["scores"], {"bitmaps": sketches})[0]
    model = rebuild_graph(file, sketches, "logits")
    assert np.abs(np.asarray(model(sketches, training=False)) - expected).max() < 1e-5
    exported = to_onnx(model)
    assert np.abs(onnx_scores(exported, sketches) - expected).max() < 1e-5
    assert not {"Shape", "Gather", "Concat"} & {node.op_type for node in exported.graph.node}


def test_a_training_starts_from_an_adapted_file(dataset, tmp_path):
    """A training from an adapted file trains all its layers, and another training can start from the new run."""
    import keras

    start = find_start(adapted(tmp_path / "adapted.onnx"))
    recipe = replace(fit_recipe(FINETUNE, None, start), max_epochs=1, batch_rows=128)
    run = train(dataset, tmp_path / "run", recipe, start)
    before = {each.name: onnx.numpy_helper.to_array(each) for each in start.read_graph().graph.initializer}
    body = keras.saving.load_model(run.keras, compile=False).get_layer("body")
    names = ("conv1.weight", "conv1.bias", "depthwise.weight", "fc1.weight", "fc1.bias")
    for name, after in zip(names, body.get_weights(), strict=True):
        assert after.shape == before[name].shape
        assert 0 < np.abs(after - before[name]).max() < 0.1
    assert run.read_config()["start_from"]["name"] == "adapted"
    again = train(dataset, tmp_path / "again", replace(recipe, learning_rate=0.0, average_decay=0.0), run)
    assert again.read_config()["start_from"]["recipe"] == "finetune"
    first, second = (keras.saving.load_model(each.keras, compile=False).get_weights() for each in (run, again))
    assert all(map(np.array_equal, first, second))


def test_a_graph_that_cannot_be_trained_is_refused_in_one_line(tmp_path, sketches):
    """A graph with an operator that the trainer does not support is refused in one line that names the operator."""
    from sketchbatch_trainer.train.graph_network import rebuild_graph

    graph = onnx.load(adapted(tmp_path / "adapted.onnx"))
    next(node for node in graph.graph.node if node.op_type == "Mul").op_type = "Pow"
    onnx.save(graph, tmp_path / "adapted.onnx")
    with pytest.raises(RunRefused, match="its graph cannot be trained: it has the operators Pow; start from another"):
        rebuild_graph(ModelFile(tmp_path / "adapted.onnx"), sketches, "logits")


def test_a_start_is_a_run_a_file_or_the_highest_version_of_a_folder(tmp_path):
    """`find_start` accepts a run folder, a model file, and a folder NAME with VERSION/model.onnx."""
    file = MODELS / "bear-cat-dog" / "2" / "model.onnx"
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
    with pytest.raises(
        RunRefused, match="no such file or folder; start from a run folder, models/quickdraw-345 of the ch"
    ):
        find_start(tmp_path / "none")
    with pytest.raises(RunRefused, match=r"holds the models animals-10, bear-cat-dog, quickdraw-345: name one of them"):
        find_start(MODELS)
    with pytest.raises(RunRefused, match="holds no run and no file VERSION/model"):
        find_start(tmp_path / "named" / "old")


def test_files_that_are_not_models_are_refused_in_one_line(tmp_path):
    """A file that is not ONNX, and a file of another tool that was not adapted, are refused in one line."""
    wrong_files = {
        "page.onnx": (b"<html>not found</html>", "expected an ONNX model, got a web page; copy or download it again"),
        "empty.onnx": (b"", "expected an ONNX model, got an empty file; copy or download it again"),
        "model.keras": (zipped("metadata.json"), "expected an ONNX model, got a Keras model .*sketchbatch-train adapt"),
        "noise.onnx": (bytes(range(1, 100)), "not an ONNX model, or damaged"),
    }
    for name, (content, message) in wrong_files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunRefused, match=message):
            find_start(tmp_path / name).read_config()
    with pytest.raises(RunRefused, match=r"first run sketchbatch-train adapt .*torch\.onnx --labels"):
        find_start(write_foreign("torch", tmp_path / "torch.onnx")).read_config()
    with pytest.raises(RunRefused, match=r"sketchbatch\.config and sketchbatch\.labels must be JSON"):
        find_start(write_model(tmp_path / "broken.onnx", metadata={"sketchbatch.config": "{"})).read_config()


def test_the_network_follows_from_the_start(tmp_path):
    """Without `--network`, a recipe has the network of its start, with the dropout of the recipe."""
    config = json.dumps({"recipe": asdict(with_network(COMPACT, "light"))})
    start = find_start(write_model(tmp_path / "light.onnx", metadata={"sketchbatch.config": config}))
    light = fit_recipe(FINETUNE, None, start).network
    assert light == replace(NETWORKS["light"], dropout=FINETUNE.network.dropout)
    assert fit_recipe(FINETUNE, None, shipped("quickdraw-345")) == FINETUNE
    assert fit_recipe(COMPACT, None, None) == COMPACT
    with pytest.raises(RunRefused, match="recipe article has a network of its own; leave out --network light"):
        fit_recipe(ARTICLE, "light", None)


def test_few_drawings_get_smaller_batches_and_more_epochs():
    """A recipe has at least `min_epoch_steps` steps of about 32 rows or more, and at least `min_steps` steps in all."""
    recipe = replace(FINETUNE, batch_rows=128, min_epoch_steps=8, min_steps=150, max_epochs=24)
    fitted = {rows: fit_rows(recipe, rows) for rows in (20, 200, 800, 1024, 20_000)}
    assert {rows: each.batch_rows for rows, each in fitted.items()} == {
        20: 20,
        200: 29,
        800: 100,
        1024: 128,
        20_000: 128,
    }
    assert {rows: each.max_epochs for rows, each in fitted.items()} == {20: 150, 200: 24, 800: 24, 1024: 24, 20_000: 24}


def test_batches_of_few_drawings_have_almost_equal_sizes():
    """No batch of few drawings is much smaller than the others: a batch of one row would have a variance of zero."""
    recipe = replace(FINETUNE, batch_rows=128, min_epoch_steps=8)
    for rows in range(2, 1024):
        batch_rows = fit_rows(recipe, rows).batch_rows
        assert rows <= batch_rows or (rows % batch_rows or batch_rows) >= batch_rows - rows / batch_rows


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
