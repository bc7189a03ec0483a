"""Name the files of a run, the folder in which each command stores its output for the next command."""

import json
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any

import numpy as np
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.folders import SOURCE_NOTE
from sketchbatch_client.evaluation.training_digests import Digests
from sketchbatch_client.output_file import check_replaceable
from sketchbatch_client.strict_json import encode

from .errors import OutputRefused, RunIncomplete, RunRefused

_COMPARED = {
    "labels": "classes",
    "data_digest": "drawings",
    "recipe": "recipe, network or epochs",
    "hold_out": "--hold-out",
    "start_from": "--start-from",
    "teachers": "--teacher",
    "averaged": "--of",
    "restricted_from": "--of",
    "name": "name",
    "source": "source",
    "seed": "seed",
}
"""The entries of a config that make two trainings different, with the words for messages."""

_VALUES_SHOWN = 3  # most values of a recipe that a message names
_LONGEST_VALUE = 60  # characters
_VERSIONS = {"versions": "package versions"}  # an interrupted training needs them to end with the same weights


class Variant(StrEnum):
    """Number format of an exported model."""

    FLOAT32 = "float32"
    """The number format of training, which runs well on every device."""
    FLOAT16 = "float16"
    """16-bit floats, for CUDA. A CPU runs float16 slower than float32, because it converts each value to float32."""
    INT8 = "int8"
    """8-bit integers, for the CPU."""


class RunState(Enum):
    """What a run holds of a training."""

    NEW = auto()
    """Nothing, or files that the training may replace."""
    INTERRUPTED = auto()
    """A checkpoint from which the training resumes."""
    FINISHED = auto()
    """The trained model."""


class _RunFile:
    """Attribute of a `Run`: the path of one file of the run."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "Run", owner: type["Run"]) -> Path:
        return run.folder / self._name


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one run. `sketchbatch score` writes the file `scores`, `sketchbatch evaluate` writes `metrics`."""

    folder: Path

    config = _RunFile("config.json")
    """Recipe, seed, data digest and package versions (JSON)."""
    test = _RunFile("test")
    """Folder of the held-out drawings: NAME.npy for each label, in Google's layout.

    After a cross-validation, the folder has the drawings that were scored: all, or the first ones of very many.
    """
    validation = _RunFile("validation")
    """Folder of drawings that select the temperature of the scores, in the form of `test`."""
    out_of_fold = _RunFile("out-of-fold.npz")
    """Logits of a cross-validation, `export.out_of_fold.OutOfFold`; only for trainings on all drawings."""
    rasterized = _RunFile("drawn")
    """Folder of the bitmaps that were rendered from strokes or pictures: NAME.npy."""
    recognized = _RunFile("recognized.csv")
    """Whether the game recognised a held-out drawing, for those with known flag (CSV: label, row, is_recognized)."""
    calibration = _RunFile("calibration.npy")
    """Training drawings of every class, on which the int8 export measures ranges: uint8, (rows <= 1024, 784)."""
    training_digests = _RunFile("training-digests.npy")
    """Sample of the digests of the training drawings: uint64, `sketchbatch_client.evaluation.training_digests`."""
    keras = _RunFile("model.keras")
    checkpoint = _RunFile("checkpoint.npz")
    """State from which an interrupted training resumes."""
    logs = _RunFile("logs")
    """Folder of the TensorBoard logs (`tensorboard --logdir`)."""
    history = _RunFile("history.csv")
    """Loss and accuracy of each epoch (CSV)."""
    onnx = _RunFile("model.onnx")
    """The float32 model file for the service."""
    scores = _RunFile("scores.csv")
    """All scores of the held-out drawings (CSV)."""
    metrics = _RunFile("metrics.json")
    """Metrics of the held-out drawings (JSON)."""
    report = _RunFile("report.html")

    def exported(self, variant: Variant) -> Path:
        """Return the path of the model file of `variant`; the path for float32 is `onnx`."""
        return self.onnx if variant is Variant.FLOAT32 else self.folder / f"model-{variant}.onnx"

    def check_folder(self, inputs: Iterable[Path] = ()) -> None:
        """Check that a training may write to the folder: it has no file of another origin, and none of `inputs`.

        Raises:
            OutputRefused: A file that would be lost belongs to no run; or an input lies among the run's files; or
                the folder is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputRefused(f"{self.folder}: expected a folder, got a file; name a folder with --run")
        folders = [each.resolve() for each in (self.test, self.validation, self.rasterized, self.logs)]
        for path in (each.resolve() for each in inputs):
            if path == self.folder.resolve() or any(path.is_relative_to(folder) for folder in folders):
                raise OutputRefused(f"{self.folder}: the run must not contain its input {path}; name another --run")
        if self.config.exists():
            if not _is_config(self.config):
                raise OutputRefused(f"{self.config}: is not the config of a training; name another folder with --run")
            return
        own = [*self._results(), *map(self.exported, Variant)]
        if not (self.rasterized / SOURCE_NOTE).exists():  # the note of a training that ended before its config
            own += self.rasterized.glob("*.npy")
        for path in own:
            if path.exists():
                raise OutputRefused(
                    f"{self.folder}: expected a new folder or that of a training, got one with {path.name} and no "
                    f"{self.config.name}; name another folder with --run"
                )

    def state_for(self, config: dict[str, Any], *, restart: bool = False) -> RunState:
        """Return what the run holds of the training with `config`; with `restart`, the result is NEW.

        Raises:
            RunRefused: The run holds the checkpoint or the model of another training, Keras or exported, and not
                `restart`.
        """
        has_checkpoint = self.checkpoint.exists() and not self.keras.exists()
        if restart or not (has_checkpoint or self.keras.exists() or self.has_export(Variant.FLOAT32)):
            return RunState.NEW
        names = _COMPARED | _VERSIONS if has_checkpoint else _COMPARED
        own, wanted = self.read_config(), json.loads(encode(config))
        if own.get("data_digest") != wanted.get("data_digest"):
            for each in (own, wanted):  # the number of drawings, which differs anyway, decides the size of the batches
                each.get("recipe", {}).pop("batch_rows", None)
        if different := [_difference(names[key], key, own, wanted) for key in names if own.get(key) != wanted.get(key)]:
            raise RunRefused(
                f"{self.folder}: holds {'an interrupted' if has_checkpoint else 'a finished'} training with other "
                f"{', '.join(different)}; keep it and name another folder with --run, or discard it with --restart"
            )
        if has_checkpoint:
            return RunState.INTERRUPTED
        return RunState.FINISHED if self.keras.exists() else RunState.NEW

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the folder until the context ends; on Windows, nothing is locked.

        Raises:
            RunRefused: Another process trains in the folder.
        """
        try:
            import fcntl  # not on Windows
        except ImportError:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise RunRefused(
                    f"{self.folder}: another process trains in it; wait for it, or name another folder with --run"
                ) from exc
            yield
        finally:
            os.close(folder)

    def begin(self, config: dict[str, Any]) -> None:
        """Create the run's folder, delete the results of an earlier training and write the config.

        Exported model files stay, because a service may serve them, until the next export replaces them. `need`
        refuses them until then. After an interruption at any moment, `check_folder` still recognises the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.keras, self.checkpoint):  # first, so that the new config never belongs to an old model
            path.unlink(missing_ok=True)
        self.write_config(config)
        for path in self._results():
            path.unlink(missing_ok=True)

    def _results(self) -> list[Path]:
        own = [
            self.recognized,
            self.calibration,
            self.training_digests,
            self.keras,
            self.checkpoint,
            self.history,
        ]
        later = [self.out_of_fold, self.scores, self.metrics, self.report]
        drawings = [*self.test.glob("*.npy"), *self.validation.glob("*.npy")]
        return [*own, *later, *drawings, *self.logs.glob("events.*")]

    def has_export(self, variant: Variant) -> bool:
        """Return whether `variant` was exported since the last training and, unless it is float32, from `onnx`."""
        path = self.exported(variant)
        if not path.exists():
            return False
        config = exported_config(path)
        if config is not None and config != self.read_config():
            return False
        return variant is Variant.FLOAT32 or not self.onnx.exists() or _inherited(path) == _inherited(self.onnx)

    def need(self, path: Path, step: str = "train") -> Path:
        """Return `path`, which the command `sketchbatch-train STEP` writes.

        Raises:
            RunIncomplete: `path` does not exist, or is the exported model of an earlier training or export.
        """
        remedy = f"first run: sketchbatch-train {step} --run {shlex.quote(str(self.folder))}"
        if step == "train":
            remedy += ", with the drawings (--data) and options of the training"
        if path == self.config and not path.exists() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise RunIncomplete(
                f"{self.folder}: is not the folder of a training, which has a {path.name}; name one "
                "(sketchbatch evaluate compares models that are served)"
            )
        if not path.exists():
            raise RunIncomplete(f"{path} does not exist yet; {remedy}")
        variant = next((each for each in Variant if self.exported(each) == path), None)
        if variant and not self.has_export(variant):
            raise RunIncomplete(f"{path} is of an earlier training or export; {remedy}")
        return path

    def read_config(self) -> dict[str, Any]:
        """Return the contents of the file `config`."""
        config: dict[str, Any] = json.loads(self.need(self.config).read_text(encoding="utf-8"))
        return config

    def read_training_digests(self) -> Digests | None:
        """Return the contents of the file `training_digests`; None = an older version trained the run."""
        return np.load(self.training_digests) if self.training_digests.exists() else None

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the file `config` atomically."""
        with replacing(self.config) as partial:
            partial.write_text(encode(config, indent=2) + "\n", encoding="utf-8")


def exported_config(path: Path) -> dict[str, Any] | None:
    """Return the config of the training that made the model file at `path`; None if the file states no config."""
    found = exported_properties(path).get("sketchbatch.config")
    config: dict[str, Any] | None = json.loads(found) if found else None
    return config


def _inherited(path: Path) -> dict[str, str]:
    """Return the properties that a variant has from the float32 model file."""
    return {key: value for key, value in exported_properties(path).items() if key != "sketchbatch.metrics"}


def check_model_output(path: Path) -> None:
    """Check that an export may write `path`: it does not exist, or is an exported model.

    Raises:
        OutputRefused: `path` is another file, a folder, a device or a pipe.
    """
    check_replaceable(path, lambda file: "sketchbatch.labels" in exported_properties(file), "model")


def exported_properties(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of the model file at `path`.

    Raises:
        OutputRefused: The file is not an ONNX model.
    """
    import onnx  # an extra, which the commands before the training do not need
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False)
    except DecodeError as exc:
        raise OutputRefused(f"{path}: expected an exported model, got another file; remove it") from exc
    return {each.key: each.value for each in graph.metadata_props}


def _is_config(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() >= {"labels", "data_digest"}


def value_differences(key: str, first: dict[str, Any], second: dict[str, Any], between: str = " and ") -> list[str]:
    """Return what differs between the values of a key, such as `max_epochs 5 and 12`.

    Objects that share most of their keys, such as two networks of one kind, are compared value by value.
    """
    value, other = first.get(key), second.get(key)
    if value == other:
        return []
    if not isinstance(value, dict) or not isinstance(other, dict):
        is_named_alone = isinstance(value, dict) or isinstance(other, dict) or not (key in first and key in second)
        return [key if is_named_alone else f"{key} {value}{between}{other}"]
    keys = value | other
    if 2 * len(value.keys() & other.keys()) < len(keys):
        return [key]
    return [f"{key}.{text}" for inner in keys for text in value_differences(inner, value, other, between)]


def _difference(words: str, key: str, own: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return the words for a key of two configs that differ, with the values if these are short."""
    if key == "recipe":
        values = [each.removeprefix("recipe.") for each in value_differences(key, own, wanted, ", now ")]
        more = [f"{len(values) - _VALUES_SHOWN} more"] if len(values) > _VALUES_SHOWN else []
        return f"{words} ({'; '.join(values[:_VALUES_SHOWN] + more)})"
    pair = own.get(key, "default"), wanted.get(key, "default")
    is_short = all(isinstance(each, int) or (isinstance(each, str) and len(each) <= _LONGEST_VALUE) for each in pair)
    return f"{words} ({pair[0]}, now {pair[1]})" if is_short and key != "data_digest" else words
