"""Names the files of a run, the folder through which the steps hand on their work."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sketchbatch_client.atomic import replacing

from .errors import RunIncomplete


class Variant(StrEnum):
    """How the numbers inside an exported model are kept."""

    FLOAT32 = "float32"
    """As trained; runs well everywhere."""

    FLOAT16 = "float16"
    """For CUDA. A CPU turns it back into float32 as it goes, which is slower than float32 itself."""

    INT8 = "int8"
    """For the CPU."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder; `sketchbatch` the client adds `scores` and `metrics`."""

    folder: Path

    @property
    def config(self) -> Path:
        """What made the model: recipe, seed, drawings, versions (JSON)."""
        return self.folder / "config.json"

    @property
    def test(self) -> Path:
        """The drawings held out, NAME.npy for each label, in Google's layout."""
        return self.folder / "test"

    @property
    def drawn(self) -> Path:
        """Bitmaps of drawings that came as strokes or pictures, NAME.npy, to train on."""
        return self.folder / "drawn"

    @property
    def recognized(self) -> Path:
        """Of which rows of `test` it is known whether the game recognised them (CSV: label, row, is_recognized)."""
        return self.folder / "recognized.csv"

    @property
    def calibration(self) -> Path:
        """Drawings not held out, of every class, from which int8 learns its ranges: uint8, (rows <= 1024, 784)."""
        return self.folder / "calibration.npy"

    @property
    def keras(self) -> Path:
        """The trained Keras model."""
        return self.folder / "model.keras"

    @property
    def checkpoint(self) -> Path:
        """How far a training came that is not done yet."""
        return self.folder / "checkpoint.npz"

    @property
    def logs(self) -> Path:
        """What TensorBoard shows (`tensorboard --logdir`)."""
        return self.folder / "logs"

    @property
    def history(self) -> Path:
        """Loss and accuracy of each epoch (CSV)."""
        return self.folder / "history.csv"

    @property
    def onnx(self) -> Path:
        """The model that is served."""
        return self.folder / "model.onnx"

    def exported(self, variant: Variant) -> Path:
        """The model that is served, in this variant; float32 is `onnx`."""
        return self.onnx if variant is Variant.FLOAT32 else self.folder / f"model-{variant}.onnx"

    @property
    def scores(self) -> Path:
        """`sketchbatch score` of `test`, all scores (CSV)."""
        return self.folder / "scores.csv"

    @property
    def metrics(self) -> Path:
        """`sketchbatch evaluate` of `test` (JSON)."""
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"

    @property
    def made(self) -> tuple[Path, ...]:
        """Every file that training and what follows it leave, but the folders `test` and `logs`."""
        exported = (self.exported(variant) for variant in Variant)
        made = (self.config, self.recognized, self.calibration, self.keras, self.checkpoint, self.history)
        return (*made, *exported, self.scores, self.metrics, self.report)

    def need(self, path: Path, made_by: str) -> Path:
        """Returns `path`.

        Raises:
            RunIncomplete: It is not there; says the command that makes it.
        """
        if not path.exists():
            raise RunIncomplete(f"{path}: not there yet; first run: {made_by}")
        return path

    def read_config(self) -> dict[str, Any]:
        """The contents of `config`."""
        path = self.need(self.config, f"sketchbatch-train train --run {self.folder} ...")
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes `config`, whole or not at all."""
        with replacing(self.config) as partial:
            partial.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
