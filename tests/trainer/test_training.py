"""Test that a training is repeatable and can resume, and that an export is refused if ONNX and Keras disagree.

The networks are small versions of the real networks: they have the same layers with fewer filters, so that a training
takes seconds.
"""

import csv
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from eager_tensorflow import without_graphs
from onnx_models import write_model
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset, write_bitmaps, write_source
from sketchbatch_trainer.errors import ExportRefused, RunIncomplete, RunRefused
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.synthetic import SOURCE, draw
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE, ArticleNetwork, ResidualNetwork, with_network

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

LABELS = ("bear", "cat", "dog")
TINY_ARTICLE = replace(
    ARTICLE,
    network=ArticleNetwork(conv_filters=(2, 4), dense_units=(8, 8), l2=1e-3, dropout=(0.5, 0.5)),
    max_epochs=2,
    batch_rows=74,
)
TINY_COMPACT = replace(
    COMPACT,
    network=ResidualNetwork(stem_filters=4, stem_strides=2, stage_filters=(4,), head_units=8, dropout=0.2),
    max_epochs=3,
    # The 148 training rows are four equal batches. TensorFlow would trace a smaller last batch again, for seconds.
    batch_rows=37,
)
SHORT_COMPACT = replace(TINY_COMPACT, max_epochs=1, batch_rows=148)


class Listener:
    """Record at which epoch and step a training started, and call `interrupt` after each step.

    The arguments of `interrupt` are the number of finished epochs, and the number of finished steps of the next epoch.
    """

    def __init__(self, interrupt=lambda epochs, steps: None) -> None:
        self.started_at: tuple[int, int] | None = None
        self.epochs = 0
        self.interrupt = interrupt

    def on_start(self, epochs_done, steps_done, steps):
        self.started_at = (epochs_done, steps_done)

    def on_step(self, steps_done):
        self.interrupt(self.epochs, steps_done)

    def on_epoch(self, metrics):
        self.epochs = metrics.epoch


def train(dataset, folder, recipe=TINY_ARTICLE, listener=None, *, restart=False, **options) -> Run | None:
    """Train a model in `folder`, with seed 0 unless `options` contains another seed; return the run if it is new."""
    from sketchbatch_trainer.train.training import TrainingRequest
    from sketchbatch_trainer.train.training import train as train_model

    run = Run(folder)
    request = TrainingRequest(**{"dataset": dataset, "recipe": recipe, "seed": 0} | options)
    return run if train_model(request, run, listener or Listener(), restart=restart) else None


def export(run: Run, **options):
    """Export a run; return the comparison of ONNX and Keras."""
    from sketchbatch_trainer.export.exporting import export as export_run

    return export_run(run, **options)


def load(run: Run):
    """Return the Keras model of a run."""
    import keras

    return keras.saving.load_model(run.keras)


def weights(run: Run):
    """Return all weights of a run's model in one array."""
    return np.concatenate([each.ravel() for each in load(run).get_weights()])


def history(run: Run) -> list[dict[str, float]]:
    """Return the metrics of each epoch of a run."""
    with run.history.open() as file:
        return [{name: float(value) for name, value in line.items()} for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write a folder with few synthetic sketches, in classes of different sizes."""
    folder = tmp_path_factory.mktemp("sketches")
    for rows, label in ((30, "bear"), (90, "cat"), (60, "dog")):
        write_bitmaps(folder / f"{label}.npy", draw(label, rows, seed=0))
    write_source(folder, SOURCE)
    return folder


@pytest.fixture(scope="module")
def dataset(data):
    """Return the dataset of the sketches, which has three splits."""
    return read_dataset(DatasetRequest(folder=data, labels=LABELS))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Run:
    """Return a run that was trained with the small version of the recipe `article`."""
    return train(dataset, tmp_path_factory.mktemp("run"))


# By moment at which a training is killed: (finished epochs, finished steps of the next epoch) at this moment, and
# (epochs, steps) at which the resumed training starts.
SNAPSHOTS = {
    "first step after an epoch": ((1, 1), (1, 0)),
    "within an epoch": ((1, 3), (1, 2)),
    "after the last epoch, before its history": ((2, None), (3, 0)),
}


@pytest.fixture(scope="module")
def compact_with_snapshots(dataset, tmp_path_factory):
    """Train the small version of the recipe `compact`, and copy its folder at each moment of `SNAPSHOTS`.

    Return the run and the copies. A copy has the files that would remain if SIGKILL ended the training at its moment.
    """
    from sketchbatch_trainer.train import training, training_loop

    folder = tmp_path_factory.mktemp("compact")
    copies = {name: tmp_path_factory.mktemp("snapshot") for name in SNAPSHOTS}

    def copy(epochs, steps):
        for name, (moment, _) in SNAPSHOTS.items():
            if moment == (epochs, steps):
                shutil.copytree(folder, copies[name], dirs_exist_ok=True)

    listener = Listener(copy)
    write_history = training._write_history

    def copy_and_write(run, epochs):
        if len(epochs) == 3 and listener.epochs == 2:
            copy(2, None)
        write_history(run, epochs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "CHECKPOINT_S", 0.0)  # the training writes a checkpoint after each step
        patch.setattr(training, "_write_history", copy_and_write)
        return train(dataset, folder, TINY_COMPACT, listener), copies


@pytest.fixture(scope="module")
def compact(compact_with_snapshots) -> Run:
    """Return a run that was trained with the small version of the recipe `compact`."""
    return compact_with_snapshots[0]


@pytest.mark.parametrize(
    "moment", [pytest.param(each, marks=pytest.mark.slow if each.startswith("first") else ()) for each in SNAPSHOTS]
)
def test_a_killed_training_resumes_to_the_same_weights(dataset, compact, compact_with_snapshots, moment, tmp_path):
    """A training that is killed and resumed has exactly the weights and the history of an uninterrupted training."""
    folder = shutil.copytree(compact_with_snapshots[1][moment], tmp_path / "run")
    assert (folder / "checkpoint.npz").exists()
    assert not (folder / "model.keras").exists()
    listener = Listener()
    run = train(dataset, folder, TINY_COMPACT, listener)
    assert listener.started_at == SNAPSHOTS[moment][1]
    assert np.array_equal(weights(run), weights(compact))
    no_time = {"seconds": 0.0}
    assert [epoch | no_time for epoch in history(run)] == [epoch | no_time for epoch in history(compact)]
    assert not run.checkpoint.exists()


def test_a_checkpoint_of_an_older_version_resumes(dataset, compact, compact_with_snapshots, tmp_path):
    """A checkpoint without test metrics resumes to the same weights; the history has NaN in place of these metrics."""
    folder = shutil.copytree(compact_with_snapshots[1]["after the last epoch, before its history"], tmp_path / "run")
    with np.load(folder / "checkpoint.npz") as saved:
        arrays = dict(saved)
    state = json.loads(str(arrays.pop("state")))
    for epoch in state["history"]:
        del epoch["test_loss"], epoch["test_accuracy"]
    np.savez(folder / "checkpoint.npz", state=np.array(json.dumps(state)), **arrays)
    run = train(dataset, folder, TINY_COMPACT)
    assert np.array_equal(weights(run), weights(compact))
    assert [epoch["val_loss"] for epoch in history(run)] == [epoch["val_loss"] for epoch in history(compact)]
    assert all(np.isnan([epoch["test_loss"], epoch["test_accuracy"]]).all() for epoch in history(run))


@pytest.fixture(scope="module")
def retrained(dataset, run, tmp_path_factory) -> tuple[Run, list]:
    """Train again with the request of `run`, in a folder with output files of a training with another request.

    Return the new run, and the paths of these output files.
    """
    again = Run(tmp_path_factory.mktemp("again"))
    again.test.mkdir()
    stale = [again.scores, again.metrics, again.report, again.checkpoint, again.test / "zebra.npy"]
    for path in stale:
        path.write_text("of another request")
    again.config.write_text(run.config.read_text().replace('"seed": 0', '"seed": 7'))
    write_model(again.onnx, metadata={"sketchbatch.config": again.config.read_text()})
    with pytest.raises(
        RunRefused, match=r"again0: holds an interrupted training with other seed \(7, now 0\); keep it and name"
    ):
        train(dataset, again.folder)
    listener = Listener()
    assert train(dataset, again.folder, listener=listener, restart=True) == again
    assert listener.started_at == (0, 0)
    return again, stale


def test_equal_requests_give_equal_weights(run, retrained):
    """Two trainings with equal requests, which include the seed and the drawings, give exactly equal weights.

    A training does not resume from the checkpoint of another request.
    """
    assert np.array_equal(weights(run), weights(retrained[0]))


def test_training_deletes_the_output_of_an_earlier_training(retrained):
    """A training deletes the output of an earlier training, so that no later step uses an old report.

    The exported model stays, because a service may load it at any time, but later steps refuse it.
    """
    again, stale = retrained
    assert not [path for path in stale if path.exists()]
    with pytest.raises(RunIncomplete, match=r"model\.onnx is of an earlier training or export; first run: .* export"):
        again.need(again.onnx, "export")


def test_a_finished_training_is_not_overwritten(dataset, run):
    """The same request changes nothing in a finished run, and a request with other options is refused."""
    before = run.keras.stat()
    assert train(dataset, run.folder) is None
    message = (
        r"other recipe, network or epochs \(max_epochs 2, now 3\), seed \(0, now 1\); .* or discard it with --restart"
    )
    with pytest.raises(RunRefused, match=message):
        train(dataset, run.folder, replace(TINY_ARTICLE, max_epochs=3), seed=1)
    assert run.keras.stat() == before


def test_the_values_in_which_two_configs_differ_are_named_if_they_are_short():
    """A recipe of another version, and a network of another kind, are named without values."""
    from sketchbatch_trainer.run import _difference, value_differences

    old = {"recipe": {"name": "a", "epochs": 3, "network": {"filters": 8, "blocks": 2}}, "source": "x\ny" * 40}
    new = {"recipe": {"name": "a", "epochs": 4, "network": {"units": 8, "rate": 1}, "warm": 1}, "hold_out": "1/5"}
    assert value_differences("recipe", old, new) == ["recipe.epochs 3 and 4", "recipe.network", "recipe.warm"]
    assert _difference("recipe", "recipe", old, new) == "recipe (epochs 3, now 4; network; warm)"
    assert _difference("--hold-out", "hold_out", old, new) == "--hold-out (default, now 1/5)"
    assert _difference("source", "source", old, new) == "source"


def test_a_new_training_has_the_next_version():
    """The first export has version 1, and a new model the next number; the same model keeps its number."""
    from sketchbatch_trainer.export.exporting import next_version

    assert next_version({}, is_same=False) == 1
    assert next_version({"sketchbatch.version": "7"}, is_same=True) == 7
    assert next_version({"sketchbatch.version": "7"}, is_same=False) == 8
    assert next_version({"sketchbatch.labels": "[]"}, is_same=False) == 1


def test_a_model_is_the_same_if_its_training_temperature_and_thresholds_are():
    """A new cross-validation changes the temperature, with it the scores, and perhaps the thresholds."""
    from sketchbatch_trainer.export.exporting import is_same_model

    config = {"seed": 1, "labels": ["ant", "bee"]}
    earlier = {
        "sketchbatch.config": json.dumps(config),
        "sketchbatch.metrics": '{"temperature": 1.25}',
        "sketchbatch.rejection": "{}",
    }
    thresholds = {"sketchbatch.rejection": "{}"}
    assert is_same_model(earlier, {"labels": ["ant", "bee"], "seed": 1}, 1.25, thresholds)
    assert not is_same_model(earlier, config | {"seed": 2}, 1.25, thresholds)
    assert not is_same_model(earlier, config, 1.26, thresholds)
    assert not is_same_model(earlier, config, 1.25, {})
    assert not is_same_model({}, config, 1.0, {})


def test_the_article_network_has_the_published_layers():
    """The article network has two convolutions, one max-pool, two dense layers and a softmax.

    Each of the two dense layers has L2, batch normalisation and dropout.
    """
    from sketchbatch_trainer.train.networks import build

    layers = build(ARTICLE.network, 3).layers
    assert [type(layer).__name__ for layer in layers] == [
        "InputLayer", "Rescaling", "Reshape", "Conv2D", "Conv2D", "MaxPooling2D", "StaticFlatten",
        "Dense", "BatchNormalization", "Dropout", "Dense", "BatchNormalization", "Dropout", "Dense", "Softmax",
    ]  # fmt: skip
    dense = [layer for layer in layers if type(layer).__name__ == "Dense"]
    assert [layer.kernel_regularizer is not None for layer in dense] == [True, True, False]


def test_the_compact_network_adds_filters_at_each_halving():
    """The compact network has no pooling layer; strided convolutions halve the resolution and increase the filters.

    The first layer has 32 filters, and the two stages after it have 48 and 80 filters.
    """
    from sketchbatch_trainer.train.networks import build

    model = build(COMPACT.network, 3)
    shapes = [layer.output.shape[1:] for layer in model.layers if type(layer).__name__ == "Conv2D"]
    assert shapes == [(14, 14, 32), *[(7, 7, 48)] * 3, *[(4, 4, 80)] * 3]
    assert model.output_shape == (None, 3)


def test_every_residual_recipe_can_use_the_light_network():
    """`with_network` replaces the network of a residual recipe by the network `light` or `compact`.

    The new network has the dropout of the recipe's network. All other values of the recipe stay the same.
    """
    from sketchbatch_trainer.train.networks import build

    for recipe in (COMPACT, FINETUNE):
        light = with_network(recipe, "light")
        assert with_network(recipe, "compact") == recipe != light
        assert replace(light, network=recipe.network) == recipe
        assert light.network.dropout == recipe.network.dropout
    sizes = [build(with_network(COMPACT, name).network, 3).count_params() for name in ("light", "compact")]
    assert sizes[0] < 0.8 * sizes[1]


def test_networks_that_are_made_from_another_one_take_an_array():
    """Keras warns if a network takes a list of tensors and receives an array."""
    from sketchbatch_trainer.train.networks import build, divide_logits, with_logits

    model = build(TINY_COMPACT.network, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits, divided = (
            made(np.zeros((2, 28, 28), np.uint8)) for made in (with_logits(model), divide_logits(model, 2))
        )
    assert logits.shape == divided.shape == (2, 3)


def test_an_epoch_without_drawings_for_validation_has_no_validation_figures(capsys):
    """The folds of a cross-validation and a training on all drawings print the figures of the training alone."""
    from sketchbatch_trainer.progress import row_bar
    from sketchbatch_trainer.train.epoch_printer import EpochPrinter
    from sketchbatch_trainer.train.training_loop import EpochMetrics

    with_validation = EpochMetrics(
        epoch=1, loss=1, accuracy=0.5, val_loss=2, val_accuracy=0.25, val_balanced_accuracy=0.125, seconds=3
    )
    without = replace(with_validation, val_loss=np.nan, val_accuracy=np.nan, val_balanced_accuracy=np.nan)
    with row_bar() as progress:
        printer = EpochPrinter(progress, 2)
        for metrics in (with_validation, without, replace(with_validation, val_loss=np.nan)):
            printer.on_epoch(metrics)
    assert capsys.readouterr().out.splitlines() == [
        "epoch  1  train loss 1.000 accuracy 0.500   validation loss 2.000 accuracy 0.250 balanced 0.125   3 s",
        "epoch  1  train loss 1.000 accuracy 0.500   3 s",
        "epoch  1  train loss 1.000 accuracy 0.500   validation loss nan accuracy 0.250 balanced 0.125   3 s",
    ]


def test_class_balance_raises_the_weight_of_rare_classes():
    """The weight of a class is proportional to N ** -balance, where N is its number of rows.

    The mean weight of all rows is 1.
    """
    from sketchbatch_trainer.train.training_loop import class_weights

    class_index = np.repeat([0, 1, 2], [10, 40, 50])
    whole, none, half = (class_weights(class_index, balance) for balance in (1.0, 0.0, 0.5))
    assert [whole[0] * 10, whole[1] * 40, whole[2] * 50] == pytest.approx([100 / 3] * 3)
    assert none == pytest.approx(1)
    assert half[0] / half[1] == pytest.approx(2)
    assert half[class_index].mean() == pytest.approx(1)


def test_training_stops_when_the_validation_loss_no_longer_falls(dataset, tmp_path):
    """Training stops `patience` epochs after the best epoch, and the model has the weights of the best epoch.

    The history has the loss and the accuracy of these weights on the validation drawings and on the test drawings.
    """
    # with 100 rows per batch, the last batch of an epoch is smaller than the others
    recipe = replace(TINY_ARTICLE, max_epochs=60, batch_rows=100, learning_rate=0.1, patience=1)
    with without_graphs():
        run = train(dataset, tmp_path, recipe)
    losses = [epoch["val_loss"] for epoch in history(run)]
    assert len(losses) == int(np.argmin(losses)) + 2 < 60
    best = history(run)[np.argmin(losses)]
    for split, prefix in ((dataset.validation, "val_"), (dataset.test, "test_")):
        bitmaps, class_index = split.take(slice(None))
        scores = load(run).predict(bitmaps, verbose=0)
        loss = -np.log(scores[np.arange(len(scores)), class_index]).mean()
        assert loss == pytest.approx(best[f"{prefix}loss"], rel=1e-3)
        assert (scores.argmax(axis=1) == class_index).mean() == pytest.approx(best[f"{prefix}accuracy"])


def kernels(run: Run):
    """Return the first weight array of each layer that has trainable weights, in order."""
    return [layer.get_weights()[0] for layer in load(run).layers if layer.trainable_weights]


def test_a_training_can_start_from_the_weights_of_another_run(data, dataset, compact, run, tmp_path):
    """A training can start from the weights of another run that has the same network; other networks are refused.

    The weights of the last layer are copied class by class, if the other run has all labels of the new training.
    """
    frozen = replace(SHORT_COMPACT, learning_rate=0.0, average_decay=0.0)
    pair = read_dataset(DatasetRequest(folder=data, labels=("dog", "bear")))
    with without_graphs():
        started = train(pair, tmp_path / "started", frozen, start_from=compact)
        with_new_label = train(dataset, tmp_path / "more", frozen, start_from=started)
    *before, last_before = kernels(compact)
    *after, last_after = kernels(started)
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    assert np.array_equal(last_before[:, [2, 0]], last_after)
    assert started.read_config()["start_from"]["recipe"] == "compact"
    assert np.array_equal(kernels(with_new_label)[0], before[0])
    assert not np.array_equal(kernels(with_new_label)[-1][:, [2, 0]], last_after)
    with pytest.raises(RunRefused, match="recipe compact cannot start from recipe article, which has another network"):
        train(dataset, tmp_path / "refused", frozen, start_from=run)
    with pytest.raises(RunRefused, match="a run cannot start from itself"):
        train(dataset, compact.folder, frozen, start_from=compact)
    with pytest.raises(RunRefused, match="a run cannot be its own teacher"):
        train(dataset, compact.folder, frozen, teachers=(compact,), restart=True)


@pytest.mark.slow
def test_a_training_can_use_teachers(data, dataset, compact, run, tmp_path):
    """With teachers, the share `teacher_share` of each target comes from the teachers' scores, the rest from the label.

    With a share of 1, the labels have no effect on the targets. Teachers with other labels are refused.
    """
    taught = replace(SHORT_COMPACT, teacher_share=1.0, network=replace(SHORT_COMPACT.network, dropout=0.0))
    smooth = replace(taught, label_smoothing=0.9)
    with without_graphs():
        one = train(dataset, tmp_path / "one", taught, teachers=(run, compact))
        smoothed = train(dataset, tmp_path / "smoothed", smooth, teachers=(run, compact))
        alone = train(dataset, tmp_path / "alone", taught)
    assert np.array_equal(weights(one), weights(smoothed))
    assert not np.array_equal(weights(one), weights(alone))
    assert [teacher["recipe"] for teacher in one.read_config()["teachers"]] == ["article", "compact"]
    pair = read_dataset(DatasetRequest(folder=data, labels=("bear", "dog")))
    with pytest.raises(RunRefused, match="labels must be bear, dog, got bear, cat, dog"):
        train(pair, tmp_path / "refused", taught, teachers=(run,))
    with pytest.raises(RunRefused, match="recipe article uses no teacher; leave out --teacher"):
        train(dataset, tmp_path / "refused", TINY_ARTICLE, teachers=(compact,))


@pytest.mark.slow
def test_runs_that_differ_by_their_seed_can_be_averaged(dataset, compact, tmp_path):
    """Runs that differ only by their seed, and start from the same run, can be averaged.

    Each weight is the mean of the runs' weights. Runs with other differences, and runs that do not start from another
    run, are refused.
    """
    from sketchbatch_trainer.train.averaging import average

    with without_graphs():
        members = [train(dataset, tmp_path / str(n), SHORT_COMPACT, seed=n, start_from=compact) for n in (0, 1)]
    averaged = Run(tmp_path / "averaged")
    assert average(members, averaged, name="mean")
    assert not average(members, averaged, name="mean")
    with pytest.raises(RunRefused, match="holds a finished training with other name"):
        average(members, averaged, name="other")
    assert weights(averaged) == pytest.approx(np.mean([weights(each) for each in members], axis=0), abs=1e-6)
    assert not np.array_equal(weights(members[0]), weights(members[1]))
    config = averaged.read_config()
    assert config["name"] == "mean"
    assert [each["seed"] for each in config["averaged"]] == [0, 1]
    losses = [history(each)[0]["val_loss"] for each in (averaged, *members)]
    assert losses[0] == pytest.approx(np.mean(losses[1:]))
    lines = members[0].history.read_text().splitlines()
    members[0].history.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in lines))  # of an older version
    members[1].history.write_text(members[1].history.read_text() + lines[1] + "\n")  # another epoch
    assert average(members, averaged, name="mean", restart=True)
    (epoch,) = history(averaged)
    assert list(epoch) == lines[0].split(",")[:-2]
    assert epoch["val_loss"] == losses[0]
    assert export(averaged).rows == len(dataset.test)
    other = Run(tmp_path / "other recipe")
    shutil.copytree(members[1].folder, other.folder)
    config = other.read_config()
    other.write_config(config | {"recipe": config["recipe"] | {"max_epochs": 2}})
    with pytest.raises(
        RunRefused, match=r"seed alone; .*other recipe and .*0 differ in the recipe: max_epochs 2 and 1$"
    ):
        average([*members, other], averaged)
    with pytest.raises(RunRefused, match="runs without --start-from have no useful average"):
        average([compact, members[0]], averaged)
    with pytest.raises(RunRefused, match="runs to average must be two or more different ones"):
        average([members[0], members[0]], averaged)


def test_tensorboard_can_show_a_run(compact):
    """The logs of a run contain the metrics of every epoch in the format of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = EventAccumulator(str(compact.logs))
    logs.Reload()
    tags = {"loss/training", "loss/validation", "loss/test", "accuracy/test", "balanced_accuracy/validation"}
    assert tags <= set(logs.Tags()["tensors"])
    assert [event.step for event in logs.Tensors("loss/training")] == [1, 2, 3]


def test_a_run_records_its_origin(dataset, run):
    """A run contains its history, its configuration, the held-out drawings and the calibration drawings.

    The calibration drawings, with which int8 variants are made, contain no held-out drawing.
    """
    assert list(history(run)[0]) == [
        "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "seconds",
        "test_loss", "test_accuracy",
    ]  # fmt: skip
    assert len(history(run)) == 2
    config = run.read_config()
    assert config["name"] == "synthetic-bear-cat-dog"
    assert (config["source"], config["data_digest"], config["seed"]) == (SOURCE, dataset.digest, 0)
    assert config["rows"]["test"] == sum(len(np.load(path)) for path in run.test.glob("*.npy"))
    calibration = {row.tobytes() for row in np.load(run.calibration)}
    assert 10 < len(calibration) <= 1024
    assert not calibration & {row.tobytes() for row in dataset.test.take(slice(None))[0]}


def test_the_exported_file_describes_itself_and_agrees_with_keras(dataset, run):
    """The exported file contains the graph and all metadata, and its scores agree with those of Keras.

    The graph takes any number of uint8 bitmaps and ends with a softmax.
    """
    parity = export(run, version=3, licence="CC0")
    assert 0 <= parity.max_difference <= 1e-4
    session = ort.InferenceSession(run.onnx, providers=["CPUExecutionProvider"])
    bitmaps, class_index = dataset.test.take(slice(None))
    scores = session.run(["scores"], {"bitmaps": bitmaps})[0]
    operators = {node.op_type for node in onnx.load(run.onnx).graph.node}
    assert not operators & {"Shape", "Gather", "Slice", "Concat"}  # CUDA runs such nodes on the CPU
    assert np.abs(scores - load(run).predict(bitmaps, verbose=0)).max() <= 1e-4
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert session.run(["scores"], {"bitmaps": bitmaps[:1]})[0].shape == (1, 3)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["sketchbatch.labels"]) == ["bear", "cat", "dog"]
    assert (metadata["sketchbatch.version"], metadata["sketchbatch.licence"]) == ("3", "CC0")
    assert metadata["sketchbatch.data_digest"] == dataset.digest
    accuracy = (scores.argmax(axis=1) == class_index).mean()
    assert json.loads(metadata["sketchbatch.metrics"])["accuracy"] == pytest.approx(accuracy)
    assert json.loads(metadata["sketchbatch.config"])["seed"] == 0
    before = run.onnx.stat()
    export(run, licence="CC0")
    assert run.onnx.stat() == before  # the same model keeps its version, and clients see no other file


def test_export_is_refused_when_onnx_and_keras_disagree(run, monkeypatch):
    """If the scores of the ONNX graph differ from those of Keras, the export is refused.

    The file of an earlier export stays as it is. In this test, one bias of the graph is wrong.
    """
    from sketchbatch_trainer.export import exporting

    write_model(run.onnx)
    before = run.onnx.read_bytes()
    convert = exporting.to_onnx

    def convert_wrongly(model) -> onnx.ModelProto:
        graph = convert(model)
        bias = next(i for i in graph.graph.initializer if i.dims == [3])
        values = onnx.numpy_helper.to_array(bias) + np.array([1, 0, 0], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return graph

    monkeypatch.setattr(exporting, "to_onnx", convert_wrongly)
    with pytest.raises(ExportRefused, match=r"differ by at most .* \(limit 1e-04\)"):
        export(run)
    assert run.onnx.read_bytes() == before
    assert not list(run.folder.glob(".*"))


def test_nan_scores_are_refused():
    """NaN scores are refused, because NaN is not within any tolerance."""
    from sketchbatch_trainer.export.exporting import compare

    with pytest.raises(ExportRefused):
        compare(np.zeros((2, 3)), np.full((2, 3), np.nan))


def test_export_before_training_names_the_missing_step(tmp_path):
    """Export before training is refused with the command to run first."""
    with pytest.raises(RunIncomplete, match="first run: sketchbatch-train train"):
        export(Run(tmp_path))
    (tmp_path / "1").mkdir()  # a folder of model files, which is not for a training
    with pytest.raises(
        RunIncomplete, match=r"is not the folder of a training, which has a config\.json; name one \(sketch"
    ):
        export(Run(tmp_path))


def test_two_trainings_cannot_use_one_folder(dataset, tmp_path):
    """While a training runs, another one with the same folder is refused; after its end the folder is free."""

    def try_another(epochs, steps):
        with pytest.raises(RunRefused, match="another process trains in it; wait for it, or name another folder"):
            train(dataset, tmp_path / "run")
        refused.append(steps)

    refused: list[int] = []
    assert train(dataset, tmp_path / "run", listener=Listener(try_another))
    assert refused
    assert train(dataset, tmp_path / "run") is None  # finished
