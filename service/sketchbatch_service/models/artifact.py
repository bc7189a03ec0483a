"""Read the metadata of a model file, and refuse a file whose input, output or labels do not fit.

docs/model-file.md specifies the file. An ONNX file from another source is served, too, if it meets these requirements.
One message lists everything that does not fit, with the command that writes a file that fits.
"""

import base64
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from sketchbatch.label_rules import problems_of
from sketchbatch.rejection import KEY as REJECTION
from sketchbatch.rejection import Rejection
from sketchbatch.rejection import decode as decode_rejection

from ..engines.tensor_names import OUR_NAMES, TensorNames
from ..errors import ModelRefused
from .external_data import locations
from .signature import read_signature

_MAX_DEPTH = 16  # levels of nested JSON values; protobuf's parsers allow about 30
_MAX_DIGESTS_BYTES = 65536  # GetModel must stay small
_SHOWN_CHARACTERS = 60

_NO_LABELS = "no labels in metadata (optimisers and converters drop them)"


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
    names: TensorNames = OUR_NAMES
    training_digests: bytes = b""  # `Model.training_digests`
    rejection: Rejection | None = None  # `Model.rejection`; None = the file stores no thresholds

    @property
    def variant(self) -> str:
        """Return the number format that the file states ("float32", "float16", "int8"); empty if it states none."""
        return str(self.metrics.get("variant", ""))


def read_artifact(path: Path, session: ort.InferenceSession) -> Artifact:
    """Return the metadata of the file at `path`, which `session` has loaded.

    Raise ModelRefused if the input, the output or the labels do not fit; its message lists everything that does not.
    """
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        labels, label_problems = _labels(metadata)
        signature = read_signature(session, len(labels))
    except UnicodeDecodeError as exc:
        raise ModelRefused(f"{path}: names and metadata_props must be UTF-8: {exc}") from exc
    metrics, metrics_problem = _json(metadata, "sketchbatch.metrics", dict, "a JSON object")
    digests, digests_problem = _training_digests(metadata)
    thresholds, thresholds_problem = _rejection(metadata)
    if labels and signature.classes not in (0, len(labels)):
        label_problems.append(f"{len(labels)} label{'s' * (len(labels) > 1)} for {signature.classes} classes")
    metadata_problems = filter(None, [metrics_problem, digests_problem, thresholds_problem])
    if problems := [*signature.problems, *label_problems, *metadata_problems]:
        flags = {"--scores-output NAME": signature.is_ambiguous, "--labels FILE": bool(label_problems)}
        command = adapt_command(path, *(flag for flag, is_needed in flags.items() if is_needed))
        then = "" if signature.is_adaptable else "export it again, then "
        raise ModelRefused(f"{path}: {'; '.join(problems)}: {then}`{command}` writes a file that fits")
    return Artifact(
        labels=labels,
        name=metadata.get("sketchbatch.name", ""),
        version=metadata.get("sketchbatch.version", ""),
        created=metadata.get("sketchbatch.created", ""),
        licence=metadata.get("sketchbatch.licence", ""),
        metrics=metrics or {},
        digest=digest_of(path),
        names=signature.names,
        training_digests=digests,
        rejection=thresholds,
    )


def adapt_command(path: Path, *flags: str) -> str:
    """Return the command that writes a file that fits from the file at `path`, to be copied into a shell."""
    output = "adapted.onnx" if path.name == "model.onnx" else "model.onnx"  # never the file itself
    return " ".join(["sketchbatch-train adapt", shlex.quote(str(path)), *flags, "--output", output])


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


def _labels(metadata: dict[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels, empty if they cannot be read, and their problems."""
    key, expected = "sketchbatch.labels", "a JSON list of names"
    labels, problem = _json(metadata, key, list, expected)
    if labels is None:
        return (), [problem or _NO_LABELS]
    if not labels or not all(isinstance(label, str) for label in labels):
        return (), [f"{key} must be {expected}, got {_shown(metadata[key])}"]
    return tuple(labels), list(problems_of(labels))


def _training_digests(metadata: dict[str, str]) -> tuple[bytes, str]:
    """Return the digests of training drawings, and the problem if they do not fit."""
    key = "sketchbatch.training_digests"
    try:
        digests = base64.b64decode(metadata.get(key, ""), validate=True)
    except ValueError:
        digests = b"?"
    if len(digests) % 8 or len(digests) > _MAX_DIGESTS_BYTES:
        return (
            b"",
            f"{key} must be base64 of at most {_MAX_DIGESTS_BYTES:,} bytes, 8 for each, got {_shown(metadata[key])}",
        )
    return digests, ""


def _rejection(metadata: dict[str, str]) -> tuple[Rejection | None, str]:
    """Return the rejection thresholds, None if they are missing or do not fit, and the problem if they do not fit."""
    text = metadata.get(REJECTION)
    if text is None:
        return None, ""
    try:
        return decode_rejection(text), ""
    except ValueError as exc:
        return None, f"{REJECTION} {exc}"


def _json(metadata: dict[str, str], key: str, kind: type, expected: str) -> tuple[Any, str]:
    """Return the parsed value of `key`, None if it is missing or does not fit, and the problem if it does not fit."""
    text = metadata.get(key)
    if text is None:
        return None, ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: invalid JSON, or a number of thousands of digits
        return None, f"{key} must be JSON, got {_shown(text)}"
    try:
        _check_sendable(value, _MAX_DEPTH)
    except (ValueError, OverflowError) as exc:
        return None, f"{key} must be what a message can carry: {exc}, in {_shown(text)}"
    if not isinstance(value, kind):
        return None, f"{key} must be {expected}, got {_shown(text)}"
    return value, ""


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_CHARACTERS])


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
