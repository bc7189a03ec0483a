"""Fit a network to drawings step by step; a resumed training ends with the weights of an uninterrupted training.

The order of the rows, augmentation and dropout depend only on the seed and the number of the step. A checkpoint
therefore contains only the weights, the state of the optimizer and the position. A checkpoint is written after each
epoch, and every `CHECKPOINT_S` seconds within a long epoch.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.evaluation.stats.metrics import confuse, measure

from ..dataset import Split
from .augmentation import augment
from .networks import with_logits
from .recipes import Recipe

CHECKPOINT_S = 120.0
"""Seconds between two checkpoints; a training that is killed loses about this much work at most."""

# Share of all steps in which the learning rate rises. It starts low, because AdamW's second moments start as noise.
_WARM_UP_SHARE = 0.05
_MEASURED_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """Metrics of one epoch. Losses are cross-entropies in nats; training losses include dropout and augmentation.

    The metrics of a split without drawings are NaN.
    """

    epoch: int
    """Number of the epoch, from 1."""
    loss: float
    accuracy: float
    val_loss: float
    """Validation loss. All validation metrics are measured with the averaged weights."""
    val_accuracy: float
    val_balanced_accuracy: float
    seconds: float
    """Duration of the training steps."""
    test_loss: float = math.nan
    """Loss of the test drawings with the averaged weights; no step uses it. NaN = an older version ran the epoch."""
    test_accuracy: float = math.nan


@dataclass(frozen=True, slots=True)
class _Measured:
    """The loss and the metrics of a split; NaN = the split has no drawings."""

    loss: float = math.nan
    accuracy: float = math.nan
    balanced_accuracy: float = math.nan


@dataclass(slots=True)
class _State:
    """The position in the current epoch, and sums over the finished steps of the epoch."""

    step: int = 0
    """Number of finished steps in the current epoch."""
    loss_sum: float = 0.0
    hits: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The splits and the teachers of a training."""

    train: Split
    validation: Split
    test: Split
    """Drawings that are only measured: the training chooses nothing by them."""
    teachers: tuple[keras.Model, ...] = ()
    """Networks that score each training bitmap; their scores replace `Recipe.teacher_share` of its label."""


class TrainingLoop:
    """One training of `model`, resumed from the file `checkpoint` if it exists."""

    def __init__(self, model: keras.Model, recipe: Recipe, data: TrainingData, *, seed: int, checkpoint: Path) -> None:
        self._model, self._recipe, self._data, self._seed = model, recipe, data, seed
        self._checkpoint = checkpoint
        self.steps = math.ceil(len(data.train) / recipe.batch_rows)
        """Steps per epoch."""
        self.history: list[EpochMetrics] = []
        """Metrics of all finished epochs, including the epochs before a resumption."""
        self._logits = with_logits(model)
        self._dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
        self._optimizer = _build_optimizer(recipe, self.steps)
        self._optimizer.build(model.trainable_variables)
        self._class_weights = tf.constant(class_weights(data.train.class_index, recipe.class_balance), tf.float32)
        self._averages = [tf.Variable(each, trainable=False) for each in model.weights]
        self._best_weights = [np.array(each) for each in model.weights]
        self._state = _State()
        self._take_step = tf.function(self._step, reduce_retracing=True)
        self._predict = tf.function(
            lambda bitmaps: self._logits(bitmaps, training=False),
            input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8)],
        )
        if checkpoint.exists():
            self._restore()

    @property
    def position(self) -> tuple[int, int]:
        """Number of finished epochs, and of finished steps of the current epoch; (0, 0) when a training begins."""
        return len(self.history), self._state.step

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, with the best weights so far; without early stopping the last epoch; 0 at the start."""
        if self._recipe.patience is None or not self.history:
            return len(self.history)
        return min(self.history, key=lambda each: each.val_loss).epoch

    def run(self, on_step: Callable[[int], object] = lambda steps_done: None) -> Iterator[EpochMetrics]:
        """Train, and yield the metrics of each epoch; after the last epoch the model has the best weights.

        `on_step` is called after each step with the number of finished steps of the epoch.
        """
        while not self._is_finished():
            self._run_epoch(on_step)
            yield self.history[-1]
        _assign(self._model.weights, self._best_weights)

    def _is_finished(self) -> bool:
        epochs, patience = len(self.history), self._recipe.patience
        return epochs >= self._recipe.max_epochs or (patience is not None and epochs - self.best_epoch >= patience > 0)

    def _run_epoch(self, on_step: Callable[[int], object]) -> None:
        state, rows, epoch = self._state, self._recipe.batch_rows, len(self.history)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._data.train))
        saved_at = time.monotonic()
        while state.step < self.steps:
            started_at = time.monotonic()
            bitmaps, class_index = self._data.train.take(order[state.step * rows : (state.step + 1) * rows])
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
        """Train on one batch; return the sum of the rows' losses and the number of correct rows."""
        recipe = self._recipe
        if recipe.augmentation:
            bitmaps = augment(bitmaps, recipe.augmentation, tf.stack([self._seed, number]))
        for index, layer in enumerate(self._dropouts, start=1):
            state = layer.seed_generator.state
            state.assign(tf.cast(tf.stack([self._seed + index * 2**20, number]), state.dtype))
        targets = self._targets(bitmaps, class_index)
        with tf.GradientTape() as tape:
            logits = self._logits(bitmaps, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses * tf.gather(self._class_weights, class_index))
            loss += tf.add_n([0.0, *self._model.losses])
        weights = self._model.trainable_variables
        self._optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self._update_averages(tf.cast(number, tf.float32))
        hits = tf.math.count_nonzero(tf.argmax(logits, axis=1, output_type=tf.int32) == class_index)
        return _sum_losses(class_index, logits), hits

    def _targets(self, bitmaps: tf.Tensor, class_index: tf.Tensor) -> tf.Tensor:
        """Return the target scores of each row: its smoothed label, mixed with the teachers' scores of its bitmap."""
        classes, recipe = self._logits.output.shape[1], self._recipe
        spread = recipe.label_smoothing / classes
        targets = tf.one_hot(class_index, classes, 1 - recipe.label_smoothing + spread, spread)
        if not self._data.teachers:
            return targets
        views = [bitmaps]
        if recipe.augmentation and recipe.augmentation.flips:
            views.append(tf.reverse(bitmaps, axis=[2]))  # a mirrored drawing has the same class: average both scores
        scores = [teacher(view, training=False) for teacher in self._data.teachers for view in views]
        teacher_scores = tf.add_n(scores) / len(scores)
        return (1 - recipe.teacher_share) * targets + recipe.teacher_share * teacher_scores

    def _update_averages(self, number: tf.Tensor) -> None:
        """Move the averaged weights towards the current weights, with a lower decay in the first steps."""
        decay = tf.minimum(self._recipe.average_decay, (1 + number) / (10 + number))
        for average, weight in zip(self._averages, self._model.weights, strict=True):
            average.assign(decay * average + (1 - decay) * tf.convert_to_tensor(weight))

    def _end_epoch(self) -> None:
        state, weights = self._state, [np.array(each) for each in self._model.weights]
        averages = [each.numpy() for each in self._averages]
        _assign(self._model.weights, averages)
        validation = self._measure_split(self._data.validation)
        test = self._measure_split(self._data.test)
        _assign(self._model.weights, weights)
        self.history.append(
            EpochMetrics(
                epoch=len(self.history) + 1,
                loss=state.loss_sum / len(self._data.train),
                accuracy=state.hits / len(self._data.train),
                val_loss=validation.loss,
                val_accuracy=validation.accuracy,
                val_balanced_accuracy=validation.balanced_accuracy,
                seconds=round(state.seconds, 3),
                test_loss=test.loss,
                test_accuracy=test.accuracy,
            )
        )
        if self.best_epoch == len(self.history):
            self._best_weights = averages
        self._state = _State()
        self._save()

    def _measure_split(self, split: Split) -> _Measured:
        """Return the mean loss and the metrics of the drawings of a split."""
        if not len(split):
            return _Measured()
        loss_sum, classes = 0.0, int(self._class_weights.shape[0])
        confusion = np.zeros((classes, classes), np.int64)
        for bitmaps, class_index in split.blocks(_MEASURED_AT_ONCE):
            logits = self._predict(bitmaps)
            loss_sum += float(_sum_losses(class_index, logits))
            confusion += confuse(class_index, np.argmax(logits, axis=1), classes)
        metrics = measure(confusion)
        return _Measured(loss_sum / len(split), metrics.accuracy, metrics.balanced_accuracy)

    def _save(self) -> None:
        groups = {name: [np.array(each) for each in variables] for name, variables in self._variables().items()}
        groups["kept"] = self._best_weights
        arrays = {f"{name}/{n}": array for name, group in groups.items() for n, array in enumerate(group)}
        history = [asdict(metrics) for metrics in self.history]
        state = np.array(json.dumps(asdict(self._state) | {"history": history}))
        with replacing(self._checkpoint) as partial, partial.open("wb") as file:
            np.savez(file, state=state, **arrays)  # type: ignore[arg-type]  # NumPy's stub reads keywords as flags

    def _restore(self) -> None:
        with np.load(self._checkpoint) as saved:
            for name, variables in self._variables().items():
                _assign(variables, [saved[f"{name}/{n}"] for n in range(len(variables))])
            self._best_weights = [saved[f"kept/{n}"] for n in range(len(self._best_weights))]
            state = json.loads(str(saved["state"]))
        self.history = [EpochMetrics(**metrics) for metrics in state.pop("history")]
        self._state = _State(**state)

    def _variables(self) -> dict[str, list[Any]]:
        return {"weights": self._model.weights, "optimizer": self._optimizer.variables, "averages": self._averages}


def class_weights(class_index: NDArray[np.int32], balance: float) -> NDArray[np.float64]:
    """Return the weight of each class: (number of its drawings) ** -balance, scaled to a mean weight of 1 per row."""
    counts = np.bincount(class_index)
    weights = counts.astype(np.float64) ** -balance
    scaled: NDArray[np.float64] = weights * len(class_index) / (weights * counts).sum()
    return scaled


def _build_optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    rate: Any = recipe.learning_rate
    if recipe.is_cosine:
        warm_up = round(_WARM_UP_SHARE * steps * recipe.max_epochs)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps * recipe.max_epochs - warm_up, warmup_target=recipe.learning_rate, warmup_steps=warm_up
        )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _sum_losses(class_index: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the sum, over rows, of the cross-entropy between the label and the scores, in nats."""
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(class_index, logits))


def _assign(variables: list[Any], values: list[NDArray[Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
