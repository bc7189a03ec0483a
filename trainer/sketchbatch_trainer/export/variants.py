"""Export the variants of a model, float16 for CUDA and int8 for the CPU; refuse a less accurate variant.

A variant is made from the run's model.onnx and has the same metadata, except for its own metrics.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_client.strict_json import encode

from ..errors import ExportRefused
from ..run import Run, Variant, check_model_output
from .float16 import rounded_as_float16, to_float16
from .held_out import HeldOut, Scores, onnx_scores, read_held_out, save_described
from .int8 import to_int8

FLOAT16_TOLERANCE = 1e-2
"""Largest allowed difference between a float16 score and the float32 score: five times the largest measured value."""

LOST_ACCURACY = 0.005
"""Largest loss of accuracy of a variant compared with float32: half a percentage point."""

LOST_ROWS = 5
"""Number of correctly classified drawings that a variant may always lose compared with float32.

Of fewer than 1,000 drawings, half a percentage point (LOST_ACCURACY) is less than five drawings. But rounding alone
changes the labels of a few drawings whose two best scores are almost equal.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the scores of a variant differ from those of the float32 model."""

    variant: Variant
    rows: int
    """Number of drawings that were scored."""
    kind: str
    """`HeldOut.kind`"""
    accuracy: float
    float32_accuracy: float
    agreement: float
    """Share of rows for which the variant and float32 predict the same label."""
    parity_max_difference: float
    """Largest difference between a score of the variant and of float32."""
    parity_mean_difference: float
    """Mean difference between the scores of the variant and of float32."""

    def __str__(self) -> str:
        return (
            f"{self.variant} accuracy {self.accuracy:.2%}, float32 {self.float32_accuracy:.2%}; the same label for "
            f"{self.agreement:.2%} of {self.rows:,} {self.kind}; scores differ by "
            f"{self.parity_mean_difference:.1e} on average, {self.parity_max_difference:.1e} at most"
        )


def export_variant(run: Run, variant: Variant) -> Comparison:
    """Write the float16 or int8 model file from the run's model.onnx, with metrics on the held-out drawings.

    After a training on all drawings the metrics are those that the cross-validation measured of float32.

    Raises:
        RunIncomplete: The run has no model.onnx of its last training or, for int8, no calibration drawings.
        OutputRefused: The run's file of the variant is not an exported model.
        ExportRefused: The variant is less accurate than float32; no file is written.
    """
    path = run.exported(variant)
    check_model_output(path)
    original = onnx.load(run.need(run.onnx, "export"))
    properties = {each.key: each.value for each in original.metadata_props}
    held_out = read_held_out(run, json.loads(properties["sketchbatch.labels"]))
    expected = onnx_scores(original, held_out.bitmaps)
    is_float16 = variant is Variant.FLOAT16
    graph = to_float16(original) if is_float16 else to_int8(original, read_bitmaps(run.need(run.calibration))[:])
    scores = onnx_scores(graph, held_out.bitmaps)
    comparison = compare(variant, held_out, expected, scores)
    if is_float16:  # the CPU ran the float16 graph in float32; also compare scores rounded as on CUDA
        scores = onnx_scores(rounded_as_float16(original), held_out.bitmaps)
        comparison = compare(variant, held_out, expected, scores)
    metrics = _metrics(comparison, held_out, scores, json.loads(properties["sketchbatch.metrics"]))
    save_described(graph, path, properties | {"sketchbatch.metrics": encode(metrics)})
    return comparison


def _metrics(comparison: Comparison, held_out: HeldOut, scores: Scores, float32: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics for the file of a variant; `float32` has those of the float32 file.

    If the drawings trained the model, the variant's metrics on them are too high. The file then has those of float32,
    which the folds of the cross-validation measured, and how the scores of the variant differ.
    """
    own = asdict(comparison)
    del own["kind"]
    if not held_out.has_trained:
        return held_out.measure(scores) | own
    return float32 | {key: value for key, value in own.items() if key not in ("accuracy", "float32_accuracy")}


def compare(variant: Variant, held_out: HeldOut, expected: Scores, scores: Scores) -> Comparison:
    """Compare a variant's scores with those of float32.

    Raises:
        ExportRefused: A score is NaN or differs too much, or too many drawings are no longer classified correctly.
    """
    difference = np.abs(scores - expected)
    comparison = Comparison(
        variant=variant,
        rows=len(scores),
        kind=held_out.kind,
        accuracy=held_out.measure(scores)["accuracy"],
        float32_accuracy=held_out.measure(expected)["accuracy"],
        agreement=float((scores.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        parity_max_difference=float(difference.max()),
        parity_mean_difference=float(difference.mean()),
    )
    tolerance = FLOAT16_TOLERANCE if variant is Variant.FLOAT16 else 1.0  # int8 is judged by accuracy only
    if not comparison.parity_max_difference <= tolerance:  # `not <=` is also true for NaN
        raise ExportRefused(f"export refused: {comparison} (limit {tolerance:.0e})")
    lost, limit = held_out.count_correct(expected) - held_out.count_correct(scores), lost_limit(comparison.rows)
    if lost > limit:
        raise ExportRefused(f"export refused: {comparison} ({lost} drawings lost, limit {limit})")
    return comparison


def lost_limit(rows: int) -> int:
    """Return how many correctly classified drawings a variant may lose compared with float32, of `rows` in all."""
    return max(LOST_ROWS, int(LOST_ACCURACY * rows))
