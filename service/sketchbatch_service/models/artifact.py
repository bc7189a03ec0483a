"""Reads what a model file says of itself, and refuses one whose input, output or labels do not fit.

The file is described in docs/model-file.md; a person's own ONNX with that signature serves as well as ours.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..arrays import ROW_SHAPE
from ..errors import ModelRefused

_DEEPEST = 16  # values within values: protobuf's parsers take some 30
_ONNX_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model file's description of itself; everything but the labels may be missing from the file."""

    labels: tuple[str, ...]
    """Class names; index = column of the scores."""

    name: str
    """Empty if the file does not say."""

    version: str
    """An integer as text; empty if the file does not say."""

    created: str
    """RFC 3339; empty if the file does not say."""

    licence: str
    """Empty if the file does not say."""

    metrics: dict[str, Any]
    """Metrics from training; empty if the file has none."""

    digest: str
    """SHA-256 of the file, in hex."""


def read_artifact(path: Path, session: ort.InferenceSession) -> Artifact:
    """Reads the description of the file at `path`, which `session` has loaded.

    Raises:
        ModelRefused: The input, the output or the labels do not fit; says which, and how.
    """
    try:
        _check_input(path, session)
        classes = _check_output(path, session)
        metadata = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as exc:
        raise ModelRefused(f"{path}: names and metadata_props must be UTF-8: {exc}") from exc
    return Artifact(
        labels=_labels(path, metadata, classes),
        name=metadata.get("sketchbatch.name", ""),
        version=metadata.get("sketchbatch.version", ""),
        created=metadata.get("sketchbatch.created", ""),
        licence=metadata.get("sketchbatch.licence", ""),
        metrics=_json(path, metadata, "sketchbatch.metrics", dict) or {},
        digest=digest_of(path),
    )


def digest_of(path: Path) -> str:
    """SHA-256 of the file at `path`, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_input(path: Path, session: ort.InferenceSession) -> None:
    inputs = session.get_inputs()
    fits = [i.name == "bitmaps" and i.type == "tensor(uint8)" and _is_any_of(i.shape, *ROW_SHAPE) for i in inputs]
    if fits != [True]:
        raise ModelRefused(
            f"{path}: the model's one input must be bitmaps: uint8 (N, 28, 28), got {_signature(inputs)}"
        )


def _check_output(path: Path, session: ort.InferenceSession) -> int:
    """Returns the number of classes; 0 where the file leaves it open."""
    outputs = session.get_outputs()
    for output in outputs:
        if output.name == "scores" and output.type == "tensor(float)" and len(output.shape) == 2:
            rows, classes = output.shape
            if not isinstance(rows, int):
                return classes if isinstance(classes, int) else 0
    raise ModelRefused(f"{path}: the model must have an output scores: float32 (N, classes), got {_signature(outputs)}")


def _is_any_of(shape: list[Any], *row_shape: int) -> bool:
    """True for (any number of rows, *row_shape); ONNX Runtime gives an open axis as a name or None."""
    return len(shape) == 1 + len(row_shape) and not isinstance(shape[0], int) and tuple(shape[1:]) == row_shape


def _signature(tensors: list[ort.NodeArg]) -> str:
    def text(tensor: ort.NodeArg) -> str:
        axes = ", ".join(str(axis) if isinstance(axis, int) else "N" for axis in tensor.shape)
        return f"{tensor.name}: {_ONNX_TYPES.get(tensor.type, tensor.type)} ({axes})"

    return " and ".join(map(text, tensors))


def _labels(path: Path, metadata: dict[str, str], classes: int) -> tuple[str, ...]:
    labels = _json(path, metadata, "sketchbatch.labels", list)
    expected = f"a JSON list of {classes or 'its'} different class names in metadata_props"
    if labels is None:
        raise ModelRefused(f"{path}: sketchbatch.labels must be {expected}, got none")
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise ModelRefused(f"{path}: sketchbatch.labels must be {expected}, got {labels!r}")
    if classes and len(labels) != classes:
        raise ModelRefused(f"{path}: sketchbatch.labels must be {expected}, got {len(labels)}")
    return tuple(labels)


def _json(path: Path, metadata: dict[str, str], key: str, kind: type) -> Any:
    """The parsed value of `key`, or None where the file has none."""
    text = metadata.get(key)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:  # ValueError: also a number of thousands of digits
        raise ModelRefused(f"{path}: {key} must be JSON, got {text[:60]!r}") from exc
    try:
        _check_sendable(value, _DEEPEST)
    except (ValueError, OverflowError) as exc:
        raise ModelRefused(f"{path}: {key} must be what a message can carry: {exc}, in {text[:60]!r}") from exc
    if not isinstance(value, kind):
        raise ModelRefused(f"{path}: {key} must be a JSON {kind.__name__}, got {text[:60]!r}")
    return value


def _check_sendable(value: object, depth: int) -> None:
    """Raises what protobuf would, or a client, of texts that are no UTF-8, large numbers, and what is nested deep."""
    if depth < 0:
        raise ValueError(f"nested deeper than {_DEEPEST}")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int):
        float(value)
    elif isinstance(value, list | dict):
        for each in value if isinstance(value, list) else (*value.keys(), *value.values()):
            _check_sendable(each, depth - 1)
