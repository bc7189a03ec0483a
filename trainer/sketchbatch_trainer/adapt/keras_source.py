"""Read a model of Keras or TensorFlow: a .keras or .h5 file, a SavedModel folder, or a run of the command `train`.

The graph has all layers of the model: scaling inside stays inside, dropout and batch normalisation run in inference
mode.
"""

import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import tensorflow as tf
from sketchbatch_client.file_kind import describe_path

from ..errors import AdaptRefused
from ..run import Run
from ..train import networks  # noqa: F401 - registers the custom layers of the models that `train` saves
from .source import Source
from .tensorflow_graph import Outputs, first_line, scores, to_onnx

_PIXELS = 28  # rows and columns of an input that accepts bitmaps of any size
_EXPORT = "run model.export(FOLDER) in the program that builds the model, then adapt FOLDER"
_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"  # first bytes

_CUSTOM = re.compile(r"(?:Could not locate (?:class|function)|Unknown [a-z ]+:) '?([^'\s.]+)")
"""How Keras 3 names a class or function that only the author's program defines."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded model as a function of one tensor."""

    call: Callable[[tf.Tensor], Outputs]
    spec: tf.TensorSpec
    """The input, with the number of rows that each call must have, or None; the graph's input gets its name."""
    description: str


def load(path: Path) -> Source:
    """Read the model at `path`; TensorFlow computes the scores of the original.

    Raises:
        AdaptRefused: `path` is no model with one input, or Keras and tf2onnx cannot read or convert it. The message
            states the remedy.
    """
    try:
        loaded = _load(path)
        graph = to_onnx(loaded.call, loaded.spec)
    except AdaptRefused as exc:
        raise AdaptRefused(f"{path}: {exc}") from exc
    return Source(graph, lambda values, output: scores(loaded.call, loaded.spec, values, output), loaded.description)


def _load(path: Path) -> _Loaded:
    if not path.is_dir():
        return _load_file(path)
    if (model := Run(path).keras).is_file():
        return _load_file(model)
    if (path / "saved_model.pb").is_file():
        return _load_saved_model(path)
    raise AdaptRefused("must be a SavedModel folder, with a saved_model.pb, or a run, with a model.keras")


def _load_file(path: Path) -> _Loaded:
    suffix = _suffix_of(path)
    if not _has_network(path, suffix):
        raise AdaptRefused(
            "the file holds weights without the network: build the model in Python, call model.load_weights(FILE) "
            "and model.save('model.keras'), then adapt model.keras"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:  # Keras recognises a file by its suffix, which may be wrong
            link = Path(folder) / f"model{suffix}"
            link.symlink_to(path.resolve())
            model = keras.saving.load_model(link, compile=False)
    except Exception as exc:  # Keras raises errors of many classes, and the layers in the file raise their own
        raise AdaptRefused(_remedy(str(exc))) from exc
    if not getattr(model, "inputs", None):
        raise AdaptRefused(
            f"the model has no input shape: add keras.Input((28, 28, 1)) as its first layer and save it again, "
            f"or {_EXPORT}"
        )
    _check_one_input([each.name for each in model.inputs])
    flat = keras.Model(model.inputs[0], model.outputs)  # takes one tensor even if the model takes a list or a dict
    return _Loaded(
        lambda rows: dict(zip(flat.output_names, keras.tree.flatten(flat(rows, training=False)), strict=True)),
        tf.TensorSpec(_with_pixels(model.inputs[0].shape), model.inputs[0].dtype, name="input"),
        "Keras model",
    )


def _load_saved_model(path: Path) -> _Loaded:
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as exc:  # TensorFlow raises errors of many classes
        raise AdaptRefused(f"TensorFlow {tf.__version__} cannot read the folder: {first_line(exc)}") from exc
    signature = _choose_signature(list(loaded.signatures))
    inputs = loaded.signatures[signature].structured_input_signature[1]
    _check_one_input(list(inputs))
    ((argument, declared),) = inputs.items()
    return _Loaded(
        lambda rows: loaded.signatures[signature](**{argument: rows}),  # `loaded` owns the weights
        tf.TensorSpec(_with_pixels(declared.shape), declared.dtype, name=argument),
        f"SavedModel, signature {signature}",
    )


def _suffix_of(path: Path) -> str:
    """Return the suffix, .keras or .h5, that fits the first bytes of a file."""
    with path.open("rb") as file:
        head = file.read(8)
    if not head.startswith((_ZIP, _HDF5)):
        raise AdaptRefused(f"expected a Keras model, got {describe_path(path) or 'a file of an unknown kind'}")
    return ".keras" if head.startswith(_ZIP) else ".h5"


def _has_network(path: Path, suffix: str) -> bool:
    try:
        if suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return "config.json" in archive.namelist()
        with h5py.File(path) as file:
            return "model_config" in file.attrs
    except (OSError, zipfile.BadZipFile) as exc:
        raise AdaptRefused(f"the file is damaged or incomplete: {first_line(exc)}") from exc


def _choose_signature(names: list[str]) -> str:
    if "serving_default" in names:
        return "serving_default"
    if len(names) == 1:
        return names[0]
    raise AdaptRefused(
        f"must have the signature serving_default, got {', '.join(names) or 'no signature'}: save it with "
        "tf.saved_model.save(model, FOLDER, signatures={'serving_default': FUNCTION})"
    )


def _check_one_input(names: list[str]) -> None:
    if len(names) != 1:
        raise AdaptRefused(
            f"must have one input, the bitmap, got {', '.join(sorted(names)) or 'none'}: build a model that takes the "
            "bitmap alone, with constants for the other inputs, and save that"
        )


def _with_pixels(shape: Sequence[int | None]) -> list[int | None]:
    """Return the shape (rows, height, width, ...) of an input; an open height or width becomes that of a bitmap."""
    if len(shape) < 3:
        return list(shape)
    return [shape[0], *(each or _PIXELS for each in shape[1:3]), *shape[3:]]


def _remedy(error: str) -> str:
    """Return one line on why Keras cannot load a file."""
    if names := sorted({name.rpartition(">")[2] for name in _CUSTOM.findall(error)}):
        return f"needs {', '.join(names)}, which is Python code that is not in the file: {_EXPORT}"
    if "Lambda" in error:
        return f"has a Lambda layer, whose Python code is not run from a file: use a Rescaling layer, or {_EXPORT}"
    return f"Keras {keras.__version__} cannot read it: {' '.join(error.split())[:200]}; {_EXPORT}"
