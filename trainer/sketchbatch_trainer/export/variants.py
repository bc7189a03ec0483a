"""Writes the variants of an exported model, float16 for CUDA and int8 for the CPU; refuses one that is less accurate.

A variant starts from the run's model.onnx and carries the same description, with metrics of its own.
"""

import json
from dataclasses import dataclass

import numpy as np
import onnx
from sketchbatch_client.drawings.readers import Bitmaps, read_bitmaps

from ..errors import ExportRefused
from ..run import Run, Variant
from .float16 import rounded_as_float16, to_float16
from .held_out import HeldOut, Scores, onnx_scores, read_held_out, save_described
from .int8 import to_int8

FLOAT16_TOLERANCE = 1e-2
"""Most that a float16 score may differ from float32: five times what rounding moved any score of our networks by."""

LOST_ACCURACY = 0.005
"""Most accuracy that a variant may lose: half a point."""

LOST_ROWS = 5
"""Held-out drawings that a variant may lose even where that is more than `LOST_ACCURACY`: below 1,000 drawings, half a
point is fewer than five drawings on the edge between two labels, which any rounding tips one way or the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a variant scores the held-out drawings, beside float32."""

    variant: Variant
    rows: int
    """Held-out drawings compared."""
    accuracy: float
    float32_accuracy: float
    agreement: float
    """Share of rows that get the same label from both."""
    max_difference: float
    """Largest difference of any score."""
    mean_difference: float
    """Mean difference of all scores."""

    def __str__(self) -> str:
        return (
            f"{self.variant} accuracy {self.accuracy:.2%}, float32 {self.float32_accuracy:.2%}; the same label for "
            f"{self.agreement:.2%} of {self.rows:,} held-out drawings; scores differ by {self.mean_difference:.1e} "
            f"on average, {self.max_difference:.1e} at most"
        )


def export_variant(run: Run, variant: Variant) -> Comparison:
    """Writes float16 or int8 from the run's model.onnx, with metrics on the held-out drawings.

    Raises:
        RunIncomplete: The run has no model.onnx or, for int8, no drawings to calibrate on.
        ExportRefused: The variant scores too differently from float32; no file of it is left behind.
    """
    path = run.exported(variant)
    original = onnx.load(run.need(run.onnx, f"sketchbatch-train export --run {run.folder}"))
    properties = {each.key: each.value for each in original.metadata_props}
    path.unlink(missing_ok=True)
    held_out = read_held_out(run, json.loads(properties["sketchbatch.labels"]))
    expected = onnx_scores(original, held_out.bitmaps)
    graph = to_float16(original) if variant is Variant.FLOAT16 else to_int8(original, _calibration(run))
    scores = onnx_scores(graph, held_out.bitmaps)
    comparison = compare(variant, held_out, expected, scores)
    if variant is Variant.FLOAT16:  # that was the file itself, but the CPU ran it as float32
        scores = onnx_scores(rounded_as_float16(original), held_out.bitmaps)
        comparison = compare(variant, held_out, expected, scores)
    metrics = json.dumps(held_out.measure(scores) | _as_metrics(comparison))
    save_described(graph, path, properties | {"sketchbatch.metrics": metrics})
    return comparison


def compare(variant: Variant, held_out: HeldOut, expected: Scores, scores: Scores) -> Comparison:
    """Compares a variant's scores with those of float32.

    Raises:
        ExportRefused: A score is no number, or too far off, or too many drawings are no longer named right.
    """
    difference = np.abs(scores - expected)
    comparison = Comparison(
        variant=variant,
        rows=len(scores),
        accuracy=held_out.measure(scores)["accuracy"],
        float32_accuracy=held_out.measure(expected)["accuracy"],
        agreement=float((scores.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )
    tolerance = FLOAT16_TOLERANCE if variant is Variant.FLOAT16 else 1.0  # int8 is held to its accuracy alone
    if not comparison.max_difference <= tolerance:  # also when it is NaN
        raise ExportRefused(f"export refused: {comparison} (limit {tolerance:.0e})")
    lost, limit = held_out.named_right(expected) - held_out.named_right(scores), lost_limit(comparison.rows)
    if lost > limit:
        raise ExportRefused(f"export refused: {comparison} ({lost} drawings lost, limit {limit})")
    return comparison


def lost_limit(rows: int) -> int:
    """How many of `rows` held-out drawings a variant may name wrong that float32 names right, on balance."""
    return max(LOST_ROWS, int(LOST_ACCURACY * rows))


def _calibration(run: Run) -> Bitmaps:
    return read_bitmaps(run.need(run.calibration, f"sketchbatch-train train --run {run.folder} ..."))


def _as_metrics(comparison: Comparison) -> dict[str, str | int | float]:
    """The part of `sketchbatch.metrics` that the variant's scores alone do not give."""
    return {
        "rows": comparison.rows,
        "variant": str(comparison.variant),
        "float32_accuracy": comparison.float32_accuracy,
        "agreement": comparison.agreement,
        "parity_max_difference": comparison.max_difference,
        "parity_mean_difference": comparison.mean_difference,
    }
