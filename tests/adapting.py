"""Run the command `sketchbatch-train adapt` in this process, and load its files as the service does."""

from pathlib import Path

import numpy as np
import onnx
from sketchbatch_service.engines.cpu import Engine, open_session
from sketchbatch_service.models.loader import LoadOptions, find_models, load
from sketchbatch_trainer.cli import app
from typer.testing import CliRunner


def adapt(source: Path, *flags: object, labels: str = "ant,bee,cow") -> Path:
    """Adapt `source` into the file `out/NAME.onnx` in its folder; return the file. Raises the errors of the command.

    There are no sketches of the default labels, so that the command compares no scalings, which takes seconds.
    """
    output = source.parent / "out" / f"{source.stem}.onnx"
    named = ("--labels", labels) if labels else ()
    run_adapt(source, "--output", output, *named, *flags)
    return output


def run_adapt(*arguments: object) -> str:
    """Run the command and return what it prints; raise its errors."""
    result = CliRunner().invoke(app, ["adapt", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def served_scores(path: Path, bitmaps: np.ndarray) -> np.ndarray:
    """Load a model file as the service does, which checks it; return its scores of bitmaps, uint8 (rows, 28, 28)."""
    model = load(find_models(path)[0], LoadOptions(provider="cpu", threads=1))
    return Engine(open_session(path), classes=len(model.artifact.labels)).predict(bitmaps)


def properties(path: Path) -> dict[str, str]:
    """Return the metadata of a model file."""
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
