"""Names the files of a run, the folder through which the steps hand on their work."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sketchbatch_client.atomic import replacing

from .errors import RunIncomplete


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
    def keras(self) -> Path:
        """The trained Keras model."""
        return self.folder / "model.keras"

    @property
    def history(self) -> Path:
        """Loss and accuracy of each epoch (CSV)."""
        return self.folder / "history.csv"

    @property
    def onnx(self) -> Path:
        """The model that is served."""
        return self.folder / "model.onnx"

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
