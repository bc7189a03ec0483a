"""Read a run's held-out drawings, score them with an ONNX graph, and save the graph with its metrics.

The exports of float32, float16 and int8 share this module, which does not import Keras.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.readers import Bitmaps, labelled_files, read_bitmaps
from sketchbatch_client.evaluation.stats.metrics import confuse, measure
from sketchbatch_client.label_names import nfc

from ..errors import RunIncomplete
from ..run import Run

Scores = NDArray[np.float32]  # (rows, classes), each row sums to 1

MAX_ROWS = 200_000
"""Largest number of held-out drawings to score. Some runs have 5 million, but a sampling error of 0.2 % is low."""

_CALL_ROWS = 256  # rows in one model call


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out drawings with their classes."""

    bitmaps: Bitmaps
    """uint8, (rows, 28, 28), 0 = paper, 255 = ink; sorted by class."""
    class_index: NDArray[np.int64]
    """(rows,): the index of each drawing's label."""
    classes: int
    """Number of labels."""
    has_trained: bool = False
    """Whether the drawings trained the model, because the run held out none; then its folds judge the model."""

    @property
    def kind(self) -> str:
        """The kind of the drawings, for messages."""
        return "training drawings" if self.has_trained else "held-out drawings"

    def measure(self, scores: Scores) -> dict[str, float]:
        """Return those of the five metrics that are defined; `scores` has one row per held-out drawing."""
        return measure(confuse(self.class_index, scores.argmax(axis=1), self.classes)).defined

    def count_correct(self, scores: Scores) -> int:
        """Return the number of drawings whose highest score is that of their class."""
        return int((scores.argmax(axis=1) == self.class_index).sum())


def read_held_out(run: Run, labels: list[str]) -> HeldOut:
    """Read the drawings of `run.test` in order of `labels`, at most `MAX_ROWS` in total, with an equal limit per class.

    Raises:
        RunIncomplete: A label has no held-out drawings; or all drawings trained, and no cross-validation judged them.
    """
    files = labelled_files(run.test) if any(run.test.glob("*.npy")) else {}
    has_trained = run.config.exists() and run.read_config().get("hold_out") == "none"
    if missing := [label for label in labels if nfc(label) not in files]:
        if has_trained and "restricted_from" in run.read_config():
            raise RunIncomplete(
                f"{run.folder}: all drawings trained, so none is left to judge the model; first cross-validate the run "
                "from which it was restricted, then run the same sketchbatch-train restrict again"
            )
        if has_trained:
            raise RunIncomplete(
                f"{run.folder}: all drawings trained, so none is left to judge the model; train its folds with "
                f"--hold-out 1/5 to 5/5, then run: sketchbatch-train cross-validate --run {run.folder} --of FOLD ..."
            )
        run.need(run.test / f"{missing[0]}.npy")
    return replace(_read(files, labels), has_trained=has_trained)


def read_validation(run: Run, labels: list[str]) -> HeldOut | None:
    """Read the drawings of `run.validation` in order of `labels`; None = the run stored none."""
    files = labelled_files(run.validation) if run.validation.is_dir() else {}
    return _read(files, labels) if {*map(nfc, labels)} <= files.keys() else None


def _read(files: dict[str, Path], labels: list[str]) -> HeldOut:
    classes = [read_bitmaps(files[nfc(label)])[: MAX_ROWS // len(labels)] for label in labels]
    class_index = np.repeat(np.arange(len(labels)), [len(bitmaps) for bitmaps in classes])
    return HeldOut(np.concatenate(classes), class_index, len(labels))


def onnx_scores(graph: onnx.ModelProto, bitmaps: Bitmaps) -> Scores:
    """Score bitmaps, uint8 (rows, 28, 28), with ONNX Runtime on the CPU; return float32 (rows, classes), in order."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the CPU provider warns about each float16 node
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    starts = range(0, len(bitmaps), _CALL_ROWS)
    return np.concatenate([session.run(["scores"], {"bitmaps": bitmaps[i : i + _CALL_ROWS]})[0] for i in starts])


def save_described(graph: onnx.ModelProto, path: Path, properties: dict[str, Any]) -> None:
    """Write the graph with exactly these `metadata_props`; replace an existing file atomically."""
    onnx.helper.set_model_props(graph, properties)
    with replacing(path) as partial:
        onnx.save(graph, partial)
