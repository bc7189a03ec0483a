"""Fits a network: prepare, build, fit. Same seed, same drawings and same versions give the same weights on CPU."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing

from .drawings import Drawings, write_labelled
from .networks import article_cnn
from .recipes import Recipe
from .run import Run


def train(
    drawings: Drawings, recipe: Recipe, run: Run, *, seed: int, callbacks: Sequence[keras.callbacks.Callback] = ()
) -> None:
    """Trains `recipe` on `drawings`; leaves config, history, Keras model and held-out drawings in `run`."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    _clear(run)
    write_labelled(run.test, drawings.test, drawings.labels, drawings.source)
    run.write_config(_config(drawings, recipe, seed))
    model = article_cnn(recipe, len(drawings.labels))
    model.compile(
        optimizer=keras.optimizers.Adam(recipe.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        drawings.train.bitmaps,
        drawings.train.class_index,
        validation_data=(drawings.validation.bitmaps, drawings.validation.class_index),
        batch_size=recipe.batch_rows,
        epochs=recipe.max_epochs,
        class_weight=class_weights(drawings.train.class_index),
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True),
            keras.callbacks.CSVLogger(str(run.history)),
            *callbacks,
        ],
        verbose=0,
    )
    with replacing(run.keras) as partial:
        unfinished = partial.with_suffix(".keras")  # Keras insists on its ending
        model.save(unfinished)
        unfinished.replace(partial)


def class_weights(class_index: NDArray[np.int64]) -> dict[int, float]:
    """A weight for each class, so that every class counts the same however many drawings it has; mean over rows 1."""
    counts = np.bincount(class_index)
    return {index: len(class_index) / (len(counts) * count) for index, count in enumerate(counts)}


def _clear(run: Run) -> None:
    """Removes what an earlier training left, so that no later step takes it for this one's."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for stale in (run.keras, run.onnx, run.history, run.scores, run.metrics, run.report, *run.test.glob("*.npy")):
        stale.unlink(missing_ok=True)


def _config(drawings: Drawings, recipe: Recipe, seed: int) -> dict[str, Any]:
    name = "-".join(drawings.labels) if len(drawings.labels) <= 5 else f"quickdraw-{len(drawings.labels)}"
    return {
        "name": f"synthetic-{name}" if drawings.source.startswith("synthetic") else name,
        "labels": drawings.labels,
        "source": drawings.source,
        "data_digest": drawings.digest,
        "rows": {"train": len(drawings.train), "validation": len(drawings.validation), "test": len(drawings.test)},
        "recipe": asdict(recipe),
        "seed": seed,
        "versions": {package: importlib.metadata.version(package) for package in ("tensorflow", "keras", "numpy")},
    }
