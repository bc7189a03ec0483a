"""Training and export: repeatable, balanced, refused when ONNX and Keras disagree."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sketchbatch_trainer.dataset import Wanted, read_drawings, write_bitmaps, write_source
from sketchbatch_trainer.errors import ExportRefused, RunIncomplete, RunRefused
from sketchbatch_trainer.export import exporting
from sketchbatch_trainer.export.exporting import compare, export
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.synthetic import SOURCE, draw
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE, with_network

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # TensorFlow's and Keras's own
]


LABELS = ("bear", "cat", "dog")
HASTY = replace(ARTICLE, max_epochs=2, batch_rows=32)
HASTY_COMPACT = replace(COMPACT, max_epochs=3, batch_rows=32)


class Silent:
    """A watcher that remembers what it heard."""

    def __init__(self) -> None:
        self.began: tuple[int, int, int] | None = None
        self.epochs = []

    def begins(self, epochs_done, steps_done, steps):
        self.began = (epochs_done, steps_done, steps)

    def steps_done(self, steps):
        """Not kept."""

    def epoch_done(self, epoch):
        self.epochs.append(epoch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of synthetic sketches, few and uneven."""
    folder = tmp_path_factory.mktemp("sketches")
    for rows, label in ((30, "bear"), (90, "cat"), (60, "dog")):
        write_bitmaps(folder / f"{label}.npy", draw(label, rows, seed=0))
    write_source(folder, SOURCE)
    return folder


@pytest.fixture(scope="module")
def drawings(data):
    """The same, split."""
    return read_drawings(Wanted(folder=data, labels=LABELS))


def trained(drawings, folder, recipe=HASTY, watcher=None, **more) -> Run:
    """A run in which `recipe` was followed."""
    from sketchbatch_trainer.train.training import Job, train

    run = Run(folder)
    train(Job(**{"drawings": drawings, "recipe": recipe, "seed": 0} | more), run, watcher or Silent())
    return run


def weights(run: Run):
    """All of a run's weights in one array."""
    import keras

    return np.concatenate([each.ravel() for each in keras.saving.load_model(run.keras).get_weights()])


def history(run: Run) -> list[dict[str, float]]:
    """Its epochs' figures."""
    with run.history.open() as file:
        return [{name: float(value) for name, value in line.items()} for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(drawings, tmp_path_factory) -> Run:
    """One run of the article's recipe."""
    return trained(drawings, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def compact(drawings, tmp_path_factory) -> Run:
    """One run of ours."""
    return trained(drawings, tmp_path_factory.mktemp("compact"), HASTY_COMPACT)


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
        "Dense", "BatchNormalization", "Dropout", "Dense", "BatchNormalization", "Dropout", "Dense", "Softmax",
    ]  # fmt: skip
    dense = [layer for layer in layers if type(layer).__name__ == "Dense"]
    assert [layer.kernel_regularizer is not None for layer in dense] == [True, True, False]


def test_ours_keeps_its_width_for_small_sides(compact):
    """A strided stem, then stages of 48 and 80 filters, each halving the side; no pooling, which forgets places."""
    import keras

    model = keras.saving.load_model(compact.keras)
    sides = [layer.output.shape[1:] for layer in model.layers if type(layer).__name__ == "Conv2D"]
    assert sides == [(14, 14, 32), *[(7, 7, 48)] * 3, *[(4, 4, 80)] * 3]
    assert model.output_shape == (None, 3)


def test_rare_classes_count_more_as_the_recipe_says():
    """Weight = rows to the power of -balance, and the mean weight of a row is 1."""
    from sketchbatch_trainer.train.fit import class_weights

    class_index = np.repeat([0, 1, 2], [10, 40, 50])
    whole, none, half = (class_weights(class_index, balance) for balance in (1.0, 0.0, 0.5))
    assert [whole[0] * 10, whole[1] * 40, whole[2] * 50] == pytest.approx([100 / 3] * 3)
    assert none == pytest.approx(1)
    assert half[0] / half[1] == pytest.approx(2)
    assert half[class_index].mean() == pytest.approx(1)


def test_training_stops_when_validation_no_longer_gains(drawings, tmp_path):
    """`patience` epochs after the best one, whose weights are kept."""
    import keras

    run = trained(drawings, tmp_path, replace(HASTY, max_epochs=40, learning_rate=0.03, patience=1))
    losses = [epoch["val_loss"] for epoch in history(run)]
    assert len(losses) == int(np.argmin(losses)) + 2 < 40
    bitmaps, class_index = drawings.validation.take(slice(None))
    scores = keras.saving.load_model(run.keras).predict(bitmaps, verbose=0)
    kept = -np.log(scores[np.arange(len(scores)), class_index]).mean()
    assert kept == pytest.approx(min(losses), rel=1e-3)


KILLS = {  # epochs and steps done when the signal comes, and after the resumption
    "the first epoch": ((1, 1), (1, 0)),
    "some steps of the second": ((1, 3), (1, 2)),
    "the last epoch": ((None, None), (3, 0)),
}


@pytest.mark.parametrize(
    "killed_after",
    [pytest.param(each, marks=() if each == "some steps of the second" else pytest.mark.slow) for each in KILLS],
)
def test_a_killed_training_goes_on_to_the_same_weights(drawings, data, compact, tmp_path, killed_after):
    """SIGKILL in the middle; the same command again ends bit for bit where an unbroken run does, history too."""
    program = f"""
import os, sys
import sketchbatch_trainer.train.fit as fitting
import sketchbatch_trainer.train.training as training
from dataclasses import replace
from pathlib import Path
from sketchbatch_trainer.dataset import Wanted, read_drawings
from sketchbatch_trainer.train.recipes import COMPACT
from sketchbatch_trainer.run import Run
from sketchbatch_trainer.train.training import Job, train
fitting.CHECKPOINT_S = 0.0  # after every step
class Killer:
    epoch = 0
    def begins(self, *_): pass
    def epoch_done(self, epoch): self.epoch = epoch.epoch
    def steps_done(self, steps):
        if (self.epoch, steps) == {KILLS[killed_after][0]}: os.kill(os.getpid(), 9)
if {killed_after == "the last epoch"}:
    training._write_history = lambda run, history: len(history) == 3 and os.kill(os.getpid(), 9)
recipe = replace(COMPACT, max_epochs=3, batch_rows=32)
drawings = read_drawings(Wanted(folder=Path({str(data)!r}), labels={LABELS}))
train(Job(drawings=drawings, recipe=recipe, seed=0), Run(Path({str(tmp_path)!r})), Killer())
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    watcher = Silent()
    run = trained(drawings, tmp_path, HASTY_COMPACT, watcher)
    assert watcher.began is not None
    assert watcher.began[:2] == KILLS[killed_after][1]
    assert np.array_equal(weights(run), weights(compact))
    seconds = {"seconds": 0.0}
    assert [epoch | seconds for epoch in history(run)] == [epoch | seconds for epoch in history(compact)]
    assert not run.checkpoint.exists()


def test_another_job_does_not_go_on_with_a_killed_ones_checkpoint(drawings, compact, tmp_path):
    """Other words, another start: the checkpoint is of use to the same job alone."""
    (tmp_path / "checkpoint.npz").write_bytes(b"of another job")
    (tmp_path / "config.json").write_text(compact.config.read_text().replace('"seed": 0', '"seed": 7'))
    assert np.array_equal(weights(trained(drawings, tmp_path, HASTY_COMPACT)), weights(compact))


def kernels(run: Run):
    """The first weights of each layer that has some, in order."""
    import keras

    layers = keras.saving.load_model(run.keras).layers
    return [layer.get_weights()[0] for layer in layers if layer.trainable_weights]


@pytest.mark.slow
def test_a_network_can_begin_with_the_weights_of_another_run(data, drawings, compact, run, tmp_path):
    """Those of the last layer by label, where all are known; the run says which it was; another network is refused."""
    still = replace(HASTY_COMPACT, learning_rate=0.0, max_epochs=1, average_decay=0.0)
    pair = read_drawings(Wanted(folder=data, labels=("dog", "bear")))
    begun = trained(pair, tmp_path / "begun", still, start_from=compact)
    *before, last_before = kernels(compact)
    *after, last_after = kernels(begun)
    assert all(np.array_equal(*weights) for weights in zip(before, after, strict=True))
    assert np.array_equal(last_before[:, [2, 0]], last_after)
    assert begun.read_config()["start_from"]["recipe"] == "compact"
    more = trained(
        drawings, tmp_path / "more", still, start_from=begun
    )  # cat is new: the last layer begins with nothing
    assert np.array_equal(kernels(more)[0], before[0])
    assert not np.array_equal(kernels(more)[-1][:, [2, 0]], last_after)
    with pytest.raises(RunRefused, match="its network is that of recipe article; recipe compact cannot start from it"):
        trained(drawings, tmp_path / "refused", still, start_from=run)
    with pytest.raises(RunRefused, match="a run cannot start from itself"):
        trained(drawings, compact.folder, still, start_from=compact)


def test_any_recipe_of_ours_takes_the_light_network():
    """Which is another network, and everything else the recipe's own."""
    from sketchbatch_trainer.train.networks import build

    for recipe in (COMPACT, FINETUNE):
        light = with_network(recipe, "light")
        assert with_network(recipe, "compact") == recipe != light
        assert replace(light, network=recipe.network) == recipe
        assert light.network.dropout == recipe.network.dropout
        assert build(light.network, 3).count_params() < 0.8 * build(recipe.network, 3).count_params()


@pytest.mark.slow
def test_a_network_can_learn_from_teachers(data, drawings, compact, run, tmp_path):
    """Their scores stand in for a share of each label; the whole of it, and labels do not matter any more."""
    import keras

    taught = replace(HASTY_COMPACT, teacher_share=1.0, max_epochs=1, network=replace(COMPACT.network, dropout=0.0))
    one = trained(drawings, tmp_path / "one", taught, teachers=(run, compact))
    again = trained(drawings, tmp_path / "again", replace(taught, label_smoothing=0.9), teachers=(run, compact))
    alone = trained(drawings, tmp_path / "alone", taught)
    assert np.array_equal(weights(one), weights(again))
    assert not np.array_equal(weights(one), weights(alone))
    assert [teacher["recipe"] for teacher in one.read_config()["teachers"]] == ["article", "compact"]
    assert keras.saving.load_model(one.keras).output_shape == (None, 3)
    pair = read_drawings(Wanted(folder=data, labels=("bear", "dog")))
    with pytest.raises(RunRefused, match="its labels are not those to train: expected bear, dog, got bear, cat, dog"):
        trained(pair, tmp_path / "refused", taught, teachers=(run,))
    with pytest.raises(RunRefused, match="recipe article learns from no teacher; leave out --teacher"):
        trained(drawings, tmp_path / "refused", HASTY, teachers=(compact,))


@pytest.mark.slow
def test_runs_that_differ_by_their_seed_can_be_averaged(drawings, compact, tmp_path):
    """Every weight is the mean of theirs; the result is a run to export; runs that did not begin alike are refused."""
    from sketchbatch_trainer.train.averaging import average

    short = replace(HASTY_COMPACT, max_epochs=1)
    members = [trained(drawings, tmp_path / str(n), short, seed=n, start_from=compact) for n in (0, 1)]
    averaged = Run(tmp_path / "averaged")
    (tmp_path / "averaged").mkdir()
    averaged.onnx.write_text("of an earlier model")
    average(members, averaged, name="mean")
    assert weights(averaged) == pytest.approx(np.mean([weights(each) for each in members], axis=0), abs=1e-6)
    assert not np.array_equal(weights(members[0]), weights(members[1]))
    config = averaged.read_config()
    assert config["name"] == "mean"
    assert [each["seed"] for each in config["averaged"]] == [0, 1]
    losses = [history(each)[0]["val_loss"] for each in (averaged, *members)]
    assert losses[0] == pytest.approx(np.mean(losses[1:]))
    assert not averaged.onnx.exists()
    assert export(averaged).rows == len(drawings.test)
    longer = trained(drawings, tmp_path / "longer", replace(short, max_epochs=2), start_from=compact)
    with pytest.raises(RunRefused, match=r"differ by their seed alone; it differs from .*0 in recipe"):
        average([*members, longer], averaged)
    with pytest.raises(RunRefused, match="began with nothing"):
        average([compact, members[0]], averaged)
    with pytest.raises(RunRefused, match="expected two or more different runs to average into yet another"):
        average([members[0], members[0]], averaged)


def test_tensorboard_can_show_a_run(compact):
    """Every figure of every epoch, as scalars."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = EventAccumulator(str(compact.logs))
    logs.Reload()
    assert {"loss/training", "loss/validation", "balanced_accuracy/validation"} <= set(logs.Tags()["tensors"])
    assert [event.step for event in logs.Tensors("loss/training")] == [1, 2, 3]


def test_training_again_removes_what_the_last_run_left(drawings, tmp_path):
    """No later step takes an old model, score or report for the new one's."""
    run = Run(tmp_path)
    (tmp_path / "test").mkdir()
    stale = [run.onnx, run.scores, run.metrics, run.report, run.test / "zebra.npy"]
    for path in stale:
        path.write_text("old")
    trained(drawings, tmp_path)
    assert not [path for path in stale if path.exists()]


def test_a_run_says_what_made_it(drawings, run):
    """History of each epoch, configuration, held-out drawings, and some to calibrate on that are not among these."""
    assert list(history(run)[0]) == [
        "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "seconds",
    ]  # fmt: skip
    assert len(history(run)) == 2
    config = run.read_config()
    assert config["name"] == "synthetic-bear-cat-dog"
    assert (config["source"], config["data_digest"], config["seed"]) == (SOURCE, drawings.digest, 0)
    assert config["rows"]["test"] == sum(len(np.load(path)) for path in run.test.glob("*.npy"))
    calibration = {row.tobytes() for row in np.load(run.calibration)}
    assert 10 < len(calibration) <= 1024
    assert not calibration & {row.tobytes() for row in drawings.test.take(slice(None))[0]}


def test_the_exported_file_describes_itself_and_agrees_with_keras(drawings, run):
    """One file: uint8 in, softmax out, any number of rows, labels and all the rest in metadata_props."""
    import keras

    parity = export(run, version=3, licence="CC0")
    assert 0 <= parity.max_difference <= 1e-4
    session = ort.InferenceSession(run.onnx, providers=["CPUExecutionProvider"])
    bitmaps, class_index = drawings.test.take(slice(None))
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
    accuracy = (scores.argmax(axis=1) == class_index).mean()
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
