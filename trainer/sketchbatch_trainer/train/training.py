"""Train a recipe on a dataset. On a CPU, equal seed, dataset and package versions give equal weights."""

import csv
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import Bitmaps
from sketchbatch_client.evaluation.training_digests import joined

from ..dataset import MEASURED_TEST_ROWS, Dataset, Split, write_bitmaps, write_split
from ..errors import RunRefused
from ..hold_out import HELD_OUT_TENTH
from ..run import Run, RunState
from .graph_network import rebuild_graph
from .networks import LOGITS, build, copy_weights
from .onnx_weights import rebuild
from .recipes import GraphNetwork, Recipe
from .starting_point import ModelFile, Start, check_start
from .training_loop import EpochMetrics, TrainingData, TrainingLoop

CALIBRATION_ROWS = 1024
"""Number of training drawings that the run stores for int8 calibration."""

VALIDATION_ROWS = 20_000
"""Most drawings for validation that the run stores, to select the temperature of the scores."""

_SPLITS = {"": "training", "val_": "validation", "test_": "test"}  # by prefix of a metric's name


class TrainingListener(Protocol):
    """Receives the progress of a training."""

    def on_start(self, epochs_done: int, steps_done: int, steps: int) -> None:
        """Called before the first step. A new training has done 0 epochs and 0 steps; `steps` counts one epoch."""

    def on_step(self, steps_done: int) -> None:
        """Called after each step with the number of finished steps of the epoch."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Called after each epoch with the metrics of the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest:
    """The recipe to train, the drawings to train on, and the initial weights."""

    dataset: Dataset
    recipe: Recipe
    seed: int
    name: str = ""
    """Name of the model; empty = derived from the labels."""
    start_from: Start | None = None
    """Run or model file that provides the initial weights; it must have the same network.

    The weights of its last layer are used only if it has all labels of `dataset`.
    """
    teachers: tuple[Run, ...] = ()
    """Runs with the same labels; `Recipe.teacher_share` of each label is replaced by their scores."""


def train(request: TrainingRequest, run: Run, listener: TrainingListener, *, restart: bool = False) -> bool:
    """Train a network; write config, history, logs, Keras model and held-out drawings to `run`.

    If `run` has a checkpoint of an equal request, the training resumes; interruptions do not change the final weights.
    If `run` has the model of an equal request, nothing happens. `restart` discards the checkpoint and the model.

    Returns:
        Whether a network was trained.

    Raises:
        OutputRefused: The folder of `run` has files of another origin.
        RunIncomplete: `request.start_from` or a teacher has no model.
        RunRefused: Another process trains in `run`; or `run` holds another training and `restart` is false; or
            `request.start_from` has another network, or is missing although the recipe needs it; or a teacher has other
            labels; or there are teachers, but the recipe uses none; or one of these is `run` itself.
    """
    run.check_folder()
    _check(request, run)
    # With a starting point, a new last layer begins with the same weights for each seed: runs whose last layers began
    # with other weights have no useful average.
    keras.utils.set_random_seed(0 if request.start_from else request.seed)
    tf.config.experimental.enable_op_determinism()
    dataset = request.dataset
    config = _config(request)
    if request.start_from:
        model, config["start_from"] = _start_from(request.start_from, request)
    else:
        model = build(request.recipe.network, len(dataset.labels))
    teachers = tuple(load_model(teacher) for teacher in request.teachers)
    if teachers:
        config["teachers"] = [_check_teacher(request, *pair) for pair in zip(request.teachers, teachers, strict=True)]
    test = dataset.test.spaced(MEASURED_TEST_ROWS)
    data = TrainingData(train=dataset.train, validation=dataset.validation, test=test, teachers=teachers)
    with run.locked():
        state = run.state_for(config, restart=restart)
        if state is RunState.FINISHED:
            return False
        if state is RunState.NEW:
            _prepare(run, dataset, config)
            _write_training_digests(run, request)
        _fit(run, TrainingLoop(model, request.recipe, data, seed=request.seed, checkpoint=run.checkpoint), listener)
        save_model(run, model)
    return True


def _fit(run: Run, loop: TrainingLoop, listener: TrainingListener) -> None:
    """Run the loop to its end; write the history and the logs of each epoch."""
    listener.on_start(*loop.position, loop.steps)
    logs = tf.summary.create_file_writer(str(run.logs))
    for metrics in loop.run(listener.on_step):
        _write_history(run, loop.history)
        _log(logs, metrics)
        listener.on_epoch(metrics)
    logs.close()
    _write_history(run, loop.history)  # if a run was killed after its last checkpoint, the loop ran no epoch


def save_model(run: Run, model: keras.Model) -> None:
    """Replace the Keras model of `run` atomically, and delete the checkpoint: the training has ended."""
    with replacing(run.keras) as partial:
        unfinished = partial.with_suffix(".keras")  # Keras requires the suffix .keras
        model.save(unfinished)
        unfinished.replace(partial)
    run.checkpoint.unlink(missing_ok=True)


def load_model(run: Run) -> keras.Model:
    """Load the Keras model of `run`.

    Raises:
        RunIncomplete: The run has no model.
    """
    return keras.saving.load_model(run.need(run.keras), compile=False)


def provenance(source: Start, model: keras.Model) -> dict[str, Any]:
    """Return the entry about `source`, for the config of another run that is made from `source`."""
    config = source.read_config()
    entry = {"name": config["name"], "recipe": config["recipe"]["name"], "seed": config["seed"]}
    if isinstance(source, ModelFile):
        return entry | {"file_digest": source.digest()}
    digest = hashlib.sha256(b"".join(np.array(each).tobytes() for each in model.weights)).hexdigest()
    return entry | {"weights_digest": digest}


def model_name(name: str, labels: Sequence[str], source: str) -> str:
    """Return the name of a model: `name`, or one derived from its labels; that of synthetic drawings says so."""
    name = name or ("-".join(labels) if len(labels) <= 5 else f"{len(labels)}-classes")
    return f"synthetic-{name}" if source.startswith("synthetic") and not name.startswith("synthetic-") else name


def _check(request: TrainingRequest, run: Run) -> None:
    start = request.start_from
    check_start(request.recipe, start)
    folder = None if start is None else start.path.parent if isinstance(start, ModelFile) else start.folder
    if folder and folder.resolve() == run.folder.resolve():
        raise RunRefused(f"{run.folder}: a run cannot start from itself; name another folder with --run")
    if any(teacher.folder.resolve() == run.folder.resolve() for teacher in request.teachers):
        raise RunRefused(f"{run.folder}: a run cannot be its own teacher; name another folder with --run")
    if request.teachers and not request.recipe.teacher_share:
        raise RunRefused(f"recipe {request.recipe.name} uses no teacher; leave out --teacher")


def _prepare(run: Run, dataset: Dataset, config: dict[str, Any]) -> None:
    """Delete the output of an earlier training, and write the files whose content is known before the first step."""
    run.begin(config)
    if len(dataset.test):
        write_split(run.test, dataset.test, dataset.labels, f"{dataset.source}, held out of the training")
    if len(dataset.validation):
        drawings = dataset.validation.spaced(VALIDATION_ROWS)
        write_split(run.validation, drawings, dataset.labels, f"{dataset.source}, for validation")
    with replacing(run.recognized) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["label", "row", "is_recognized"])
        for label, flags in zip(dataset.labels, dataset.recognized, strict=True):
            lines.writerows((label, row, flags[row]) for row in np.flatnonzero(flags >= 0))
    write_bitmaps(run.calibration, _calibration(dataset.train, len(dataset.labels), config["seed"]))


def _write_training_digests(run: Run, request: TrainingRequest) -> None:
    """Write samples of the digests of the training drawings, and of those of the starting point if it has any."""
    start = request.start_from
    earlier = start.read_training_digests() if start else None
    own = request.dataset.training_digests
    with replacing(run.training_digests) as partial, partial.open("wb") as file:
        np.save(file, joined(own, earlier))


def _calibration(split: Split, classes: int, seed: int) -> Bitmaps:
    """Return random drawings of every class: uint8, (rows <= CALIBRATION_ROWS, 28, 28)."""
    random = np.random.default_rng(seed)
    edges = np.searchsorted(split.class_index, np.arange(classes + 1))  # a split is sorted by class
    indices = [
        first + random.permutation(last - first)[: max(1, CALIBRATION_ROWS // classes)]
        for first, last in itertools.pairwise(edges)
    ]
    return split.take(np.concatenate(indices)[:CALIBRATION_ROWS])[0]


def _start_from(source: Start, request: TrainingRequest) -> tuple[keras.Model, dict[str, Any]]:
    """Return a network with the weights of `source`, and the config entry about `source`."""
    config, labels = source.read_config(), request.dataset.labels
    network = json.loads(json.dumps(asdict(request.recipe.network)))
    if config["recipe"]["network"] | {"dropout": None} != network | {"dropout": None}:
        place = source.path if isinstance(source, ModelFile) else source.folder
        raise RunRefused(
            f"{place}: recipe {request.recipe.name} cannot start from recipe {config['recipe']['name']}, "
            "which has another network"
        )
    source_model = _source_model(source, request)
    model = build(request.recipe.network, len(labels), like=source_model)
    columns = {label: column for column, label in enumerate(config["labels"])}
    copy_weights(source_model, model, [columns[label] for label in labels] if set(labels) <= set(columns) else None)
    return model, provenance(source, source_model)


def _source_model(source: Start, request: TrainingRequest) -> keras.Model:
    """Load a run's model, or rebuild a model file's with the statistics of the training drawings."""
    if isinstance(source, Run):
        return load_model(source)
    drawings = _calibration(request.dataset.train, len(request.dataset.labels), request.seed)
    if isinstance(request.recipe.network, GraphNetwork):
        return rebuild_graph(source, drawings, LOGITS)
    return rebuild(source, drawings)


def _check_teacher(request: TrainingRequest, teacher: Run, model: keras.Model) -> dict[str, Any]:
    """Reject a teacher with other labels or another order of labels; return the config entry about the teacher."""
    expected, labels = request.dataset.labels, teacher.read_config()["labels"]
    if tuple(labels) != expected:
        raise RunRefused(f"{teacher.folder}: labels must be {', '.join(expected)}, got {', '.join(labels)}")
    return provenance(teacher, model)


def _write_history(run: Run, history: list[EpochMetrics]) -> None:
    with replacing(run.history) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, [each.name for each in fields(EpochMetrics)])
        lines.writeheader()
        lines.writerows(asdict(metrics) for metrics in history)


def _log(logs: Any, metrics: EpochMetrics) -> None:
    """Write the metrics of an epoch for TensorBoard."""
    with logs.as_default(step=metrics.epoch):
        for name, value in asdict(metrics).items():
            metric = name.removeprefix("val_").removeprefix("test_")
            tf.summary.scalar(f"{metric}/{_SPLITS[name.removesuffix(metric)]}", value)
    logs.flush()


def _config(request: TrainingRequest) -> dict[str, Any]:
    dataset = request.dataset
    packages = ("sketchbatch-trainer", "tensorflow", "keras", "numpy")
    return {
        "name": model_name(request.name, dataset.labels, dataset.source),
        "labels": dataset.labels,
        "source": dataset.source,
        "data_digest": dataset.digest,
        "rows": {"train": len(dataset.train), "validation": len(dataset.validation), "test": len(dataset.test)},
        "recipe": asdict(request.recipe),
        "seed": request.seed,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "malformed": dict(dataset.malformed),
        "passed_over": dict(dataset.passed_over),
        **({} if dataset.hold_out == HELD_OUT_TENTH else {"hold_out": str(dataset.hold_out)}),
    }
