"""Read a model that was made elsewhere, with its weights, and run it.

Flow: first bytes of the file -> the reader of its format -> one graph that holds all weights. `.onnx` files need only
onnx and ONNX Runtime; the reader of Keras files and SavedModel folders imports TensorFlow.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from sketchbatch_client.file_kind import KERAS_MODELS, ZIP_ARCHIVE, describe_path

from ..errors import AdaptRefused
from ..extras import importing

Values = NDArray[Any]  # (rows, ...): input rows or scores, of any numeric type

STANDARD = ("", "ai.onnx")  # two names of the standard operator set

_ORT_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_CPP_PLACE = re.compile(r"/\S+:\d+ [\w:~<> ]+\(.*?\) ")  # source file, line and function
_MIN_OPSET = 7  # the oldest opset that ONNX Runtime runs in full


@dataclass(frozen=True, slots=True)
class Source:
    """A model as its tool saved it."""

    graph: onnx.ModelProto
    """The model as one ONNX graph: all weights are in it, its input and outputs are those of the original."""
    scores: Callable[[Values, str], Values] | None
    """The original model: returns one output, by its name, of input rows of the original's own shape and type.

    None = the graph is the original, so ONNX Runtime computes the scores with it.
    """
    description: str
    """What the model is, for messages and for the metadata, such as "Keras model"."""
    data_files: tuple[Path, ...] = ()
    """The files next to an ONNX file that hold its weights."""


class RunFailed(Exception):
    """A model call failed; the message is the first line of ONNX Runtime's error."""


class Runner:
    """Runs a graph with ONNX Runtime on the CPU."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        """Load the graph.

        Raises:
            AdaptRefused: ONNX Runtime rejects the graph, or the graph is larger than 2 GB.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4  # the exceptions already report the cause
        options.intra_op_num_threads = 1  # the calls are short: more threads would only wait for each other
        try:
            content = graph.SerializeToString()
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # the exceptions of ONNX Runtime and of protobuf have no common public base class
            raise AdaptRefused(f"ONNX Runtime {ort.__version__} cannot load the model: {_first_line(exc)}") from exc
        [self._input] = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def run(self, values: Values) -> dict[str, Any]:
        """Return every output by name; a sequence output is a list. Raises RunFailed."""
        try:
            return dict(zip(self._outputs, self._session.run(None, {self._input: values}), strict=True))
        except Exception as exc:  # ONNX Runtime's exceptions have no public base class
            raise RunFailed(_first_line(exc)) from exc

    def scores(self, values: Values, output: str, call_rows: int) -> Values:
        """Return one output for all rows, in order, computed in calls of exactly `call_rows` rows. Raises RunFailed."""
        padding = np.repeat(values[-1:], -len(values) % call_rows, axis=0)
        padded = np.concatenate([values, padding])
        parts = [self.run(padded[start : start + call_rows])[output] for start in range(0, len(padded), call_rows)]
        return np.concatenate(parts)[: len(values)]


def read(path: Path) -> Source:
    """Read a `.onnx`, `.keras` or `.h5` file or a SavedModel folder.

    Raises:
        AdaptRefused: The path is missing, or is no such model; the message says what it is and what to do.
    """
    if not path.exists():
        raise AdaptRefused(f"{path}: no such file or folder")
    if path.is_dir() or _is_keras(path):
        with importing("train"):
            from . import keras_source

        return keras_source.load(path)
    return _read_onnx(path)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file in hex; for a folder, that of the list of the SHA-256 of its files by path."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return hashlib.sha256("".join(f"{fingerprint(each)}\n" for each in files).encode()).hexdigest()


def _read_onnx(path: Path) -> Source:
    graph = _parse(path)
    if graph.ir_version > onnx.IR_VERSION:
        raise AdaptRefused(
            f"{path}: its IR version is {graph.ir_version}, onnx {onnx.__version__} reads {onnx.IR_VERSION} at most: "
            "export it with an older onnx, or install a newer onnx and ONNX Runtime"
        )
    _check_opset(path, graph)
    data_files = _join_external_data(path, graph)
    version = graph.producer_version.removesuffix(" None")  # tf2onnx writes it instead of an unknown commit
    producer = " ".join(filter(None, (graph.producer_name, version)))
    return Source(graph, None, f"ONNX model{f' of {producer}' if producer else ''}", data_files)


def _parse(path: Path) -> onnx.ModelProto:
    """Return the model without its external data."""
    try:
        graph = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        graph = onnx.ModelProto()
    if not graph.graph.node:
        raise AdaptRefused(f"{path}: expected a model, got {_kind(path)}")
    return graph


def _check_opset(path: Path, graph: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in graph.opset_import:
        if opset.domain in STANDARD and not _MIN_OPSET <= opset.version <= newest:
            raise AdaptRefused(
                f"{path}: its opset is {opset.version}, must be {_MIN_OPSET} to {newest} with onnx {onnx.__version__}: "
                "export it with another opset_version, such as 18"
            )


def _join_external_data(path: Path, graph: onnx.ModelProto) -> tuple[Path, ...]:
    """Load the weights that are in other files into `graph`; return these files."""
    tensors = [each for each in graph.graph.initializer if uses_external_data(each)]
    names = {entry.value for each in tensors for entry in each.external_data if entry.key == "location"}
    files = [path.parent / name for name in sorted(names)]
    try:
        if any(file.is_symlink() for file in files):
            _load_linked(path, graph, files)
        else:
            load_external_data_for_model(graph, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as exc:
        missing = [file.name for file in files if not file.is_file()]
        cause = f"{', '.join(missing)} is missing" if missing else _first_line(exc)
        raise AdaptRefused(
            f"{path}: its weights are in other files and cannot be read: {cause}; "
            "put the files into the folder of the model, as the exporter wrote them"
        ) from exc
    return tuple(files)


def _load_linked(path: Path, graph: onnx.ModelProto, files: list[Path]) -> None:
    """Load weights behind links, as in a cache of Hugging Face: onnx refuses links, so it gets copies of the files."""
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            copy = Path(folder) / file.relative_to(path.parent)
            if ".." in copy.parts:
                raise ValueError(f"{file} is outside the folder of the model")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        load_external_data_for_model(graph, folder)


def _is_keras(path: Path) -> bool:
    """Return whether a file is a Keras model, by its first bytes: TensorFlow, which reads it, takes seconds to import.

    A zip archive is one if its first member or its name says so.
    """
    kind = describe_path(path)
    if kind and kind.name == ZIP_ARCHIVE:
        return path.suffix.lower() == ".keras"
    return bool(kind and kind.name in KERAS_MODELS)


def _kind(path: Path) -> str:
    """Return what the file is, with the remedy."""
    kind = describe_path(path)
    return str(kind) if kind else "a file of an unknown kind; export the model as .onnx, .keras or SavedModel"


def _first_line(exc: Exception) -> str:
    """Return the first line of an error, without the code and the places in C++ that ONNX Runtime reports."""
    line = next(iter(str(exc).splitlines()), type(exc).__name__)
    return _CPP_PLACE.sub("", _ORT_CODE.sub("", line))
