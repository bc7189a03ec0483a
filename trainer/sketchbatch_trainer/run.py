"""Name the files of a run, the folder in which each command stores its output for the next command."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from sketchbatch_client.atomic import replacing
from sketchbatch_client.evaluation.training_digests import Digests
from sketchbatch_client.strict_json import encode

from .errors import RunIncomplete


class Variant(StrEnum):
    """Number format of an exported model."""

    FLOAT32 = "float32"
    """The number format of training, which runs well on every device."""
    FLOAT16 = "float16"
    """16-bit floats, for CUDA. A CPU runs float16 slower than float32, because it converts each value to float32."""
    INT8 = "int8"
    """8-bit integers, for the CPU."""


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
    """Folder of the held-out drawings: NAME.npy for each label, in Google's layout."""
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

    def clear(self) -> None:
        """Create the run's folder; delete the output of an earlier training, so that no later step reads old files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = (
            self.config,
            self.recognized,
            self.calibration,
            self.training_digests,
            self.keras,
            self.checkpoint,
            self.history,
        )
        later = (*map(self.exported, Variant), self.scores, self.metrics, self.report)
        for path in (*own, *later, *self.test.glob("*.npy"), *self.logs.glob("events.*")):
            path.unlink(missing_ok=True)

    def need(self, path: Path, step: str = "train") -> Path:
        """Return `path`, which the command `sketchbatch-train STEP` writes.

        Raises:
            RunIncomplete: `path` does not exist.
        """
        if not path.exists():
            raise RunIncomplete(f"{path} does not exist yet; first run: sketchbatch-train {step} --run {self.folder}")
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
