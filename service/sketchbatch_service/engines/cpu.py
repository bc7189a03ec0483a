"""Run one model file on ONNX Runtime's CPU provider; `cuda` is the counterpart for CUDA.

Flow: `open_session` loads the file, `Engine.warm_up` measures it, the batcher calls `Engine.predict`. The module knows
neither gRPC nor the batcher.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import onnxruntime as ort

from ..arrays import ROW_SHAPE, Bitmaps, Scores
from ..errors import ModelRefused
from .load_errors import why_not_loaded
from .tensor_names import OUR_NAMES, TensorNames

CPU = "CPUExecutionProvider"

_CALL_S = 0.005
"""Intended duration of a full model call. A single drawing waits for the running call. Python's overhead of about
50 us per call is 1 % of this duration. Effect of other durations: docs/tuning.md."""

_QUICK_S = 0.001  # longest duration of a quick call: splitting it or passing it to another thread saves no time
_LONG_S = 0.02  # a thread polls during full calls that take longer than this, so that health checks do not wait
_BATCH_ROWS = (16, 1024)  # range: fewer rows do not fill ONNX Runtime's kernels, more exceed the CPU's caches
_TIMED_ROWS = 16  # rows of the measured call; more rows would hardly change the time per row
_TRIALS = 5


def open_session(path: Path) -> ort.InferenceSession:
    """Load the model at `path` on the CPU; raise ModelRefused if the file is missing or ONNX Runtime rejects it."""
    if not path.is_file():
        raise ModelRefused(f"{path}: no such model file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # the exception already reports the cause
    # Each call uses one CPU, instead of several CPUs for each layer: no thread waits for another, and none spins.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1  # the graph is a chain: no two nodes can run concurrently
    try:
        return ort.InferenceSession(str(path), options, providers=[CPU])
    except Exception as exc:  # ONNX Runtime's exceptions have no public base class
        raise ModelRefused(f"{path}: {why_not_loaded(path, exc)}") from exc


def predict_checked(predict: Callable[[Bitmaps], Scores], bitmaps: Bitmaps, classes: int) -> Scores:
    """Run a model; raise ModelRefused if it fails on bitmaps or its scores do not have the shape (rows, classes)."""
    rows = len(bitmaps)
    try:
        scores = predict(bitmaps)
    except Exception as exc:  # ONNX Runtime's exceptions have no public base class
        cause = f"the model fails on {rows} row{'s' * (rows > 1)}: {str(exc).splitlines()[0]}"
        remedy = "it must accept any number of rows: export it with an open batch (dynamic_axes in PyTorch)"
        raise ModelRefused(f"{cause}; {remedy}" if rows > 1 else cause) from exc
    if scores.shape != (rows, classes):
        raise ModelRefused(f"scores of {rows} rows must be {(rows, classes)}, got {scores.shape}")
    return scores


def available_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the CPUs that this process may use: its affinity, limited by the quotas of its cgroups; at least 1.

    A quota limits all cgroups below it: systemd sets `CPUQuota=` on the service, and a process may be deeper.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(folder) for folder in _cgroup_folders(cgroups, own)]
    return max(1, min([cpus, *(math.ceil(quota) for quota in quotas)]))


def _cgroup_folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the cgroups, version 1 or 2, that may limit the CPUs of this process, and their parents.

    In a container, `own` may name folders of the host; the container's own cgroup is then the root.
    """
    yield from (cgroups, cgroups / "cpu")
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            inner = PurePosixPath(path.lstrip("/"))
            root = cgroups / "cpu" if controllers else cgroups
            yield from (root / each for each in (inner, *inner.parents))


def _quota(folder: Path) -> float:
    """Return how many CPUs a cgroup may use; without a quota, all of the machine."""
    words = _text(folder / "cpu.max").split() or [  # version 2, and 1
        *_text(folder / "cpu.cfs_quota_us").split(),
        *_text(folder / "cpu.cfs_period_us").split(),
    ]
    match words:
        case [quota, period] if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return float(os.cpu_count() or 1)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


class Engine:
    """One model on the CPU; `slots` threads may call `predict` concurrently, on one CPU each.

    With `max_batch_rows` = 0, `warm_up` measures how many rows take about 5 ms, and limits calls to this number.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        classes: int,
        names: TensorNames = OUR_NAMES,
        slots: int = 1,
        max_batch_rows: int = 0,
    ) -> None:
        self._session = session
        self._classes = classes
        self._input, self._outputs = names.input, [names.scores]
        self._has_fixed_size = bool(max_batch_rows)
        self.provider: str = session.get_providers()[0]
        self.slots = slots
        self.batch_rows = max_batch_rows or _BATCH_ROWS[0]  # most rows in one call
        self.buckets: tuple[int, ...] = ()  # a batch of any size is computed as it is
        self.quick_rows = self.min_split_rows = 1  # rows that take at most a millisecond
        self.tolerance = 0.0  # largest allowed difference from the CPU's scores
        self.polls_while_saturated = False  # whether a full call takes so long that a thread must poll during it

    def warm_up(self) -> None:
        """Check the model with `predict_checked` for three batch sizes, and set the limits in rows by its speed."""
        for rows in (1, _TIMED_ROWS):
            predict_checked(self.predict, _noise(rows), self._classes)
        self._tune()
        predict_checked(self.predict, _noise(self.batch_rows), self._classes)

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Return float32 (rows, classes) for uint8 (rows, 28, 28), 1 <= rows <= `batch_rows`, in the same order."""
        scores: Scores = self._session.run(self._outputs, {self._input: bitmaps})[0]
        return scores

    def _tune(self) -> None:
        trial = _noise(_TIMED_ROWS)
        took_s = min(_thread_s(lambda: self.predict(trial)) for _ in range(_TRIALS))
        rows_per_s = _TIMED_ROWS / max(took_s, 1e-6)
        if not self._has_fixed_size:
            least, most = _BATCH_ROWS
            self.batch_rows = min(most, max(least, _power_of_two_below(rows_per_s * _CALL_S)))
        self.quick_rows = self.min_split_rows = min(self.batch_rows, max(1, int(rows_per_s * _QUICK_S)))
        self.polls_while_saturated = self.batch_rows / rows_per_s > _LONG_S


def _noise(rows: int) -> Bitmaps:
    return np.random.default_rng(rows).integers(0, 256, (rows, *ROW_SHAPE), np.uint8)


def _thread_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds that this thread uses for `call`: other threads, which may run requests, do not count."""
    started_at = time.thread_time()
    call()
    return time.thread_time() - started_at


def _power_of_two_below(number: float) -> int:
    return 1 << max(0, int(number).bit_length() - 1)
