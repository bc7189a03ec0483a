"""Quantize a float32 graph to int8 for the CPU: static QDQ, with ranges measured on calibration drawings."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sketchbatch_client.drawings.readers import Bitmaps

_CALL_ROWS = 64  # rows per model call; the ranges do not depend on this number


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Settings:
    """Options of the quantization; each default was measured (docs/decisions/0006-int8-on-the-cpu.md)."""

    activations: QuantType = QuantType.QUInt8
    """With QInt8, a ReLU before a residual block stays separate, and convolutions next to the ReLU stay float32."""
    per_channel: bool = True
    """True = one range per filter instead of one range per layer; the speed is the same."""
    reduce_range: bool = True
    """True = 7-bit weights: with 8 bits, sums saturate on x86 CPUs without VNNI, and one file must run on all CPUs.

    Source: ONNX Runtime 1.32, docstring of `quantize_static`.
    """
    ranges: CalibrationMethod = CalibrationMethod.MinMax
    """MinMax = a range from the smallest to the largest value; clipping extreme values was no more accurate."""
    kept_float: tuple[str, ...] = ("Softmax",)
    """Operators that stay float32. In 8 bits, scores are multiples of 1/256, and with 345 classes most scores are 0."""


def to_int8(graph: onnx.ModelProto, bitmaps: Bitmaps, settings: Int8Settings | None = None) -> onnx.ModelProto:
    """Return a copy of `graph` in 8 bits, with ranges measured on `bitmaps` (rows, 28, 28); scores stay float32.

    Raises:
        ValueError: `bitmaps` is empty.
    """
    settings = settings or Int8Settings()
    with TemporaryDirectory(prefix="sketchbatch-int8-") as folder:
        original, prepared, quantized = (
            Path(folder) / f"{step}.onnx" for step in ("original", "prepared", "quantized")
        )
        onnx.save(graph, original)  # ONNX Runtime 1.32 loses the weights of a graph that is not a file
        quant_pre_process(original, prepared, skip_symbolic_shape=True)  # only the number of rows is dynamic
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
    """Passes the drawings that set the ranges of int8 to ONNX Runtime in batches."""

    def __init__(self, bitmaps: Bitmaps) -> None:
        rows = min(_CALL_ROWS, len(bitmaps))
        whole = len(bitmaps) - len(bitmaps) % rows  # histogram calibration requires batches of equal length
        self._batches = (bitmaps[start : start + rows] for start in range(0, whole, rows))

    def get_next(self) -> dict[str, Bitmaps] | None:
        """Return the next batch, or None at the end, as ONNX Runtime requires."""
        batch = next(self._batches, None)
        return None if batch is None else {"bitmaps": batch}


def _without_unused_domains(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Drop operator sets that ONNX Runtime declares without need, because other runtimes may reject unknown sets."""
    used = {node.domain for node in graph.graph.node}
    opsets = [opset for opset in graph.opset_import if opset.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(opsets)
    onnx.checker.check_model(graph)
    return graph
