"""Find out by running a source what its input, its scores and its batch are."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
from onnx import TensorProto, helper
from sketchbatch_client.drawings.readers import Bitmaps

from ..errors import AdaptRefused
from .graph.batch import DEPENDS, NOT_FINITE, fixed_rows, open_batch_remedy, opened, problem_with_rows
from .graph.ending import Ending, find_ending, probability_operator
from .graph.reshapes import with_constant_shapes
from .graph.signature import Input, find_scores, row_width, run_first
from .graph.wrapping import Output
from .options import Softmax
from .scaling import Scaling
from .source import Runner, Source, Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user states about the scores."""

    classes: int
    """Number of labels; 0 = the labels are unknown."""
    scores_output: str = ""
    """Name of the output with the scores; empty = the one that fits."""
    softmax: Softmax = Softmax.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A source, and what the wrapping needs to know about it."""

    source: Source
    original: Runner
    """Runs the graph of the source as it is."""
    graph: onnx.ModelProto
    """The graph of the source, which accepts any number of rows and computes no shape of a Reshape node."""
    input: Input
    call_rows: int
    """Number of rows of each call of the original."""
    output: Output
    ending: Ending

    @property
    def is_float16(self) -> bool:
        """Return whether input or scores have 16 bits, so that rounding decides the last digits."""
        return TensorProto.FLOAT16 in (self.input.elem_type, self.output.elem_type)

    def original_scores(
        self, bitmaps: Bitmaps, scaling: Scaling, rounding: Callable[[Values], Values] = lambda values: values
    ) -> Values:
        """Return the scores of the original model, (rows, classes), for pixels that NumPy prepares.

        `rounding` changes the values that the model receives: it shows how much rounding changes the scores.
        """
        values = rounding(self.input.values(bitmaps, scaling))
        if self.source.scores is not None:
            scores = self.source.scores(values, self.output.name)
        else:
            scores = self.original.scores(values, self.output.name, self.call_rows)
        return scores.reshape(len(values), -1)


def examine(source: Source, bitmaps: Bitmaps, scaling: Scaling, found: Input, wanted: Wanted) -> Model:
    """Return what the wrapping needs to know about a source.

    Args:
        source: The model.
        bitmaps: Different drawings, uint8 (rows, 28, 28); at least 17.
        scaling: How pixels become its input.
        found: Its input, as declared.
        wanted: What the user states about the scores.

    Raises:
        AdaptRefused: The model fails on its own input, no output has scores of that many classes, or the model does
            not score each row by itself.
    """
    original = Runner(source.graph)
    found, results, rows = run_first(original, found, bitmaps, scaling, fixed_rows(source.graph))
    name = find_scores(source.graph, results, rows, wanted.classes, wanted.scores_output)
    values = found.values(bitmaps, scaling)
    graph, runner = _open_batch(source.graph, found, name, values)
    scores = _run(runner, name, values)
    ending = find_ending(scores.reshape(len(values), -1))
    output = Output(
        name=name,
        elem_type=helper.np_dtype_to_tensor_dtype(scores.dtype),
        rank=scores.ndim,
        classes=row_width(scores),
        operator=probability_operator(ending, wanted.softmax, row_width(scores)),
    )
    return Model(
        source=source,
        original=original,
        graph=with_constant_shapes(graph, values),
        input=found,
        call_rows=rows,
        output=output,
        ending=ending,
    )


def _open_batch(graph: onnx.ModelProto, found: Input, output: str, values: Values) -> tuple[onnx.ModelProto, Runner]:
    """Return a copy of the graph that scores each row by itself in calls of any size, and its runner."""
    problems = []
    for candidate in opened(graph, found.fixed_rows):
        try:
            runner = Runner(candidate)
        except AdaptRefused as exc:  # the changed shapes contradict each other
            problems.append(str(exc))
            continue
        problem = problem_with_rows(partial(_run, runner, output), values)
        if not problem:
            return candidate, runner
        problems.append(problem)
    for problem in (NOT_FINITE, DEPENDS):
        if problem in problems:
            raise AdaptRefused(problem)
    raise AdaptRefused(f"the model does not accept any number of rows: {problems[0]}; {open_batch_remedy(found.name)}")


def _run(runner: Runner, output: str, values: Values) -> Any:
    return runner.run(values)[output]
