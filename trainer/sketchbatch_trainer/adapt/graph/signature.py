"""Find out how a model takes its pixels and which of its outputs has the scores."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper
from sketchbatch_client.drawings.readers import Bitmaps

from ...errors import AdaptRefused
from ..options import Layout
from ..scaling import Scaling
from ..source import RunFailed, Runner, Values
from .batch import open_batch_remedy

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_INTEGERS = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
_TRIED_ROWS = (2, 1, 16)  # rows of a first call; some graphs run with one number of rows only
_MOVES = ("Cast", "CastLike", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # keep every value
_PIXEL_FACTOR = 1 / 100  # 1/255 and 1/127.5 are smaller, factors for pixels in 0..1 are larger
_PIXEL_MEAN = 2.5  # a mean above it is one of pixels in 0..255


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The one input of a model."""

    name: str
    elem_type: int
    """The element type, as `onnx.TensorProto` numbers it."""
    layout: Layout
    fixed_rows: int
    """The only number of rows that the input accepts; 0 = any number."""
    other_layouts: tuple[Layout, ...] = ()
    """Layouts that the declared shape allows, too."""

    @property
    def is_float(self) -> bool:
        """Return whether the model receives floating-point numbers, so that pixels may be scaled."""
        return self.elem_type in _FLOATS

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the NumPy type of the input."""
        return helper.tensor_dtype_to_np_dtype(self.elem_type)

    @property
    def scaling_dtype(self) -> np.dtype[Any]:
        """Return the NumPy type of the numbers with which pixels are scaled."""
        return np.dtype(np.float64 if self.elem_type == TensorProto.DOUBLE else np.float32)

    def values(self, bitmaps: Bitmaps, scaling: Scaling) -> Values:
        """Return what the model receives for bitmaps, uint8 (rows, 28, 28)."""
        scaled = scaling.apply(bitmaps, self.scaling_dtype)
        return scaled.reshape(-1, *self.layout.row_shape).astype(self.dtype)


def find_input(graph: onnx.ModelProto, layout: Layout | None = None) -> Input:
    """Return the input of a model; `layout` decides if its declared shape fits several layouts.

    Raises:
        AdaptRefused: The model has several inputs, or one of another type or shape.
    """
    weights = {each.name for each in graph.graph.initializer}
    inputs = [each for each in graph.graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise AdaptRefused(
            f"the model must have one input, for the pixels, got {_signatures(inputs) or 'none'}: build a model that "
            "takes the pixels alone, with constants for the other inputs, and export that"
        )
    [value] = inputs
    if value.type.tensor_type.elem_type not in (*_FLOATS, *_INTEGERS):
        types = ", ".join(map(type_name, (*_FLOATS, *_INTEGERS)))
        raise AdaptRefused(
            f"the input must be of one of the types {types}, got {signature_of(value)}: {_convert_inside('the type')}"
        )
    layouts = [each for each in Layout if _may_be(value, each.row_shape)]
    if not layouts or (layout and layout not in layouts):
        raise AdaptRefused(_shape_problem(value, layout))
    rows = _axes(value)[0] if value.type.tensor_type.HasField("shape") else None
    return Input(
        name=value.name,
        elem_type=value.type.tensor_type.elem_type,
        layout=layout or layouts[0],
        fixed_rows=rows if isinstance(rows, int) else 0,
        other_layouts=tuple(layouts[1:]) if not layout else (),
    )


def run_first(
    runner: Runner, found: Input, bitmaps: Bitmaps, scaling: Scaling, tried_rows: Sequence[int] = ()
) -> tuple[Input, dict[str, Any], int]:
    """Return the input with the first layout that runs, every output of a call, and the rows of the call.

    `tried_rows` are numbers of rows to try if those fail that fit most models.

    Raises:
        AdaptRefused: The model fails on its own input.
    """
    problem = ""
    for layout in (found.layout, *found.other_layouts):
        tried = Input(
            name=found.name,
            elem_type=found.elem_type,
            layout=layout,
            fixed_rows=found.fixed_rows,
            other_layouts=tuple({found.layout, *found.other_layouts} - {layout}),
        )
        for rows in (found.fixed_rows,) if found.fixed_rows else (*_TRIED_ROWS, *tried_rows):
            try:
                values = np.resize(tried.values(bitmaps[:rows], scaling), (rows, *layout.row_shape))
                return tried, runner.run(values), rows
            except RunFailed as exc:
                problem = problem or f"the model fails on {rows} rows: {exc}"
    raise AdaptRefused(problem if found.fixed_rows else f"{problem}; {open_batch_remedy(found.name)}")


def find_scores(graph: onnx.ModelProto, results: Mapping[str, Any], rows: int, classes: int, wanted: str = "") -> str:
    """Return the name of the output with the scores: float, one row per input row, one value per class.

    Args:
        graph: The model.
        results: All outputs of one call with `rows` rows.
        rows: Number of rows of the call.
        classes: Number of labels; 0 = the labels are unknown.
        wanted: The value of `--scores-output`; empty = the one that fits.

    Raises:
        AdaptRefused: No output fits, several do, or the labels are unknown.
    """
    widths = {name: width for name, value in results.items() if (width := _width(value, rows))}
    if wanted and wanted not in results:
        raise AdaptRefused(f"--scores-output must be one of {', '.join(results)}, got {wanted!r}")
    if wanted:
        widths = {name: width for name, width in widths.items() if name == wanted}
    fitting = [name for name, width in widths.items() if width == classes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AdaptRefused(f"several outputs may have the scores: {', '.join(fitting)}; name one with --scores-output")
    if exchanged := next((name for name, value in results.items() if _is_exchanged(value, rows, classes)), ""):
        raise AdaptRefused(
            f"{exchanged} must have one row per drawing, got one column per drawing: transpose the scores inside the "
            "model, and export it again"
        )
    if not widths and (problem := _row_problem(results, rows)):
        raise AdaptRefused(f"{problem}; {open_batch_remedy(graph.graph.input[0].name)}")
    raise AdaptRefused(_scores_problem(graph, widths, classes, wanted))


def scales_pixels(graph: onnx.ModelProto, name: str) -> bool:
    """Return whether the graph itself brings pixels of 0 to 255 to a smaller range, before anything else.

    `name` is the name of its input. Examples are the layers Rescaling and Normalization of Keras.
    """
    if graph.functions:
        graph = onnx.inliner.inline_local_functions(graph)
    makers = {output: node for node in graph.graph.node for output in node.output}
    weights = {each.name: each for each in graph.graph.initializer}
    pixels = {name}  # the input, and what only moves or converts its values
    for node in graph.graph.node:  # in the order of execution
        if pixels.isdisjoint(node.input):
            continue
        if node.op_type in _MOVES and node.input[0] in pixels:
            pixels.update(node.output)
        elif any(_is_scaling(node, each, _size(other, makers, weights)) for each, other in _operands(node, pixels)):
            return True
    return False


def signature_of(value: onnx.ValueInfoProto) -> str:
    """Return name, type and shape as text, such as "input: float32 (N, 1, 28, 28)"."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"{value.name}: {(kind or 'unknown type').removesuffix('_type')}"
    shape = f" ({', '.join(map(str, _axes(value)))})" if value.type.tensor_type.HasField("shape") else ""
    return f"{value.name}: {type_name(value.type.tensor_type.elem_type)}{shape}"


def type_name(elem_type: int) -> str:
    """Return the name of an element type, such as float32."""
    try:
        return (
            str(np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))) if elem_type != TensorProto.STRING else "string"
        )
    except KeyError:
        return f"element type {elem_type}"


def row_width(value: Values) -> int:
    """Return the number of scores of each row."""
    return math.prod(value.shape[1:])


def _operands(node: onnx.NodeProto, pixels: Container[str]) -> list[tuple[int, str]]:
    """Return which input of a node with two inputs has the pixels, and the name of the other input."""
    if len(node.input) != 2:
        return []
    return [(index, node.input[1 - index]) for index in range(2) if node.input[index] in pixels]


def _is_scaling(node: onnx.NodeProto, index: int, size: float) -> bool:
    """Return whether a node brings pixels, its input number `index`, to a smaller range with a number of that size."""
    return (
        (node.op_type == "Mul" and 0 < size < _PIXEL_FACTOR)
        or (node.op_type == "Div" and index == 0 and size > 1 / _PIXEL_FACTOR)
        or (node.op_type in ("Sub", "Add") and size > _PIXEL_MEAN)
    )


def _size(name: str, makers: Mapping[str, onnx.NodeProto], weights: Mapping[str, TensorProto]) -> float:
    """Return the largest absolute number of a constant; 1 if `name` is none."""
    while (node := makers.get(name)) and node.op_type in _MOVES:
        name = node.input[0]
    if node and node.op_type == "Constant":
        value = helper.get_attribute_value(node.attribute[0])
        numbers = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    elif name in weights:
        numbers = numpy_helper.to_array(weights[name])
    else:
        return 1.0
    is_number = np.issubdtype(numbers.dtype, np.number) and numbers.size
    return float(np.abs(numbers).max()) if is_number else 1.0


def _width(value: object, rows: int) -> int:
    """Return the number of scores of each row; 0 if the output has no scores of each row."""
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
        return 0
    is_one_list = value.ndim > 1 and sum(axis > 1 for axis in value.shape[1:]) <= 1
    return row_width(value) if is_one_list and len(value) == rows else 0


def _is_exchanged(value: object, rows: int, classes: int) -> bool:
    """Return whether an output has one column of scores per input row instead of one row."""
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
        return False
    return value.shape == (classes, rows) and rows != classes


def _row_problem(results: Mapping[str, Any], rows: int) -> str:
    """Return that an output has scores of another number of rows; empty if there is none."""
    for name, value in results.items():
        if isinstance(value, np.ndarray) and value.ndim and _width(value, len(value)) and len(value) != rows:
            return f"the model does not accept any number of rows: {name} has {len(value)} rows for {rows} input rows"
    return ""


def _scores_problem(graph: onnx.ModelProto, widths: Mapping[str, int], classes: int, wanted: str) -> str:
    outputs = _signatures([each for each in graph.graph.output if not wanted or each.name == wanted])
    if any(each.type.HasField("sequence_type") for each in graph.graph.output) and not widths:
        return (
            f"the output must be one tensor of scores, got {outputs}: export the model again with the option "
            "options={'zipmap': False} of skl2onnx"
        )
    if not widths:
        return (
            f"an output must have scores, float (rows, classes), got {outputs}: export the probabilities or the logits "
            "of all classes, not the best class or its score"
        )
    found = " or ".join(sorted({str(width) for width in widths.values()}))
    if not classes:
        return f"--labels is missing: the model has {found} classes; give a file with one name per line, or NAME,NAME"
    one = " (a single score is no list of classes: export one score per class)" if set(widths.values()) == {1} else ""
    return f"the model has {found} classes{one}, and there are {classes} labels; outputs: {outputs}"


def _shape_problem(value: onnx.ValueInfoProto, layout: Layout | None) -> str:
    shapes = {each: f"({', '.join(map(str, ('N', *each.row_shape)))})" for each in Layout}
    if layout:
        return f"--layout {layout} needs an input of the shape {shapes[layout]}, got {signature_of(value)}"
    if tuple(_axes(value)) in {each.row_shape for each in Layout}:
        return f"the input has no axis for the rows, got {signature_of(value)}: export it with a batch axis"
    change = "repeat the one channel, resize or transpose"
    return (
        f"the input must have one of the shapes {', '.join(shapes.values())}, got {signature_of(value)}: "
        f"{_convert_inside(f'the shape ({change})')}"
    )


def _convert_inside(what: str) -> str:
    return f"change {what} of the pixels inside the model, and export it again"


def _signatures(values: Iterable[onnx.ValueInfoProto]) -> str:
    return " and ".join(map(signature_of, values))


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the declared axes; an axis of variable length is its name, or "N"."""
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.dim_value > 0 else axis.dim_param or "N" for axis in axes]


def _may_be(value: onnx.ValueInfoProto, row_shape: Sequence[int]) -> bool:
    if not value.type.tensor_type.HasField("shape"):
        return True
    axes = _axes(value)[1:]
    return len(axes) == len(row_shape) and all(a in (b, str(a)) for a, b in zip(axes, row_shape, strict=True))
