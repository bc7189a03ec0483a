"""Runs one model file on ONNX Runtime, on CPU or CUDA.

`open_session` chooses the provider; `Engine.predict` is what the batcher calls. Must not know gRPC.
"""

import math
import os
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


def open_session(path: Path, provider: Provider, threads: int) -> ort.InferenceSession:
    """Loads the model at `path`.

    Args:
        path: The .onnx file.
        provider: `auto` takes CUDA where it works and CPU elsewhere; `cuda` takes nothing else.
        threads: CPU threads of one model call; 0 = as many as this process may use.

    Raises:
        ModelRefused: There is no such file, or ONNX Runtime cannot load it.
        ProviderMissing: `cuda` was asked for and the whole model cannot run there.
    """
    if not path.is_file():
        raise ModelRefused(f"{path}: no such model file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # our own errors say what failed
    options.intra_op_num_threads = threads or available_cpus()
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
    """One loaded model. `predict` may be called from one thread at a time."""

    def __init__(self, session: ort.InferenceSession, *, classes: int, max_batch_rows: int) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        # CUDA searches for an algorithm at each new batch size (0.6-8 s): few sizes, all tried before SERVING.
        self._buckets = _powers_of_two(max_batch_rows) if self.provider == CUDA else ()
        self._max_batch_rows = max_batch_rows
        self._classes = classes

    def warm_up(self) -> None:
        """Runs every batch size that will be padded to (on CPU: one row, and a full batch) on random bitmaps.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
        """
        noise = np.random.default_rng(0)
        for rows in self._buckets or (1, self._max_batch_rows):
            try:
                scores = self.predict(noise.integers(0, 256, (rows, *ROW_SHAPE), np.uint8))
            except Exception as exc:  # as in open_session
                raise ModelRefused(f"the model breaks on {rows} rows: {str(exc).splitlines()[0]}") from exc
            if scores.shape != (rows, self._classes):
                raise ModelRefused(f"scores of {rows} rows must be {(rows, self._classes)}, got {scores.shape}")

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Scores uint8 (rows, 28, 28), 1 <= rows <= `max_batch_rows`: float32 (rows, classes), same order."""
        rows = len(bitmaps)
        padded = pad(bitmaps, self._buckets)
        scores: Scores = self._session.run(["scores"], {"bitmaps": padded})[0]
        return scores[:rows]


def pad(bitmaps: Bitmaps, buckets: tuple[int, ...]) -> Bitmaps:
    """Adds blank rows up to the next of `buckets` (ascending); without buckets, or past the last, none."""
    rows = len(bitmaps)
    bucket = next((bucket for bucket in buckets if bucket >= rows), rows)
    if bucket == rows:
        return bitmaps
    padded = np.zeros((bucket, *ROW_SHAPE), np.uint8)
    padded[:rows] = bitmaps
    return padded


def _powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself last."""
    return (*(1 << n for n in range((most - 1).bit_length())), most)
