"""Fits a network to drawings, step by step, so that a killed run ends where an unbroken one would.

Everything random follows from the seed and the step's number, nothing from what ran before: the order of an epoch, how
a drawing is moved, what dropout drops. So a checkpoint is the weights, the optimizer and how far it came. One is
written after each epoch, and within long epochs every `CHECKPOINT_S` seconds.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.evaluation.stats.metrics import confuse, measure

from ..dataset import Rows
from .augmentation import augment
from .networks import with_logits
from .recipes import Recipe

CHECKPOINT_S = 120.0
"""About the most seconds of work that a kill loses."""

_WARM_UP_SHARE = 0.05  # of all steps, up to the highest learning rate: AdamW's second moments are noise at first
_VALIDATION_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """How one epoch went. Losses are cross-entropies in nats; those of training with dropout, on moved drawings."""

    epoch: int
    """From 1."""
    loss: float
    accuracy: float
    val_loss: float
    """Of the weights that would be kept, as all figures of validation."""
    val_accuracy: float
    val_balanced_accuracy: float
    seconds: float


@dataclass(slots=True)
class _State:
    """How far a fit came, beside weights and optimizer."""

    step: int = 0
    """Steps of the epoch under way that are done."""
    loss_sum: float = 0.0
    hits: int = 0
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, of the lowest validation loss; 0 before the first."""
        return min(self.history, key=lambda each: each.val_loss).epoch if self.history else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What to learn from."""

    train: Rows
    validation: Rows
    teachers: tuple[keras.Model, ...] = ()
    """Networks whose scores stand in for part of each label (`Recipe.teacher_share`); they see what is learnt from."""


class Fit:
    """One fit of `model`, resumed from `checkpoint` if that is there."""

    def __init__(self, model: keras.Model, recipe: Recipe, lesson: Lesson, *, seed: int, checkpoint: Path) -> None:
        train = lesson.train
        self._model, self._recipe, self._seed = model, recipe, seed
        self._train, self._validation, self._teachers = train, lesson.validation, lesson.teachers
        self._checkpoint = checkpoint
        self.steps = math.ceil(len(train) / recipe.batch_rows)
        """Steps in an epoch."""
        self._logits = with_logits(model)
        self._dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
        self._optimizer = _optimizer(recipe, self.steps)
        self._optimizer.build(model.trainable_variables)
        self._class_weights = tf.constant(class_weights(train.class_index, recipe.class_balance), tf.float32)
        self._averages = [tf.Variable(each, trainable=False) for each in model.weights]
        self._kept = [np.array(each) for each in model.weights]
        self._state = _State()
        self._take_step = tf.function(self._step, reduce_retracing=True)
        self._predict = tf.function(lambda bitmaps: self._logits(bitmaps, training=False), reduce_retracing=True)
        if checkpoint.exists():
            self._restore()

    @property
    def history(self) -> list[Epoch]:
        """The epochs done, those before a resumption too."""
        return list(self._state.history)

    @property
    def done(self) -> tuple[int, int]:
        """Epochs done, and steps of the epoch under way; (0, 0) unless a fit that was cut off goes on."""
        return len(self._state.history), self._state.step

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, whose weights are kept if no later one is better."""
        return self._state.best_epoch if self._recipe.patience is not None else len(self._state.history)

    def epochs(self, on_step: Callable[[int], object] = lambda steps: None) -> Iterator[Epoch]:
        """Fits, and yields each epoch when it is done; after the last, the model has the weights that are kept.

        `on_step` hears how many steps of the epoch are done.
        """
        while not self._is_over():
            self._run_epoch(on_step)
            yield self._state.history[-1]
        _place(self._model.weights, self._kept)

    def _is_over(self) -> bool:
        done, patience = len(self._state.history), self._recipe.patience
        return done >= self._recipe.max_epochs or (patience is not None and done - self.best_epoch >= patience > 0)

    def _run_epoch(self, on_step: Callable[[int], object]) -> None:
        state, rows, epoch = self._state, self._recipe.batch_rows, len(self._state.history)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._train))
        saved_at = time.monotonic()
        while state.step < self.steps:
            started_at = time.monotonic()
            bitmaps, class_index = self._train.take(order[state.step * rows : (state.step + 1) * rows])
            loss_sum, hits = self._take_step(bitmaps, class_index, tf.constant(epoch * self.steps + state.step))
            state.loss_sum += float(loss_sum)
            state.hits += int(hits)
            state.step += 1
            on_step(state.step)
            state.seconds += time.monotonic() - started_at
            if time.monotonic() - saved_at > CHECKPOINT_S:
                self._save()
                saved_at = time.monotonic()
        self._end_epoch()

    def _step(self, bitmaps: tf.Tensor, class_index: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes one step; returns the sum of the rows' losses, and how many were named right."""
        recipe = self._recipe
        if recipe.augmentation:
            bitmaps = augment(bitmaps, recipe.augmentation, tf.stack([self._seed, number]))
        for place, layer in enumerate(self._dropouts, start=1):
            state = layer.seed_generator.state
            state.assign(tf.cast(tf.stack([self._seed + place * 2**20, number]), state.dtype))
        targets = self._targets(bitmaps, class_index)
        with tf.GradientTape() as tape:
            logits = self._logits(bitmaps, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses * tf.gather(self._class_weights, class_index))
            loss += tf.add_n([0.0, *self._model.losses])
        weights = self._model.trainable_variables
        self._optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self._average(tf.cast(number, tf.float32))
        return tf.reduce_sum(_cross_entropy(class_index, logits)), _hits(class_index, logits)

    def _targets(self, bitmaps: tf.Tensor, class_index: tf.Tensor) -> tf.Tensor:
        """What each row should score: its label, smoothed, and what the teachers say of the very same bitmap."""
        classes, recipe = self._logits.output.shape[1], self._recipe
        spread = recipe.label_smoothing / classes
        targets = tf.one_hot(class_index, classes, 1 - recipe.label_smoothing + spread, spread)
        if not self._teachers:
            return targets
        seen = [bitmaps]
        if recipe.augmentation and recipe.augmentation.flips:
            seen.append(tf.reverse(bitmaps, axis=[2]))  # a mirror does not change what it is: two opinions for one
        said = [teacher(each, training=False) for teacher in self._teachers for each in seen]
        taught = tf.add_n(said) / len(said)
        return (1 - recipe.teacher_share) * targets + recipe.teacher_share * taught

    def _average(self, number: tf.Tensor) -> None:
        """Moves the averages towards the weights: fast at first, when they are far off."""
        decay = tf.minimum(self._recipe.average_decay, (1 + number) / (10 + number))
        for average, weight in zip(self._averages, self._model.weights, strict=True):
            average.assign(decay * average + (1 - decay) * tf.convert_to_tensor(weight))

    def _end_epoch(self) -> None:
        state, weights = self._state, [np.array(each) for each in self._model.weights]
        averages = [each.numpy() for each in self._averages]
        _place(self._model.weights, averages)
        val_loss, confusion = self._validate()
        _place(self._model.weights, weights)
        measured = measure(confusion)
        state.history.append(
            Epoch(
                epoch=len(state.history) + 1,
                loss=state.loss_sum / len(self._train),
                accuracy=state.hits / len(self._train),
                val_loss=val_loss,
                val_accuracy=measured.accuracy,
                val_balanced_accuracy=measured.balanced_accuracy,
                seconds=round(state.seconds, 3),
            )
        )
        if self.best_epoch == len(state.history):
            self._kept = averages
        state.step, state.loss_sum, state.hits, state.seconds = 0, 0.0, 0, 0.0
        self._save()

    def _validate(self) -> tuple[float, NDArray[np.int64]]:
        """Mean loss and confusion matrix of the validation drawings."""
        loss_sum, classes = 0.0, int(self._class_weights.shape[0])
        confusion = np.zeros((classes, classes), np.int64)
        for bitmaps, class_index in self._validation.blocks(_VALIDATION_ROWS):
            logits = self._predict(bitmaps)
            loss_sum += float(tf.reduce_sum(_cross_entropy(class_index, logits)))
            confusion += confuse(class_index, np.argmax(logits, axis=1), classes)
        return loss_sum / len(self._validation), confusion

    def _save(self) -> None:
        state = json.dumps(asdict(self._state))
        groups = {name: [np.array(each) for each in variables] for name, variables in self._variables().items()}
        groups["kept"] = self._kept
        arrays = {f"{name}/{n}": array for name, group in groups.items() for n, array in enumerate(group)}
        with replacing(self._checkpoint) as partial, partial.open("wb") as file:
            np.savez(file, state=np.array(state), **arrays)  # type: ignore[arg-type]  # its stub takes every keyword for a flag

    def _restore(self) -> None:
        with np.load(self._checkpoint) as saved:
            for name, variables in self._variables().items():
                _place(variables, [saved[f"{name}/{n}"] for n in range(len(variables))])
            self._kept = [saved[f"kept/{n}"] for n in range(len(self._kept))]
            state = json.loads(str(saved["state"]))
        self._state = _State(**{**state, "history": [Epoch(**each) for each in state["history"]]})

    def _variables(self) -> dict[str, list[Any]]:
        return {
            "weights": self._model.weights,
            "optimizer": self._optimizer.variables,
            "averages": self._averages,
        }


def class_weights(class_index: NDArray[np.int32], balance: float) -> NDArray[np.float64]:
    """A weight for each class, its number of drawings to the power of `-balance`; the mean over drawings is 1."""
    counts = np.bincount(class_index)
    weights = counts.astype(np.float64) ** -balance
    scaled: NDArray[np.float64] = weights * len(class_index) / (weights * counts).sum()
    return scaled


def _optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    rate: Any = recipe.learning_rate
    if recipe.is_cosine:
        warm_up = round(_WARM_UP_SHARE * steps * recipe.max_epochs)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps * recipe.max_epochs - warm_up, warmup_target=recipe.learning_rate, warmup_steps=warm_up
        )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _cross_entropy(class_index: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The loss of each row by its label alone, in nats."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(class_index, logits)


def _hits(class_index: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.math.count_nonzero(tf.argmax(logits, axis=1, output_type=tf.int32) == class_index)


def _place(variables: list[Any], values: list[NDArray[Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
