"""Runs ONNX graphs on a run's held-out drawings, and saves a graph that says how well it did.

What float32 and its variants share; knows neither Keras nor how a graph came to be.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import Bitmaps, labelled_files, read_bitmaps
from sketchbatch_client.evaluation.stats.metrics import confuse, measure

from ..run import Run

Scores = NDArray[np.float32]  # (rows, classes), each row sums to 1

MOST_ROWS = 200_000
"""Held-out drawings that a model is judged by; of all 50 million a tenth is held out, and 0.2 % of error is enough."""

_CALL_ROWS = 256  # rows in one model call


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The drawings that no training saw."""

    bitmaps: Bitmaps
    """uint8, (rows, 28, 28), 0 = paper, 255 = ink; in order of class."""

    class_index: NDArray[np.int64]
    """(rows,), index into the labels."""

    classes: int
    """How many labels there are."""

    def measure(self, scores: Scores) -> dict[str, float]:
        """The five metrics of `scores` of all these drawings."""
        return asdict(measure(confuse(self.class_index, scores.argmax(axis=1), self.classes)))

    def named_right(self, scores: Scores) -> int:
        """How many of these drawings score highest as what they are."""
        return int((scores.argmax(axis=1) == self.class_index).sum())


def read_held_out(run: Run, labels: list[str]) -> HeldOut:
    """Reads `run.test`, in order of `labels`; of each class at most its share of `MOST_ROWS`.

    Raises:
        RunIncomplete: A label's drawings are not there.
    """
    files = labelled_files(run.test) if run.test.is_dir() else {}
    if missing := [label for label in labels if label not in files]:
        run.need(run.test / f"{missing[0]}.npy", f"sketchbatch-train train --run {run.folder} ...")
    classes = [read_bitmaps(files[label])[: MOST_ROWS // len(labels)] for label in labels]
    class_index = np.repeat(np.arange(len(labels)), [len(bitmaps) for bitmaps in classes])
    return HeldOut(np.concatenate(classes), class_index, len(labels))


def onnx_scores(graph: onnx.ModelProto, bitmaps: Bitmaps) -> Scores:
    """Scores uint8 (rows, 28, 28) by ONNX Runtime on the CPU: float32 (rows, classes), same order."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # float16 on the CPU warns of every node that it runs as float32
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    starts = range(0, len(bitmaps), _CALL_ROWS)
    return np.concatenate([session.run(["scores"], {"bitmaps": bitmaps[i : i + _CALL_ROWS]})[0] for i in starts])


def save_described(graph: onnx.ModelProto, path: Path, properties: dict[str, Any]) -> None:
    """Writes the graph with these `metadata_props` and no others, whole or not at all."""
    onnx.helper.set_model_props(graph, properties)
    with replacing(path) as partial:
        onnx.save(graph, partial)
