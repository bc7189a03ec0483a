"""Runs one model file on ONNX Runtime, on CPU or CUDA.

`open_session` chooses the provider; `Engine.predict` is what the batcher calls. Must not know gRPC.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from .arrays import ROW_SHAPE, Bitmaps, Scores
from .errors import ModelRefused, ProviderMissing

Provider = Literal["auto", "cpu", "cuda"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_CUDA_OPTIONS = {
    # DEFAULT maps to a slow fallback since 1.20 (onnxruntime#22705); EXHAUSTIVE searches for seconds a shape.
    "cudnn_conv_algo_search": "HEURISTIC",
}


_CALL_S = 0.005
"""About how long a model call may take on the CPU: a lone drawing waits for the one under way, and Python's share of a
call, some 50 us, is a hundredth of it. docs/tuning.md has what other lengths do."""

_QUICK_S = 0.001
"""How long a call may take to count as quick: not worth splitting, nor handing to another thread."""

_LONG_S = 0.02
"""From how long a full call on, requests are taken in meanwhile, at some cost: health checks must not wait longer."""

_TRIAL_ROWS = 16
"""Rows whose call is timed: enough to fill ONNX Runtime's kernels, whose pace hardly changes with more."""

_TRIALS = 5

_CPU_BATCH_ROWS = (16, 1024)
_CUDA_BATCH_ROWS = 256


def open_session(path: Path, provider: Provider) -> ort.InferenceSession:
    """Loads the model at `path`.

    Args:
        path: The .onnx file.
        provider: `auto` takes CUDA where it works and CPU elsewhere; `cuda` takes nothing else.

    Raises:
        ModelRefused: There is no such file, or ONNX Runtime cannot load it.
        ProviderMissing: `cuda` was asked for and the whole model cannot run there.
    """
    if not path.is_file():
        raise ModelRefused(f"{path}: no such model file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # our own errors say what failed
    options.intra_op_num_threads = 1  # a call a core, not a core for a part of each layer: no barriers, no spinning
    options.inter_op_num_threads = 1  # the graph is a chain
    providers = _providers(provider)
    if provider == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
        cause = str(exc).splitlines()[0]
        if provider == "cuda":
            raise ProviderMissing(f"{path}: cannot run on cuda: {cause}") from exc
        raise ModelRefused(f"{path}: not a model that ONNX Runtime can load: {cause}") from exc
    if provider == "cuda" and session.get_providers()[0] != CUDA:
        raise ProviderMissing(
            f"provider cuda was asked for, but ONNX Runtime fell back to {session.get_providers()[0]}: "
            "is there a GPU, and a driver for CUDA 13?"
        )
    return session


def _providers(provider: Provider) -> list[str | tuple[str, dict[str, str]]]:
    has_cuda = provider != "cpu" and CUDA in ort.get_available_providers()
    if provider == "cuda" and not has_cuda:
        raise ProviderMissing(
            "provider cuda was asked for, but this ONNX Runtime is built without it: "
            "install sketchbatch-service[gpu] in place of [cpu]"
        )
    if not has_cuda:
        return [CPU]
    ort.preload_dlls()  # finds the CUDA libraries of pip's wheels
    cuda = (CUDA, _CUDA_OPTIONS)
    return [cuda] if provider == "cuda" else [cuda, CPU]


def available_cpus() -> int:
    """CPUs this process may use: its affinity, cut by the cgroup v2 quota (a container's limit), at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


class Engine:
    """One loaded model. `predict` may be called from as many threads at a time as it has `lanes`.

    Args:
        session: What `open_session` returned.
        classes: Number of labels.
        threads: CPUs to use; 0 = as many as this process may.
        max_batch_rows: Most rows in one call; 0 = on the CPU as many as take some 5 ms, found by `warm_up`.
    """

    def __init__(
        self, session: ort.InferenceSession, *, classes: int, threads: int = 0, max_batch_rows: int = 0
    ) -> None:
        self._session = session
        self._classes = classes
        self._is_tuned = bool(max_batch_rows)
        self.provider: str = session.get_providers()[0]
        on_cuda = self.provider == CUDA
        self.lanes = 1 if on_cuda else threads or available_cpus()
        """Calls at a time."""
        self.batch_rows = max_batch_rows or (_CUDA_BATCH_ROWS if on_cuda else _CPU_BATCH_ROWS[0])
        """Most rows of a call."""
        self.quick_rows = 0
        """Rows whose call takes no more than a millisecond; 0 on CUDA, where the CPU has time meanwhile."""
        self.watches_while_full = on_cuda
        """Whether requests should be taken in while all lanes run: the CPU is idle, or a call takes long."""
        # CUDA searches for an algorithm at each new batch size (0.6-8 s): few sizes, all tried before SERVING.
        self._buckets = _powers_of_two(self.batch_rows) if on_cuda else ()

    def warm_up(self) -> None:
        """Runs the batch sizes that matter on random bitmaps, and on the CPU finds the numbers above.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
        """
        for rows in self._buckets or (1, _TRIAL_ROWS):
            self._try(rows)
        if not self._buckets:
            self._tune()
            self._try(self.batch_rows)

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Scores uint8 (rows, 28, 28), 1 <= rows <= `batch_rows`: float32 (rows, classes), same order."""
        rows = len(bitmaps)
        padded = pad(bitmaps, self._buckets)
        scores: Scores = self._session.run(["scores"], {"bitmaps": padded})[0]
        return scores[:rows]

    def _try(self, rows: int) -> None:
        try:
            scores = self.predict(_noise(rows))
        except Exception as exc:  # as in open_session
            raise ModelRefused(f"the model breaks on {rows} rows: {str(exc).splitlines()[0]}") from exc
        if scores.shape != (rows, self._classes):
            raise ModelRefused(f"scores of {rows} rows must be {(rows, self._classes)}, got {scores.shape}")

    def _tune(self) -> None:
        trial = _noise(_TRIAL_ROWS)
        took_s = min(_timed(lambda: self.predict(trial)) for _ in range(_TRIALS))
        rows_per_s = _TRIAL_ROWS / max(took_s, 1e-6)
        if not self._is_tuned:
            least, most = _CPU_BATCH_ROWS
            self.batch_rows = min(most, max(least, _power_of_two_below(rows_per_s * _CALL_S)))
        self.quick_rows = min(self.batch_rows, max(1, int(rows_per_s * _QUICK_S)))
        self.watches_while_full = self.batch_rows / rows_per_s > _LONG_S


def pad(bitmaps: Bitmaps, buckets: tuple[int, ...]) -> Bitmaps:
    """Adds blank rows up to the next of `buckets` (ascending); without buckets, or past the last, none."""
    rows = len(bitmaps)
    bucket = next((bucket for bucket in buckets if bucket >= rows), rows)
    if bucket == rows:
        return bitmaps
    padded = np.zeros((bucket, *ROW_SHAPE), np.uint8)
    padded[:rows] = bitmaps
    return padded


def _noise(rows: int) -> Bitmaps:
    return np.random.default_rng(rows).integers(0, 256, (rows, *ROW_SHAPE), np.uint8)


def _timed(call: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


def _power_of_two_below(number: float) -> int:
    return 1 << max(0, int(number).bit_length() - 1)


def _powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself last."""
    return (*(1 << n for n in range((most - 1).bit_length())), most)
