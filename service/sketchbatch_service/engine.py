"""Runs one model file on ONNX Runtime's CPU; `cuda` is its like on CUDA, and `models` chooses.

`open_session` loads the file, `Engine.predict` is what the batcher calls. Must not know gRPC.
"""

import math
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .arrays import ROW_SHAPE, Bitmaps, Scores
from .errors import ModelRefused

CPU = "CPUExecutionProvider"


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Loads the model at `path` on the CPU.

    Args:
        path: The .onnx file.
        threads: CPU threads of one model call; 0 = as many as this process may use.

    Raises:
        ModelRefused: There is no such file, or ONNX Runtime cannot load it.
    """
    if not path.is_file():
        raise ModelRefused(f"{path}: no such model file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # our own errors say what failed
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1  # the graph is a chain
    try:
        return ort.InferenceSession(str(path), options, providers=[CPU])
    except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
        cause = str(exc).splitlines()[0]
        raise ModelRefused(f"{path}: not a model that ONNX Runtime can load: {cause}") from exc


def available_cpus() -> int:
    """CPUs this process may use: its affinity, cut by the cgroup v2 quota (a container's limit), at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


class Engine:
    """One model loaded on the CPU. `predict` may be called from one thread at a time."""

    lanes = 1

    def __init__(self, session: ort.InferenceSession, *, classes: int, max_batch_rows: int) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        self._max_batch_rows = max_batch_rows
        self._classes = classes

    def warm_up(self) -> None:
        """Runs one row, and a full batch, of random bitmaps.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
        """
        noise = np.random.default_rng(0)
        for rows in (1, self._max_batch_rows):
            try:
                scores = self.predict(noise.integers(0, 256, (rows, *ROW_SHAPE), np.uint8))
            except Exception as exc:  # as in open_session
                raise ModelRefused(f"the model breaks on {rows} rows: {str(exc).splitlines()[0]}") from exc
            if scores.shape != (rows, self._classes):
                raise ModelRefused(f"scores of {rows} rows must be {(rows, self._classes)}, got {scores.shape}")

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Scores uint8 (rows, 28, 28), 1 <= rows <= `max_batch_rows`: float32 (rows, classes), same order."""
        scores: Scores = self._session.run(["scores"], {"bitmaps": bitmaps})[0]
        return scores
