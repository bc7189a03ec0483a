"""Export a trained model as one self-describing ONNX file; refuse the export if ONNX and Keras scores differ.

docs/model-file.md describes the exported ONNX file.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from sketchbatch_client.evaluation.training_digests import encoded
from sketchbatch_client.strict_json import encode

from ..errors import ExportRefused
from ..run import Run, Variant
from ..train import networks  # noqa: F401 - registers the custom layers of saved models
from .held_out import Scores, onnx_scores, read_held_out, save_described

OPSET = 18
"""The highest opset that tf2onnx 1.17 supports."""

TOLERANCE = 1e-4
"""Largest allowed difference of a score between Keras and ONNX Runtime, both in float32 on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Comparison of the scores of ONNX Runtime and Keras."""

    rows: int
    """Number of held-out drawings."""
    max_difference: float
    """Largest difference between a score of ONNX Runtime and the same score of Keras."""

    def __str__(self) -> str:
        return (
            f"Keras and ONNX differ by at most {self.max_difference:.1e} on {self.rows:,} held-out drawings "
            f"(limit {TOLERANCE:.0e})"
        )


def export(run: Run, *, version: int = 1, licence: str = "") -> Parity:
    """Write the run's model.onnx from its Keras model, with metrics on the held-out drawings.

    Raises:
        RunIncomplete: The run has no trained model.
        ExportRefused: A score of ONNX and Keras differs by more than `TOLERANCE`; the run then has no model.onnx.
    """
    config = run.read_config()
    model = keras.saving.load_model(run.need(run.keras))
    held_out = read_held_out(run, config["labels"])
    for variant in Variant:  # also deletes the variants of an earlier model
        run.exported(variant).unlink(missing_ok=True)
    graph = to_onnx(model)
    scores = onnx_scores(graph, held_out.bitmaps)
    parity = compare(np.asarray(model.predict(held_out.bitmaps, verbose=0)), scores)
    metrics = held_out.measure(scores) | {
        "rows": parity.rows,
        "variant": str(Variant.FLOAT32),
        "parity_max_difference": parity.max_difference,
    }
    digests = run.read_training_digests()
    own = {} if digests is None else {"sketchbatch.training_digests": encoded(digests)}
    save_described(graph, run.onnx, _metadata(config, metrics, version, licence) | own)
    return parity


def compare(keras_scores: Scores, onnx_scores: Scores) -> Parity:
    """Compare the scores of Keras and of ONNX Runtime for the same drawings.

    Raises:
        ExportRefused: A score differs by more than `TOLERANCE`, or is NaN.
    """
    parity = Parity(rows=len(onnx_scores), max_difference=float(np.abs(keras_scores - onnx_scores).max()))
    if not parity.max_difference <= TOLERANCE:  # `not <=` is also true for NaN
        raise ExportRefused(f"export refused: {parity}")
    return parity


def to_onnx(model: keras.Model) -> onnx.ModelProto:
    """Convert a Keras model to an ONNX graph: bitmaps uint8 (N, 28, 28) -> scores float32 (N, classes).

    tf2onnx's `from_keras` fails on Keras 3 (tensorflow-onnx#2448), so this function uses `from_function`. The key of
    the dict that the inner function returns becomes the name of the graph's output.
    """
    signature = [tf.TensorSpec([None, 28, 28], tf.uint8, name="bitmaps")]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def scores(bitmaps: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": model(bitmaps, training=False)}

    graph: onnx.ModelProto = tf2onnx.convert.from_function(scores, input_signature=signature, opset=OPSET)[0]
    onnx.checker.check_model(graph)
    return graph


def _metadata(config: dict[str, Any], metrics: dict[str, Any], version: int, licence: str) -> dict[str, str]:
    return {
        "sketchbatch.labels": encode(config["labels"]),
        "sketchbatch.name": config["name"],
        "sketchbatch.version": str(version),
        "sketchbatch.created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sketchbatch.data_digest": config["data_digest"],
        "sketchbatch.config": encode(config),
        "sketchbatch.metrics": encode(metrics),
        "sketchbatch.licence": licence or "not stated",
    }
