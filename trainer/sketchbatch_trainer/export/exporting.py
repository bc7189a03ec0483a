"""Export a trained model as one self-describing ONNX file; refuse the export if ONNX and Keras scores differ.

docs/model-file.md describes the exported ONNX file.
"""

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from sketchbatch_client.evaluation.stats import rejection
from sketchbatch_client.evaluation.stats.calibration import calibrate
from sketchbatch_client.evaluation.training_digests import encoded
from sketchbatch_client.strict_json import encode

from ..errors import ExportRefused
from ..run import Run, Variant, check_model_output, exported_properties
from ..train import networks
from .held_out import Scores, onnx_scores, read_held_out, read_validation, save_described
from .out_of_fold import OutOfFold, read_out_of_fold
from .temperature import fit

OPSET = 18
"""The highest opset that tf2onnx 1.17 supports."""

TOLERANCE = 1e-4
"""Largest allowed difference of a score between Keras and ONNX Runtime, both in float32 on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Comparison of the scores of ONNX Runtime and Keras."""

    rows: int
    """Number of drawings that were scored."""
    max_difference: float
    """Largest difference between a score of ONNX Runtime and the same score of Keras."""
    kind: str = "held-out drawings"
    """`HeldOut.kind`"""

    def __str__(self) -> str:
        return (
            f"Keras and ONNX differ by at most {self.max_difference:.1e} on {self.rows:,} {self.kind} "
            f"(limit {TOLERANCE:.0e})"
        )


def export(run: Run, *, version: int | None = None, licence: str = "") -> Parity:
    """Write the run's model.onnx from its Keras model, with metrics on the held-out drawings.

    The weights of the last layer are divided by a temperature, so that the scores agree with the share of correct
    predictions. It is fitted on the drawings for validation, or on the cross-validation of a training on all drawings,
    whose metrics the file then states. The predicted labels do not change. If the cross-validation scored drawings of
    other classes, the file also has thresholds for them (`sketchbatch.rejection`).

    The file of an earlier export stays until the new file replaces it, and stays if it is the same model. Without
    `version`, the model of a new training or cross-validation receives the number after that of the earlier file, so
    that a service and its clients can tell both models apart.

    Raises:
        RunIncomplete: The run has no trained model; or all drawings trained, and no cross-validation judged them.
        OutputRefused: The run's model.onnx is not an exported model.
        ExportRefused: A score of ONNX and Keras differs by more than `TOLERANCE`; no file is written.
    """
    config = run.read_config()
    check_model_output(run.onnx)
    model = keras.saving.load_model(run.need(run.keras))
    held_out = read_held_out(run, config["labels"])
    out_of_fold = read_out_of_fold(run)
    earlier = exported_properties(run.onnx) if run.onnx.exists() else {}
    temperature = out_of_fold.temperature() if out_of_fold else _temperature(run, model, config["labels"])
    if temperature != 1:
        model = networks.divide_logits(model, temperature)
    graph = to_onnx(model)
    scores = onnx_scores(graph, held_out.bitmaps)
    keras_scores = np.asarray(model.predict(held_out.bitmaps, verbose=0))
    parity = replace(compare(keras_scores, scores), kind=held_out.kind)
    judged = out_of_fold.scores()[0] if out_of_fold else scores
    metrics = held_out.measure(judged) | {
        "rows": parity.rows,
        "variant": str(Variant.FLOAT32),
        "parity_max_difference": parity.max_difference,
        "calibration_error": calibrate(judged, held_out.class_index).expected_error,
        "temperature": temperature,
        **({"folds": out_of_fold.folds} if out_of_fold else {}),
    }
    thresholds = _rejection(out_of_fold) if out_of_fold else {}
    is_same = is_same_model(earlier, config, temperature, thresholds)
    version = version or next_version(earlier, is_same=is_same)
    digests = run.read_training_digests()
    own = {} if digests is None else {"sketchbatch.training_digests": encoded(digests)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    created = earlier.get("sketchbatch.created", now) if is_same else now  # the same model must not look like another
    properties = _metadata(config, metrics, version, licence) | thresholds | own | {"sketchbatch.created": created}
    if properties != earlier or _operators(onnx.load(run.onnx)) != _operators(graph):
        save_described(graph, run.onnx, properties)
    return parity


def _temperature(run: Run, model: keras.Model, labels: list[str]) -> float:
    """Return the temperature for the drawings for validation; 1 = there are too few."""
    drawings = read_validation(run, labels)
    if drawings is None:
        return 1.0
    logits = networks.with_logits(model).predict(drawings.bitmaps, verbose=0)
    return fit(np.asarray(logits), drawings.class_index)


def _rejection(out_of_fold: OutOfFold) -> dict[str, str]:
    """Return the thresholds for drawings of other classes; nothing if the cross-validation had none of them."""
    known, unknown = out_of_fold.scores()
    if not len(unknown):
        return {}
    is_correct = known.argmax(axis=1) == out_of_fold.class_index
    return {rejection.KEY: rejection.encode(rejection.fit(known.max(axis=1), is_correct, unknown.max(axis=1)))}


def next_version(earlier: dict[str, str], *, is_same: bool) -> int:
    """Return the version for a model; `earlier` are the properties of the last export, `is_same` says if it is that.

    The same model keeps its version; another one receives the next number. Without an earlier export, return 1.
    """
    found = earlier.get("sketchbatch.version", "")
    version = int(found) if found.isdecimal() else 0
    return max(1, version if is_same else version + 1)


def _operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph, which are compared because tf2onnx names the nodes differently each time."""
    return [node.op_type for node in model.graph.node]


def is_same_model(
    earlier: dict[str, str], config: dict[str, Any], temperature: float, thresholds: dict[str, str]
) -> bool:
    """Return whether the last export has the scores and thresholds of this training and cross-validation."""
    earlier_temperature = json.loads(earlier.get("sketchbatch.metrics", "{}")).get("temperature", 1.0)
    return (
        json.loads(earlier.get("sketchbatch.config", "null")) == config
        and math.isclose(earlier_temperature, temperature, rel_tol=1e-6)
        and {key: value for key, value in earlier.items() if key == rejection.KEY} == thresholds
    )


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
        "sketchbatch.data_digest": config["data_digest"],
        "sketchbatch.config": encode(config),
        "sketchbatch.metrics": encode(metrics),
        "sketchbatch.licence": licence or "not stated",
    }
