"""Find the input and the scores of a model file by their types and shapes, and list what does not fit.

Files from other tools have other names, so a name matters only if several outputs fit. Each problem is a part of one
line for the operator; `artifact` joins the parts.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnxruntime as ort

from ..arrays import ROW_SHAPE
from ..engines.tensor_names import OUR_NAMES, TensorNames

_EXPECTED_INPUT = "uint8 (N, 28, 28)"
_EXPECTED_OUTPUT = "float32 (N, classes)"
_TENSOR = re.compile(r"tensor\((\w+)\)")
_NUMPY_NAMES = {"float": "float32", "double": "float64"}  # ONNX Runtime's other names are NumPy's
_LABEL_TYPES = ("tensor(int64)", "tensor(int32)", "tensor(string)")


@dataclass(frozen=True, slots=True)
class Signature:
    """The input and the output of a model file, and what does not fit; with problems, the names mean nothing."""

    names: TensorNames
    classes: int  # columns of the scores; 0 = the file does not state it
    problems: tuple[str, ...]
    is_adaptable: bool  # whether `sketchbatch-train adapt` can mend the problems; if not, another export is needed
    is_ambiguous: bool  # whether several outputs fit equally


def read_signature(session: ort.InferenceSession, labels: int) -> Signature:
    """Return the signature of a model with `labels` labels (0 = unknown): its input, and the output with its scores.

    The output `scores` is taken if it fits, otherwise the only output that fits. Raise UnicodeDecodeError if a name is
    not UTF-8.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    scores = _choose([output for output in outputs if _is_scores(output)], labels)
    problems = [*_input_problems(inputs), *_output_problems(outputs, scores), *_fixed_batch(inputs, outputs, scores)]
    if any("float16" in tensor.type for tensor in (*inputs, *(outputs if len(scores) != 1 else ()))):
        problems.append("float16 inside the graph only: convert with keep_io_types=True")
    is_divided = len(scores) > 1 and all(output.shape[1] == 1 for output in scores)  # one output for each class
    is_adaptable = len(inputs) == 1 and not (_is_one_bitmap(inputs[0].shape) or _are_labels(outputs) or is_divided)
    if not inputs or len(scores) != 1:
        is_ambiguous = len(scores) > 1 and not is_divided
        return Signature(OUR_NAMES, 0, tuple(problems), is_adaptable, is_ambiguous=is_ambiguous)
    [output] = scores
    classes = output.shape[1] if isinstance(output.shape[1], int) else 0
    names = TensorNames(inputs[0].name, output.name)
    return Signature(names, classes, tuple(problems), is_adaptable, is_ambiguous=False)


def _is_scores(output: ort.NodeArg) -> bool:
    return output.type == "tensor(float)" and len(output.shape) == 2 and not isinstance(output.shape[0], int)


def _choose(fitting: list[ort.NodeArg], labels: int) -> list[ort.NodeArg]:
    """Return those of the fitting outputs that fit best: one, unless none fits or several fit equally."""
    named = [output for output in fitting if output.name == "scores"]
    if named or len(fitting) < 2:
        return named or fitting
    return [output for output in fitting if output.shape[1] == labels] or fitting


def _input_problems(inputs: list[ort.NodeArg]) -> Iterable[str]:
    if len(inputs) != 1:
        yield f"the model must have one input, got {_listed(inputs)}"
    elif not (inputs[0].type == "tensor(uint8)" and _is_batch_of_bitmaps(inputs[0].shape)):
        yield f"input must be {_EXPECTED_INPUT}, got {_listed(inputs)}"


def _is_batch_of_bitmaps(shape: list[int | str | None]) -> bool:
    """Return whether `shape` is (N, 28, 28); ONNX Runtime gives the variable axis N as a name or None."""
    return len(shape) == 3 and not isinstance(shape[0], int) and tuple(shape[1:]) == ROW_SHAPE


def _is_one_bitmap(shape: list[int | str | None]) -> bool:
    """Return whether `shape` is that of a single bitmap, such as (28, 28) or (784), without an axis for the rows."""
    sizes = [size for size in shape if isinstance(size, int)]
    return len(sizes) == len(shape) and sizes[:1] in ([28], [784]) and math.prod(sizes) == 784


def _output_problems(outputs: list[ort.NodeArg], scores: list[ort.NodeArg]) -> Iterable[str]:
    if len(scores) > 1 and all(output.shape[1] == 1 for output in scores):
        yield f"these outputs must be joined into one, {_EXPECTED_OUTPUT}: {_listed(scores)}"
    elif len(scores) > 1:
        yield f"one of these outputs must be called scores: {_listed(scores)}"
    elif not scores:
        yield f"output must be {_EXPECTED_OUTPUT}, got {_listed(outputs)}"
        if _are_labels(outputs):
            yield "scores are wanted, not labels: options={'zipmap': False} in skl2onnx"


def _are_labels(outputs: list[ort.NodeArg]) -> bool:
    return all(output.type in _LABEL_TYPES or output.type.startswith("seq(") for output in outputs)


def _fixed_batch(inputs: list[ort.NodeArg], outputs: list[ort.NodeArg], scores: list[ort.NodeArg]) -> Iterable[str]:
    """Yield a problem if the batch size is a number; an output matters only if no output fits."""
    tensors = [*inputs, *(outputs if not scores else ())]
    for tensor in tensors:
        if tensor in inputs and _is_one_bitmap(tensor.shape):
            yield "the input has no axis for the rows: export it with one"
            return
        if len(tensor.shape) > 1 and isinstance(tensor.shape[0], int):
            yield f"the batch is fixed to {tensor.shape[0]}: export it open (dynamic_axes or dynamic_shapes in PyTorch)"
            return


def _listed(tensors: list[ort.NodeArg]) -> str:
    return " and ".join(map(_described, tensors)) or "none"


def _described(tensor: ort.NodeArg) -> str:
    kind = _TENSOR.sub(lambda match: _NUMPY_NAMES.get(match[1], match[1]), tensor.type)
    axes = ", ".join(str(axis) if isinstance(axis, int) else "N" for axis in tensor.shape)
    return f"{tensor.name}: {kind}" if kind.startswith("seq(") else f"{tensor.name}: {kind} ({axes})"
