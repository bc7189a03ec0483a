"""Trains a recipe on drawings: prepare, build, fit, keep. Same seed, drawings and versions: same weights on a CPU."""

import csv
import hashlib
import importlib.metadata
import itertools
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import Bitmaps

from ..dataset import Drawings, Rows, write_bitmaps, write_labelled
from ..errors import RunRefused
from ..run import Run
from .fit import Epoch, Fit, Lesson
from .networks import build, start_from
from .recipes import Recipe

CALIBRATION_ROWS = 1024
"""Training drawings left in the run, from which an int8 export learns the range of each activation."""


class Watcher(Protocol):
    """Hears how the fit goes."""

    def begins(self, epochs_done: int, steps_done: int, steps: int) -> None:
        """Before the first step; more than 0 done means that a run that was cut off goes on. `steps` in an epoch."""

    def steps_done(self, steps: int) -> None:
        """After each step: how many of this epoch are done."""

    def epoch_done(self, epoch: Epoch) -> None:
        """After each epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to train, and on what."""

    drawings: Drawings
    recipe: Recipe
    seed: int
    name: str = ""
    """Of the model; empty = from the labels."""
    start_from: Run | None = None
    """A run of the same network whose weights are the first ones; those of the last layer where it knows all labels."""
    teachers: tuple[Run, ...] = ()
    """Runs on the same labels whose models' scores stand in for part of each label."""


def train(job: Job, run: Run, watcher: Watcher) -> None:
    """Does the job; leaves config, history, logs, Keras model and held-out drawings in `run`.

    A job that was killed, asked for again in the same words, goes on where it was and ends with the same weights.

    Raises:
        RunIncomplete: `job.start_from` or a teacher has no model.
        RunRefused: The first is of another network or `run` itself, a teacher of other labels or of no use.
    """
    _check(job, run)
    keras.utils.set_random_seed(job.seed)
    tf.config.experimental.enable_op_determinism()
    drawings = job.drawings
    model = build(job.recipe.network, len(drawings.labels))
    config = _config(job)
    if job.start_from:
        config["start_from"] = _start_from(model, job, job.start_from)
    teachers = tuple(load(teacher) for teacher in job.teachers)
    if teachers:
        config["teachers"] = [_as_teacher(job, *pair) for pair in zip(job.teachers, teachers, strict=True)]
    if not _is_cut_off(run, config):
        _prepare(run, drawings, config)
    lesson = Lesson(train=drawings.train, validation=drawings.validation, teachers=teachers)
    fit = Fit(model, job.recipe, lesson, seed=job.seed, checkpoint=run.checkpoint)
    watcher.begins(*fit.done, fit.steps)
    board = tf.summary.create_file_writer(str(run.logs))
    for epoch in fit.epochs(watcher.steps_done):
        _write_history(run, fit.history)
        _log(board, epoch)
        watcher.epoch_done(epoch)
    board.close()
    _write_history(run, fit.history)  # a kill may have come between the last checkpoint and its line
    keep(run, model)


def clear(run: Run) -> None:
    """Makes the folder, and removes what an earlier training left, so that no step takes it for this one's."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for stale in (*run.made, *run.test.glob("*.npy"), *run.logs.glob("events.*")):
        stale.unlink(missing_ok=True)


def keep(run: Run, model: keras.Model) -> None:
    """Writes the model of `run`, whole or not at all; with it the training is done."""
    with replacing(run.keras) as partial:
        unfinished = partial.with_suffix(".keras")  # Keras insists on its ending
        model.save(unfinished)
        unfinished.replace(partial)
    run.checkpoint.unlink(missing_ok=True)


def load(run: Run) -> keras.Model:
    """The model of a run.

    Raises:
        RunIncomplete: It was not trained.
    """
    made_by = f"sketchbatch-train train --run {run.folder} ..."
    return keras.saving.load_model(run.need(run.keras, made_by), compile=False)


def remembered(run: Run, model: keras.Model) -> dict[str, Any]:
    """What a run says of another that it was made from: name, recipe, seed, digest of the weights."""
    config = run.read_config()
    digest = hashlib.sha256(b"".join(np.array(each).tobytes() for each in model.weights)).hexdigest()
    return {
        "name": config["name"],
        "recipe": config["recipe"]["name"],
        "seed": config["seed"],
        "weights_digest": digest,
    }


def _check(job: Job, run: Run) -> None:
    if job.start_from and job.start_from.folder.resolve() == run.folder.resolve():
        raise RunRefused(f"{run.folder}: a run cannot start from itself; name another folder with --run")
    if job.teachers and not job.recipe.teacher_share:
        raise RunRefused(f"recipe {job.recipe.name} learns from no teacher; leave out --teacher")


def _is_cut_off(run: Run, config: dict[str, Any]) -> bool:
    """Whether the same job was begun in `run` and not ended."""
    return run.checkpoint.exists() and run.config.exists() and run.read_config() == json.loads(json.dumps(config))


def _prepare(run: Run, drawings: Drawings, config: dict[str, Any]) -> None:
    """Leaves in `run` what is known before the first step, and nothing of an earlier training."""
    clear(run)
    write_labelled(run.test, drawings.test, drawings.labels, drawings.source)
    _write_recognized(run, drawings)
    write_bitmaps(run.calibration, _calibration(drawings.train, len(drawings.labels), config["seed"]))
    run.write_config(config)


def _write_recognized(run: Run, drawings: Drawings) -> None:
    """Notes of which held-out drawings it is known whether the game recognised them."""
    with replacing(run.recognized) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["label", "row", "is_recognized"])
        for label, flags in zip(drawings.labels, drawings.recognized, strict=True):
            lines.writerows((label, row, flags[row]) for row in np.flatnonzero(flags >= 0))


def _calibration(rows: Rows, classes: int, seed: int) -> Bitmaps:
    """Some drawings of every class: uint8, (rows <= CALIBRATION_ROWS, 28, 28)."""
    random = np.random.default_rng(seed)
    edges = np.searchsorted(rows.class_index, np.arange(classes + 1))  # rows stand in order of class
    each = [
        first + random.permutation(last - first)[: max(1, CALIBRATION_ROWS // classes)]
        for first, last in itertools.pairwise(edges)
    ]
    return rows.take(np.concatenate(each)[:CALIBRATION_ROWS])[0]


def _start_from(model: keras.Model, job: Job, earlier: Run) -> dict[str, Any]:
    """Takes the weights of `earlier`; returns what to remember of it."""
    weights, config = load(earlier), earlier.read_config()
    shape = json.loads(json.dumps(asdict(job.recipe.network)))
    if config["recipe"]["network"] | {"dropout": None} != shape | {"dropout": None}:
        raise RunRefused(
            f"{earlier.folder}: its network is that of recipe {config['recipe']['name']}; recipe {job.recipe.name} "
            "cannot start from it"
        )
    known = {label: column for column, label in enumerate(config["labels"])}
    labels = job.drawings.labels
    start_from(model, weights, [known[label] for label in labels] if set(labels) <= set(known) else None)
    return remembered(earlier, weights)


def _as_teacher(job: Job, teacher: Run, model: keras.Model) -> dict[str, Any]:
    """What to remember of a teacher; it must know the same labels in the same order."""
    labels = teacher.read_config()["labels"]
    if tuple(labels) != job.drawings.labels:
        raise RunRefused(
            f"{teacher.folder}: its labels are not those to train: expected {', '.join(job.drawings.labels)}, "
            f"got {', '.join(labels)}"
        )
    return remembered(teacher, model)


def _write_history(run: Run, history: list[Epoch]) -> None:
    with replacing(run.history) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, [each.name for each in fields(Epoch)])
        lines.writeheader()
        lines.writerows(asdict(epoch) for epoch in history)


def _log(board: Any, epoch: Epoch) -> None:
    """Writes the figures of an epoch for TensorBoard."""
    with board.as_default(step=epoch.epoch):
        for name, value in asdict(epoch).items():
            figure = name.removeprefix("val_")
            tf.summary.scalar(f"{figure}/{'training' if figure == name else 'validation'}", value)
    board.flush()


def _config(job: Job) -> dict[str, Any]:
    drawings = job.drawings
    labels = drawings.labels
    name = job.name or ("-".join(labels) if len(labels) <= 5 else f"{len(labels)}-classes")
    return {
        "name": f"synthetic-{name}" if drawings.source.startswith("synthetic") else name,
        "labels": labels,
        "source": drawings.source,
        "data_digest": drawings.digest,
        "rows": {"train": len(drawings.train), "validation": len(drawings.validation), "test": len(drawings.test)},
        "recipe": asdict(job.recipe),
        "seed": job.seed,
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("sketchbatch-trainer", "tensorflow", "keras", "numpy")
        },
    }
