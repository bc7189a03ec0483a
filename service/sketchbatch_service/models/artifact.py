"""Read the metadata of a model file, and refuse a file whose input, output or labels do not fit.

docs/model-file.md specifies the file. An ONNX file from another source is served, too, if it meets these requirements.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..arrays import ROW_SHAPE
from ..errors import ModelRefused
from .external_data import locations

_MAX_DEPTH = 16  # levels of nested JSON values; protobuf's parsers allow about 30
_ONNX_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The metadata of a model file. A text or dictionary that the file lacks is empty; labels are required."""

    labels: tuple[str, ...]  # class names, in the order of the columns of the scores
    name: str
    version: str  # an integer as text
    created: str  # RFC 3339
    licence: str
    metrics: dict[str, Any]  # from training
    digest: str  # see `digest_of`


def read_artifact(path: Path, session: ort.InferenceSession) -> Artifact:
    """Return the metadata of the file at `path`, which `session` has loaded.

    Raise ModelRefused if the input, the output or the labels do not fit.
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
    """Return the digest of the model file at `path` and of its external data, in hex.

    The digest is the SHA-256 of the file. If the model has external data files, it is the SHA-256 of a list: the
    SHA-256 of the model file, then the SHA-256 of each data file in the order of their paths, each with a line feed.
    """
    model = path.read_bytes()
    own = hashlib.sha256(model).hexdigest()
    data = [_sha256(path.parent / location) for location in locations(model)]
    return hashlib.sha256("".join(f"{each}\n" for each in (own, *data)).encode()).hexdigest() if data else own


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_input(path: Path, session: ort.InferenceSession) -> None:
    inputs = session.get_inputs()
    fits = [i.name == "bitmaps" and i.type == "tensor(uint8)" and _is_batch_of(i.shape, ROW_SHAPE) for i in inputs]
    if fits != [True]:
        raise ModelRefused(
            f"{path}: the model's one input must be bitmaps: uint8 (N, 28, 28), got {_signature(inputs)}"
        )


def _check_output(path: Path, session: ort.InferenceSession) -> int:
    """Return the number of classes; 0 = the file does not state it."""
    outputs = session.get_outputs()
    for output in outputs:
        if output.name == "scores" and output.type == "tensor(float)" and len(output.shape) == 2:
            rows, classes = output.shape
            if not isinstance(rows, int):
                return classes if isinstance(classes, int) else 0
    raise ModelRefused(f"{path}: the model must have an output scores: float32 (N, classes), got {_signature(outputs)}")


def _is_batch_of(shape: list[Any], row_shape: tuple[int, ...]) -> bool:
    """Return whether `shape` is (N, *row_shape); ONNX Runtime gives the variable axis N as a name or None."""
    return len(shape) == 1 + len(row_shape) and not isinstance(shape[0], int) and tuple(shape[1:]) == row_shape


def _signature(tensors: list[ort.NodeArg]) -> str:
    def text(tensor: ort.NodeArg) -> str:
        axes = ", ".join(str(axis) if isinstance(axis, int) else "N" for axis in tensor.shape)
        return f"{tensor.name}: {_ONNX_TYPES.get(tensor.type, tensor.type)} ({axes})"

    return " and ".join(map(text, tensors))


def _labels(path: Path, metadata: dict[str, str], classes: int) -> tuple[str, ...]:
    labels = _json(path, metadata, "sketchbatch.labels", list)
    expected = f"{path}: sketchbatch.labels must be a JSON list of {classes or 'its'} different class names"
    if labels is None:
        raise ModelRefused(f"{expected} in metadata_props, got none")
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise ModelRefused(f"{expected} in metadata_props, got {labels!r}")
    if classes and len(labels) != classes:
        raise ModelRefused(f"{expected} in metadata_props, got {len(labels)}")
    return tuple(labels)


def _json(path: Path, metadata: dict[str, str], key: str, kind: type) -> Any:
    """Return the parsed value of `key`; None if the file has no such key."""
    text = metadata.get(key)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:  # ValueError: invalid JSON, or a number of thousands of digits
        raise ModelRefused(f"{path}: {key} must be JSON, got {text[:60]!r}") from exc
    try:
        _check_sendable(value, _MAX_DEPTH)
    except (ValueError, OverflowError) as exc:
        raise ModelRefused(f"{path}: {key} must be what a message can carry: {exc}, in {text[:60]!r}") from exc
    if not isinstance(value, kind):
        raise ModelRefused(f"{path}: {key} must be a JSON {kind.__name__}, got {text[:60]!r}")
    return value


def _check_sendable(value: object, depth: int) -> None:
    """Raise an error for a value that protobuf or a client rejects: invalid UTF-8, a large number or deep nesting."""
    if depth < 0:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int):
        float(value)
    elif isinstance(value, list | dict):
        for each in value if isinstance(value, list) else (*value.keys(), *value.values()):
            _check_sendable(each, depth - 1)
