"""Runs one model file on ONNX Runtime's CPU; `cuda` is its like on CUDA, and `models` chooses.

`open_session` loads the file, `Engine.predict` is what the batcher calls. Must not know gRPC.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ..arrays import ROW_SHAPE, Bitmaps, Scores
from ..errors import ModelRefused

CPU = "CPUExecutionProvider"

_CALL_S = 0.005
"""About how long a model call may take: a lone drawing waits for the one under way, and Python's share of a call, some
50 us, is a hundredth of it. docs/tuning.md has what other lengths do."""

_QUICK_S = 0.001
"""How long a call may take to count as quick: not worth splitting, nor handing to another thread."""

_LONG_S = 0.02
"""From how long a full call on, requests are taken in meanwhile, at some cost: health checks must not wait longer."""

_BATCH_ROWS = (16, 1024)
"""Least and most rows of a call that are found best: fewer do not fill ONNX Runtime's kernels, more its caches."""

_TRIAL_ROWS = 16
"""Rows whose call is timed: the pace hardly changes with more."""

_TRIALS = 5


def open_session(path: Path) -> ort.InferenceSession:
    """Loads the model at `path` on the CPU.

    Raises:
        ModelRefused: There is no such file, or ONNX Runtime cannot load it.
    """
    if not path.is_file():
        raise ModelRefused(f"{path}: no such model file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # our own errors say what failed
    # A call for each core, not a core for a part of each layer: no thread waits for another, and none spins.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1  # the graph is a chain
    try:
        return ort.InferenceSession(str(path), options, providers=[CPU])
    except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
        cause = str(exc).splitlines()[0]
        raise ModelRefused(f"{path}: not a model that ONNX Runtime can load: {cause}") from exc


def available_cpus(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: its affinity, cut by the quota of its cgroup (a container's limit), at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2, and 1
        match [word for file in files for word in _words(cgroups / file)]:
            case [quota, period] if quota not in ("max", "-1"):
                return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    return cpus


def _words(file: Path) -> list[str]:
    """Nothing for a file that is not there."""
    try:
        return file.read_text().split()
    except OSError:
        return []


class Engine:
    """One model loaded on the CPU. `predict` may be called from as many threads at a time as it has `slots`.

    Args:
        session: What `open_session` returned.
        classes: Number of labels.
        slots: Calls at a time, a CPU each.
        max_batch_rows: Most rows in one call; 0 = as many as take some 5 ms, found by `warm_up`.
    """

    def __init__(self, session: ort.InferenceSession, *, classes: int, slots: int = 1, max_batch_rows: int = 0) -> None:
        self._session = session
        self._classes = classes
        self._is_fixed = bool(max_batch_rows)
        self.provider: str = session.get_providers()[0]
        self.slots = slots
        """Calls of `predict` at a time."""
        self.batch_rows = max_batch_rows or _BATCH_ROWS[0]
        """Most rows of a call."""
        self.buckets: tuple[int, ...] = ()
        """None: any number of rows is computed as it is."""
        self.quick_rows = 1
        """Rows whose call takes no more than a millisecond."""
        self.polls_while_saturated = False
        """Whether a full call takes so long that requests should be taken in meanwhile."""

    @property
    def share_rows(self) -> int:
        """Rows below which a batch is not worth splitting between slots."""
        return self.quick_rows

    def warm_up(self) -> None:
        """Runs random bitmaps, in the batch sizes that matter, and finds the numbers above.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
        """
        for rows in (1, _TRIAL_ROWS):
            self._try(rows)
        self._tune()
        self._try(self.batch_rows)

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Scores uint8 (rows, 28, 28), 1 <= rows <= `batch_rows`: float32 (rows, classes), same order."""
        scores: Scores = self._session.run(["scores"], {"bitmaps": bitmaps})[0]
        return scores

    def _try(self, rows: int) -> None:
        try:
            scores = self.predict(_noise(rows))
        except Exception as exc:  # as in open_session
            raise ModelRefused(f"the model breaks on {rows} rows: {str(exc).splitlines()[0]}") from exc
        if scores.shape != (rows, self._classes):
            raise ModelRefused(f"scores of {rows} rows must be {(rows, self._classes)}, got {scores.shape}")

    def _tune(self) -> None:
        trial = _noise(_TRIAL_ROWS)
        took_s = min(_cpu_s(lambda: self.predict(trial)) for _ in range(_TRIALS))
        rows_per_s = _TRIAL_ROWS / max(took_s, 1e-6)
        if not self._is_fixed:
            least, most = _BATCH_ROWS
            self.batch_rows = min(most, max(least, _power_of_two_below(rows_per_s * _CALL_S)))
        self.quick_rows = min(self.batch_rows, max(1, int(rows_per_s * _QUICK_S)))
        self.polls_while_saturated = self.batch_rows / rows_per_s > _LONG_S


def _noise(rows: int) -> Bitmaps:
    return np.random.default_rng(rows).integers(0, 256, (rows, *ROW_SHAPE), np.uint8)


def _cpu_s(call: Callable[[], object]) -> float:
    """Seconds of this thread alone, which makes the whole call: requests under way may have the cores meanwhile."""
    started_at = time.thread_time()
    call()
    return time.thread_time() - started_at


def _power_of_two_below(number: float) -> int:
    return 1 << max(0, int(number).bit_length() - 1)
