"""Find the model that provides the initial weights: a run, a model file, or a folder with model files.

This module does not import Keras, so that a command can refuse a starting point before it reads drawings.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from sketchbatch_client.evaluation.training_digests import Digests, decoded
from sketchbatch_client.file_kind import ONNX_MODEL, describe_path

from ..errors import RunRefused
from ..run import Run
from .recipes import ARTICLE, Network, Recipe, network_from, with_network

_BITMAPS = ("bitmaps", onnx.TensorProto.UINT8, (28, 28))

EXAMPLES = "a run folder, models/quickdraw-345 of the checkout, or a model.onnx"
"""Kinds of starting points, for error messages."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model.onnx that `sketchbatch-train export` or `sketchbatch-train adapt` wrote."""

    path: Path

    def read_graph(self) -> onnx.ModelProto:
        """Return the graph with its weights.

        Raises:
            RunRefused: The file is not an ONNX model.
        """
        kind = describe_path(self.path)
        if kind and kind.name != ONNX_MODEL:
            raise RunRefused(f"{self.path}: expected an ONNX model, got {kind}")
        try:
            return onnx.load(self.path)
        except (DecodeError, onnx.checker.ValidationError) as exc:  # the second one: a file of weights is missing
            raise RunRefused(f"{self.path}: not an ONNX model, or damaged: {exc}") from exc

    def read_config(self) -> dict[str, Any]:
        """Return the config of the training that made the file; for an adapted file a config of the same form.

        Raises:
            RunRefused: The file is not an ONNX model of this project's signature with labels.
        """
        graph = self.read_graph()
        properties = {each.key.removeprefix("sketchbatch."): each.value for each in graph.metadata_props}
        config = self._parse(properties.get("config", "{}"))
        if isinstance(config, dict) and "recipe" in config:
            return config
        if "labels" not in properties or [_signature(each) for each in graph.graph.input] != [_BITMAPS]:
            raise RunRefused(
                f"{self.path}: a training cannot start from a file of another tool as it is; first run "
                f"sketchbatch-train adapt {self.path} --labels ... --output model.onnx, then start from model.onnx"
            )
        return {
            "name": properties.get("name", self.path.stem),
            "labels": self._parse(properties["labels"]),
            "recipe": {"name": "adapted", "network": {"file_digest": self.digest(), "dropout": 0.0}},
            "seed": None,
        }

    def read_training_digests(self) -> Digests | None:
        """Return the sample of digests of training drawings that the file stores; None = none.

        Raises:
            RunRefused: The file stores something else.
        """
        stored = {each.key: each.value for each in self.read_graph().metadata_props}
        try:
            sample = decoded(base64.b64decode(stored.get("sketchbatch.training_digests", ""), validate=True))
        except ValueError as exc:
            raise RunRefused(f"{self.path}: sketchbatch.training_digests must be base64: {exc}") from exc
        return sample if len(sample) else None

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as exc:
            raise RunRefused(f"{self.path}: sketchbatch.config and sketchbatch.labels must be JSON: {exc}") from exc


Start = Run | ModelFile
"""A starting point: a run with a trained Keras model, or an exported model file."""


def find_start(path: Path) -> Start:
    """Return the starting point at `path`: a run, a model file, or a folder NAME with files VERSION/model.onnx.

    Of several versions, the highest one is returned.

    Raises:
        RunRefused: `path` does not exist or is none of these.
    """
    if path.is_file():
        return ModelFile(path)
    if not path.is_dir():
        raise RunRefused(f"{path}: no such file or folder; start from {EXAMPLES}")
    run = Run(path)
    if run.keras.exists() or (run.config.exists() and not run.onnx.exists()):
        return run
    if run.onnx.exists():
        return ModelFile(run.onnx)
    versions = [each for each in path.glob("*/model.onnx") if each.parent.name.isdecimal()]
    if versions:
        return ModelFile(max(versions, key=lambda each: int(each.parent.name)))
    names = sorted({each.parts[-3] for each in path.glob("*/*/model.onnx")})
    found = (
        f"holds the models {', '.join(names)}: name one of them"
        if names
        else "holds no run and no file VERSION/model.onnx"
    )
    raise RunRefused(f"{path}: {found}; start from {EXAMPLES}")


def check_start(recipe: Recipe, start: Start | None) -> None:
    """Check that a recipe which needs initial weights has a starting point.

    Raises:
        RunRefused: `recipe.needs_start`, and `start` is None.
    """
    if recipe.needs_start and start is None:
        raise RunRefused(
            f"recipe {recipe.name} needs initial weights: add --start-from models/quickdraw-345 (the shipped model of "
            "345 classes), or another run or model.onnx; recipe compact starts from random weights"
        )


def network_of(start: Start) -> Network:
    """Return the network of a starting point.

    Raises:
        RunIncomplete: The run has no config.
        RunRefused: The model file is not an ONNX model of this project's signature with labels.
    """
    return network_from(start.read_config()["recipe"]["network"])


def fit_recipe(recipe: Recipe, network: str | None, start: Start | None) -> Recipe:
    """Return the recipe with the network `network` of NETWORKS, or else with the network of `start`.

    The recipe `article` has only one network and stays as it is.

    Raises:
        RunRefused: Another network is named for that recipe.
    """
    if recipe is ARTICLE:
        if network is not None:
            raise RunRefused(f"recipe {recipe.name} has a network of its own; leave out --network {network}")
        return recipe
    if network is not None or start is None:
        return with_network(recipe, network or "compact")
    return with_network(recipe, network_of(start))


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int, ...]]:
    """Return the name, the element type and the shape of a row of an input."""
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, tuple(each.dim_value for each in tensor.shape.dim[1:])
