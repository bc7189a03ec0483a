"""Turn a model made elsewhere into one self-describing ONNX file, and prove that its scores are those of the source.

Flow: source -> its input and its output with the scores -> open batch -> one graph of our signature -> comparison with
the source -> accuracy under other scalings -> file. Each step reports what it found and the flag that changes it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import Bitmaps

from .. import synthetic
from ..errors import AdaptRefused
from ..run import check_model_output
from .examining import Model, Wanted, examine
from .graph.batch import problem_with_rows
from .graph.ending import end
from .graph.signature import Input, find_input, scales_pixels, signature_of
from .graph.wrapping import OUTPUT, wrap
from .labels import Labels, check_order, read_labels, stored_labels
from .options import Layout, Softmax
from .scaling import AS_PIXELS, Scaling
from .scaling_trial import are_conclusive, candidates, table, warning
from .scaling_trial import compare as compare_scalings
from .source import Runner, Values, fingerprint, read
from .trial_drawings import read_drawings, sketch_drawings

PARITY_ROWS = 256
"""Number of drawings on which the adapted model must have the scores of the source."""

TOLERANCE = 1e-5
"""Largest allowed difference of a score from that of the source, relative to the largest score if that is above 1."""

ROUNDING_FACTOR = 4
"""Allowed difference as a multiple of what one rounding of the pixels changes, if that is above `TOLERANCE`.

Large logits make the scores of a correct model that sensitive: ONNX Runtime may move the division by 255 behind a
multiplication of matrices, and TensorFlow sums in another order.
"""

ROUNDING_TOLERANCE = 1e-3
"""Largest difference that rounding may explain, relative as `TOLERANCE`."""

FLOAT16_TOLERANCE = 1e-2
"""The same for a model that computes in float16: each number has 11 bits, and ONNX Runtime may keep some in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptRequest:
    """What to adapt, and what the user states about the model. An empty text or None = find out, or use the default."""

    source: Path
    output: Path
    labels: str = ""
    """Path of a file with class names, or names separated by commas."""
    scale: str = ""
    invert: bool = False
    layout: Layout | None = None
    softmax: Softmax = Softmax.AUTO
    scores_output: str = ""
    drawings: Path | None = None
    """Folder of drawings on which the scalings are compared."""
    name: str = ""
    version: int | None = None
    licence: str = ""
    origin: str = ""
    """Where the model comes from."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the source or the file, for the user."""

    subject: str
    value: str
    flag: str = ""
    """The flag that changes it; empty = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Comparison of the adapted model with its source."""

    rows: int
    max_difference: float
    """Largest difference between a score of the adapted model and the same score of the source."""
    limit: float

    def __str__(self) -> str:
        return (
            f"scores differ from those of the source by at most {self.max_difference:.1e} on {self.rows} drawings "
            f"(limit {self.limit:.0e})"
        )


def adapt(request: AdaptRequest, report: Callable[[Finding], None] = lambda finding: None) -> Parity:
    """Write the model file; call `report` with each fact in the order in which the flow finds it.

    Raises:
        AdaptRefused: The source cannot be adapted as requested, or the adapted model has other scores. No file is
            written.
        OutputRefused: The output would replace a file that is no model file of Sketchbatch.
    """
    _check_paths(request)
    source = read(request.source)
    _check_output(request, source.data_files)
    check_model_output(request.output)
    report(Finding("source", f"{_shown(request.source)}: {source.description}"))
    labels, place = _find_labels(request, source.graph)
    bitmaps = _parity_drawings()
    scaling, found = _find_scaling(request, source.graph)
    model = examine(
        source,
        bitmaps,
        scaling,
        found,
        Wanted(classes=len(labels), scores_output=request.scores_output, softmax=request.softmax),
    )
    for finding in _describe(model, scaling, request):
        report(finding)
    report(Finding("labels", f"{_listed(labels)} ({place})", "--labels"))
    wrapped = wrap(model.graph, model.input, scaling, model.output)
    parity = compare(model, wrapped, bitmaps, scaling)
    report(Finding("parity", str(parity)))
    _check_trial(wrapped, bitmaps)
    for finding in _try_scalings(request, model, labels, scaling):
        report(finding)
    properties = _metadata(request, model, labels, scaling, parity)
    helper.set_model_props(wrapped, properties)
    with replacing(request.output) as partial:
        onnx.save(wrapped, partial)
    facts = ", ".join(f"{key} {properties[f'sketchbatch.{key}']}" for key in ("name", "version", "licence", "source"))
    report(Finding("metadata", facts, "--name, --version, --licence, --source"))
    return parity


def compare(model: Model, wrapped: onnx.ModelProto, bitmaps: Bitmaps, scaling: Scaling) -> Parity:
    """Compare the wrapped model with the original on the same drawings.

    Raises:
        AdaptRefused: A score differs by more than the limit, or is NaN.
    """
    expected = end(model.original_scores(bitmaps, scaling), model.output.operator)
    scores = Runner(wrapped).scores(bitmaps, OUTPUT, model.call_rows)  # in calls of the same size: equal sums
    limit = FLOAT16_TOLERANCE if model.is_float16 else TOLERANCE
    limit *= max(1.0, float(np.abs(expected).max()))
    if np.abs(scores - expected).max() > limit and not model.is_float16:
        effects = [end(model.original_scores(bitmaps, scaling, each), model.output.operator) for each in _ROUNDINGS]
        effect = ROUNDING_FACTOR * max(float(np.abs(each - expected).max()) for each in effects)
        limit = max(limit, min(effect, limit * ROUNDING_TOLERANCE / TOLERANCE))
    parity = Parity(rows=len(bitmaps), max_difference=float(np.abs(scores - expected).max()), limit=limit)
    if not parity.max_difference <= limit:  # `not <=` is also true for NaN
        raise AdaptRefused(f"the adapted model is not equal to its source: {parity}")
    return parity


def _rounded(values: Values, is_up: NDArray[np.bool_]) -> Values:
    """Return the next number of the same type, away from 0 or towards 0, for each value; integers stay as they are."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    return np.where(values == 0, values, np.nextafter(values, np.where(is_up, values * 2, 0).astype(values.dtype)))


_ROUNDINGS: Sequence[Callable[[Values], Values]] = (
    lambda values: _rounded(values, np.ones(values.shape, bool)),
    lambda values: _rounded(values, np.random.default_rng(0).random(values.shape) < 0.5),
)
"""Changes of the pixels by one rounding each: all in the same direction, and each in a direction by chance."""


def _check_paths(request: AdaptRequest) -> None:
    """Refuse an output that cannot be written, before the work begins."""
    output = request.output
    if output.is_dir():
        raise AdaptRefused(f"--output {output}: must be a file, got a folder")
    if output.exists() and not output.is_file():
        raise AdaptRefused(f"--output {output}: must be a regular file, got a device or a pipe")
    if blocking := next((each for each in output.parents if each.exists() and not each.is_dir()), None):
        raise AdaptRefused(f"--output {output}: {blocking} is a file, not a folder")
    _check_output(request, (request.source,))


def _check_output(request: AdaptRequest, files: Iterable[Path]) -> None:
    """Refuse an output that would replace a file of the source."""
    output = request.output
    if output.exists() and any(each.exists() and output.samefile(each) for each in files):
        raise AdaptRefused(f"--output {output}: must be another file than those of the source")
    if request.source.is_dir() and output.resolve().is_relative_to(request.source.resolve()):
        raise AdaptRefused(f"--output {output}: must be outside the folder of the source")


def _check_trial(wrapped: onnx.ModelProto, bitmaps: Bitmaps) -> None:
    """Refuse a model that the trial of the service would refuse, whose drawings include a blank one and one of ink."""
    runner = Runner(wrapped)
    extremes = np.stack([np.full((28, 28), value, np.uint8) for value in (0, 255)])
    if not np.isfinite(runner.run(extremes)[OUTPUT]).all():
        raise AdaptRefused(
            "the scores of a blank drawing, or of one of ink only, are not finite: the model probably divides by the "
            "mean, the norm or the deviation of the drawing; add a small constant to the divisor in the model"
        )
    rows = np.concatenate([extremes, bitmaps])
    if problem := problem_with_rows(lambda values: runner.run(values)[OUTPUT], rows):
        raise AdaptRefused(problem)


def _shown(path: Path) -> str:
    """Return a path as valid text: a name on a disk may have bytes that are not UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def _find_labels(request: AdaptRequest, graph: onnx.ModelProto) -> tuple[Labels, str]:
    """Return the class names and where they come from; none if neither the user nor the model states them."""
    if request.labels:
        labels = read_labels(request.labels)
        check_order(labels, graph)
        return labels, "from --labels"
    labels, place = stored_labels(graph)
    return labels, f"from {place}"


def _find_scaling(request: AdaptRequest, graph: onnx.ModelProto) -> tuple[Scaling, Input]:
    """Return the scaling, stated or likely, and the input.

    Raises:
        AdaptRefused: A scaling is stated for an input of integers.
    """
    found = find_input(graph, request.layout)
    stated = Scaling.parse(request.scale, invert=request.invert) if request.scale else None
    if stated and not found.is_float and stated.inverted(False).affine != AS_PIXELS.affine:
        raise AdaptRefused(
            f"--scale {request.scale} does not fit: {found.name} receives integers, the pixels as they are, 0 to 255; "
            "leave --scale out"
        )
    is_as_pixels = not found.is_float or scales_pixels(graph, found.name)
    return stated or (AS_PIXELS if is_as_pixels else Scaling()).inverted(request.invert), found


def _describe(model: Model, scaling: Scaling, request: AdaptRequest) -> Iterator[Finding]:
    """Yield what the flow found out and what it assumed."""
    graph = model.source.graph.graph
    declared = {each.name: signature_of(each) for each in (*graph.input, *graph.output)}
    layout_flag = "--layout" if model.input.other_layouts else ""
    yield Finding("input", f"{declared[model.input.name]}, layout {model.input.layout}", layout_flag)
    if model.input.fixed_rows:
        yield Finding("batch", f"was fixed to {model.input.fixed_rows}, now any number of rows")
    if not model.input.is_float:
        yield Finding("scaling", "none: the model takes the pixels as integers")
    elif request.scale:
        yield Finding("scaling", f"{scaling.text}, as stated", "--scale")
    else:
        cause = "the model scales pixels itself" if scaling.text == AS_PIXELS.text else "assumed"
        yield Finding("scaling", f"{scaling.text} ({cause})", "--scale 0..255, -1..1, 1/255 or MEAN,STD")
    yield Finding("ink", "0 on paper 255, as stated" if scaling.invert else "255 on paper 0 (assumed)", "--invert")
    steps = {
        "Softmax": "a softmax is added",
        "Sigmoid": "a sigmoid is added",
        "Exp": "an exponential function is added",
        "": "left as they are",
    }
    ending = f"{declared[model.output.name]}; {model.ending}: {steps[model.output.operator]}"
    yield Finding("scores", ending, "--softmax, --scores-output")


def _try_scalings(request: AdaptRequest, model: Model, labels: Labels, scaling: Scaling) -> Iterator[Finding]:
    """Yield the accuracy under each plausible scaling, and a warning if another one than `scaling` fits better."""
    drawings = read_drawings(request.drawings, labels) if request.drawings else sketch_drawings(labels)
    if not drawings:
        yield Finding("accuracy", "not measured: give drawings of the labels to compare scalings", "--drawings")
        return
    results = compare_scalings(
        lambda each: wrap(model.graph, model.input, each, model.output),
        drawings,
        candidates(scaling, model.input.is_float),
    )
    lines = [f"of each scaling on {len(drawings.bitmaps):,} drawings ({drawings.source})", *table(results, scaling)]
    yield Finding("accuracy", "\n  ".join(lines))
    used = next(each for each in results if each.scaling == scaling)
    if used.not_finite:
        yield Finding(
            "WARNING",
            f"{used.not_finite:,} of {len(drawings.bitmaps):,} drawings have scores that are NaN or infinite: the "
            "service answers their requests with an error",
        )
    if not are_conclusive(results, drawings):
        yield Finding("note", "the model knows few of the sketches: compare on drawings of your own", "--drawings")
    elif text := warning(results, scaling):
        yield Finding("WARNING", text)


def _metadata(request: AdaptRequest, model: Model, labels: Labels, scaling: Scaling, parity: Parity) -> dict[str, str]:
    """Return the metadata of the file: entries of the source that are not ours stay."""
    old = {each.key: each.value for each in model.source.graph.metadata_props}
    digests = "sketchbatch.training_digests"  # still true: the weights stay
    kept = {key: value for key, value in old.items() if key == digests or not key.startswith("sketchbatch.")}
    config = {
        "adapted_from": model.source.description,
        "scale": scaling.text,
        "invert": scaling.invert,
        "layout": model.input.layout,
        "source_scores": model.ending,
        "operator": model.output.operator,
        "parity_rows": parity.rows,
        "parity_max_difference": parity.max_difference,
    }
    licence = request.licence or old.get("sketchbatch.licence") or old.get("license") or "not stated"
    return kept | {
        "sketchbatch.labels": json.dumps(labels, ensure_ascii=False),
        "sketchbatch.name": request.name or old.get("sketchbatch.name") or _shown(Path(request.source.resolve().stem)),
        "sketchbatch.version": str(request.version or old.get("sketchbatch.version") or 1),
        "sketchbatch.created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sketchbatch.config": json.dumps(config, ensure_ascii=False),
        "sketchbatch.licence": licence,
        "sketchbatch.source": request.origin
        or f"{_shown(Path(request.source.resolve().name))}, SHA-256 {fingerprint(request.source)}",
    }


@cache
def _parity_drawings() -> Bitmaps:
    """Return `PARITY_ROWS` synthetic sketches of all classes, mixed: neighbours in a batch must differ."""
    each = -(-PARITY_ROWS // len(synthetic.LABELS))
    drawn = np.stack([synthetic.draw(label, each, seed=0) for label in synthetic.LABELS], axis=1)
    return np.ascontiguousarray(drawn.reshape(-1, 28, 28)[:PARITY_ROWS])


def _listed(labels: Labels) -> str:
    return ", ".join(labels) if len(labels) <= 12 else f"{len(labels)} classes, {labels[0]} to {labels[-1]}"
