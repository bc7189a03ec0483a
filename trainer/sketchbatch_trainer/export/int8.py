"""Turns a float32 graph into int8, for the CPU: static QDQ, with ranges from real drawings."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sketchbatch_client.drawings.readers import Bitmaps

_CALL_ROWS = 64  # rows in one model call; the ranges do not depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Settings:
    """How numbers become 8 bits; each default was chosen by measurement (docs/decisions/0006-int8-on-the-cpu.md)."""

    activations: QuantType = QuantType.QUInt8
    """Signed ones keep each ReLU before a residual block apart, and the convolutions beside it in float32."""

    per_channel: bool = True
    """A range for each filter instead of one for all of a layer's; costs no time."""

    reduce_range: bool = True
    """Weights in 7 bits: with 8, sums saturate on x86 CPUs without VNNI, and a file cannot choose its CPU.

    Source: ONNX Runtime 1.32, docstring of `quantize_static`.
    """

    ranges: CalibrationMethod = CalibrationMethod.MinMax
    """From the smallest to the largest number seen; cutting off the extremes gained nothing."""

    kept_float: tuple[str, ...] = ("Softmax",)
    """Operators that stay float32. In 8 bits, scores would be multiples of 1/256, most of 345 classes' 0."""


def to_int8(graph: onnx.ModelProto, bitmaps: Bitmaps, settings: Int8Settings | None = None) -> onnx.ModelProto:
    """A copy that computes in 8 bits, with the ranges that `bitmaps` (rows, 28, 28) give rise to; scores stay float32.

    Raises:
        ValueError: There are no bitmaps.
    """
    settings = settings or Int8Settings()
    with TemporaryDirectory(prefix="sketchbatch-int8-") as folder:
        original, prepared, quantized = (
            Path(folder) / f"{step}.onnx" for step in ("original", "prepared", "quantized")
        )
        onnx.save(graph, original)  # the next step takes a graph too, but then loses its weights (1.32)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)  # all shapes but the rows are static
        quantize_static(
            prepared,
            quantized,
            _Calibration(bitmaps),
            quant_format=QuantFormat.QDQ,
            activation_type=settings.activations,
            weight_type=QuantType.QInt8,
            per_channel=settings.per_channel,
            reduce_range=settings.reduce_range,
            calibrate_method=settings.ranges,
            nodes_to_exclude=[
                node.name for node in onnx.load(prepared).graph.node if node.op_type in settings.kept_float
            ],
        )
        return _without_unused_domains(onnx.load(quantized))


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Hands the drawings to ONNX Runtime, some at a time."""

    def __init__(self, bitmaps: Bitmaps) -> None:
        rows = min(_CALL_ROWS, len(bitmaps))
        whole = len(bitmaps) - len(bitmaps) % rows  # histograms want parts of one length
        self._parts = (bitmaps[start : start + rows] for start in range(0, whole, rows))

    def get_next(self) -> dict[str, Bitmaps] | None:
        """ONNX Runtime asks until it gets None."""
        part = next(self._parts, None)
        return None if part is None else {"bitmaps": part}


def _without_unused_domains(graph: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime declares all of its own operator sets, which another runtime may not know."""
    used = {node.domain for node in graph.graph.node}
    opsets = [opset for opset in graph.opset_import if opset.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(opsets)
    onnx.checker.check_model(graph)
    return graph
