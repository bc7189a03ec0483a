"""Runs one model file on one CUDA device: fixed batch sizes, captured as CUDA graphs, copies beside the computing.

Flow: `predict`, on any of `slots` threads at once -> the lane's pinned host buffer -> its buffer on the device -> the
engine's one dispatcher thread runs the model -> scores back to the host. While one lane's batch computes, the other
fills its buffers. `open_on_cuda` chooses the session; nothing is served that was not compared with the CPU first.
Must not know gRPC, nor the batcher. What it rests on: docs/decisions/0010-the-cuda-engine.md.
"""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np
import onnxruntime as ort
import structlog

from ..arrays import ROW_SHAPE, Bitmaps, Scores
from ..errors import ProviderMissing
from .cuda_captures import CAPTURES
from .cuda_device import CUDA, Device
from .parity import Reference, random_drawings

log = structlog.get_logger()

BATCH_ROWS = 4096
"""Most rows in one call where nobody says: a fourth faster than 1,024 on an H200, and 2 ms long. docs/gpu.md."""

_DOUBLING_TO = 1024
"""Rows up to which batch sizes double: a call is over in half a millisecond, and padding costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """How to run on CUDA."""

    device: int = 0
    """Which of the devices visible, counted around: a worker's number spreads workers over all of them."""

    graphs: Literal["auto", "on", "off"] = "auto"
    """CUDA graphs: `auto` captures them where that is possible, `on` refuses a model where it is not; `off`."""

    tf32: bool = False
    """Let float32 models multiply in TF32 (10 bits of mantissa): faster, and as coarse as float16."""

    slots: int = 2
    """Batches under way: one computes while the next is copied; a third would only wait."""


def open_on_cuda(path: Path, reference: Reference, *, max_batch_rows: int, options: CudaOptions) -> "CudaEngine":
    """Loads the model at `path` and warms it up; `reference` is the same file on the CPU, 0 rows are `BATCH_ROWS`.

    Raises:
        ModelRefused: The model breaks on bitmaps, on the CPU too.
        ProviderMissing: CUDA, or a device, is missing; the whole model does not run there; it scores other than the
            CPU; or graphs are `on` and cannot be captured.
    """
    Device.cuda(options.device)  # or there is nothing to try
    if options.graphs == "auto":
        with ExitStack() as alone:
            try:
                return _open(path, reference, max_batch_rows, replace(options, graphs="on"), alone)
            except ProviderMissing as exc:
                log.warning("no CUDA graphs for this model", model=str(path), cause=str(exc))
            gc.collect()  # the session that failed must be gone: a stream left in capture fails the calls of others
    with ExitStack() as alone:
        return _open(path, reference, max_batch_rows, options, alone)


def _open(
    path: Path, reference: Reference, max_batch_rows: int, options: CudaOptions, alone: ExitStack
) -> "CudaEngine":
    """With graphs on or off; while they are captured, and until `alone` is left, other calls on CUDA wait."""
    device = Device.cuda(options.device)
    is_coarse = options.tf32 or reference.variant == "float16"
    session = _open_session(path, device, options, channels_last=is_coarse)
    engine = CudaEngine(session, device, reference, max_batch_rows=max_batch_rows, options=options)
    if engine.has_graphs:
        alone.enter_context(CAPTURES.alone())
    engine.warm_up()
    log.info("on CUDA", model=str(path), tf32=options.tf32, **engine.description())
    return engine


class CudaEngine:
    """One model on one device. `predict` may be called from `slots` threads at a time; one more waits for a buffers.

    One dispatcher thread makes every model call: ONNX Runtime keeps a captured graph with the thread that captured it,
    and a second call on the same device would only queue behind the first. On the device "cpu" the same code runs, with
    its copies and bindings, without a GPU.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        reference: Reference,
        *,
        max_batch_rows: int,
        options: CudaOptions,
    ) -> None:
        self.provider: str = session.get_providers()[0]
        self.slots = options.slots
        """Calls of `predict` at a time."""
        self.buckets = _buckets(max_batch_rows or BATCH_ROWS)
        """Numbers of rows that are computed: others are padded to the next."""
        self.batch_rows = self.buckets[-1]
        """Most rows of a call."""
        self.share_rows = self.batch_rows
        """Rows below which a batch is not worth splitting: the device runs one call at a time."""
        self.quick_rows = 0
        """No call is too short to take requests in meanwhile: the CPU is idle."""
        self.polls_while_saturated = True
        """Likewise while all slots run."""
        self._settings = session.get_provider_options().get(CUDA, {})
        self.has_graphs = self._settings.get("enable_cuda_graph") == "1"
        self.tolerance = reference.tolerance(tf32=options.tf32)
        self.largest_difference = 0.0
        """Largest difference of any score from the CPU's in `warm_up`."""
        self._session = session
        self._device = device
        self._reference = reference
        self._dispatcher = ThreadPoolExecutor(1, thread_name_prefix=f"{device.name}-{device.id}")
        self._buffer_sets = [_BufferSet(device, self._make_buckets(number)) for number in range(options.slots)]
        self._free: SimpleQueue[_BufferSet] = SimpleQueue()
        for buffers in self._buffer_sets:
            self._free.put(buffers)

    def warm_up(self) -> None:
        """Runs every bucket of every buffers, which captures its graph, and then compares each with the CPU.

        ONNX Runtime replays what was captured under a graph's id whatever is bound: a mix-up would answer with another
        batch's scores and no error. So each is compared on drawings it has not seen, once all are captured. No other
        thread of this process may use CUDA while graphs are captured: see `Captures`.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
            ProviderMissing: It breaks on this device only, or scores otherwise there.
        """
        # Bucket by bucket: a batch size other than the last run's makes cuDNN choose its algorithms again.
        pairs = sorted(
            ((buffers, bucket) for buffers in self._buffer_sets for bucket in buffers.buckets),
            key=lambda pair: pair[1].rows,
        )
        drawings = random_drawings(self.buckets[-1] + len(pairs))
        expected = self._reference.scores(drawings)
        for buffers, bucket in pairs:
            self._try(buffers, bucket, drawings[: bucket.rows])
        for start, (buffers, bucket) in enumerate(pairs, 1):
            scores = self._try(buffers, bucket, drawings[start : start + bucket.rows])
            self._compare(scores, expected[start : start + bucket.rows])

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Scores uint8 (rows, 28, 28), 1 <= rows <= `batch_rows`: float32 (rows, classes), same order."""
        buffers = self._free.get()
        try:
            with CAPTURES.call():
                bucket = buffers.fill(bitmaps)
                self._run(bucket)
                return bucket.scores_of(len(bitmaps))
        finally:
            self._free.put(buffers)

    def description(self) -> dict[str, object]:
        """What an operator may want to know, for the log."""
        return {
            "device_id": self._device.id,
            "buckets": list(self.buckets),
            "cuda_graphs": self.has_graphs,
            "channels_last": self._settings.get("prefer_nhwc") == "1",
            "largest_difference": self.largest_difference,
            "tolerance": self.tolerance,
        }

    def _make_buckets(self, buffer_set: int) -> list["_Bucket"]:
        """The buckets of a buffers; each has a graph of its own, under an id of its own."""
        first_id = 1 + buffer_set * len(self.buckets)
        return [
            _Bucket(self._session, self._device, (rows, self._reference.classes), graph_id if self.has_graphs else None)
            for graph_id, rows in enumerate(self.buckets, first_id)
        ]

    def _run(self, bucket: "_Bucket") -> None:
        self._dispatcher.submit(bucket.run, self._session).result()

    def _try(self, buffers: "_BufferSet", bucket: "_Bucket", drawings: Bitmaps) -> Scores:
        buffers.fill(drawings)
        try:
            self._run(bucket)
        except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
            raise ProviderMissing(f"the model breaks on {bucket.rows} rows: {str(exc).splitlines()[0]}") from exc
        return bucket.scores_of(bucket.rows)

    def _compare(self, scores: Scores, expected: Scores) -> None:
        difference = float(np.abs(scores - expected).max())
        self.largest_difference = max(self.largest_difference, difference)
        if not difference <= self.tolerance:  # also where it is not a number
            raise ProviderMissing(
                f"scores of {len(scores)} rows may differ from the CPU's by {self.tolerance:g}, got {difference:.2g}"
            )


class _BufferSet:
    """One caller's buffers: a pinned one on the host, and those of each bucket on the device."""

    def __init__(self, device: Device, buckets: list["_Bucket"]) -> None:
        self.buckets = buckets  # by rows, ascending
        self._device = device
        self._host = device.host_rows(buckets[-1].rows)

    def fill(self, bitmaps: Bitmaps) -> "_Bucket":
        """Copies `bitmaps` to the device, into the smallest bucket that holds them.

        The bucket's other rows keep what they had: their scores are cut off.
        """
        self._device.enter_thread()
        rows = len(bitmaps)
        bucket = next(bucket for bucket in self.buckets if bucket.rows >= rows)
        self._host[:rows] = bitmaps
        bucket.bitmaps.update_inplace(self._host[: bucket.rows])  # returns when the device has them
        return bucket


class _Bucket:
    """One bucket of one buffers: its tensors at addresses that stay, bound once, and the graph captured over them."""

    def __init__(
        self, session: ort.InferenceSession, device: Device, shape: tuple[int, int], graph_id: int | None
    ) -> None:
        self.rows, _ = shape  # of the scores
        self.bitmaps = device.tensor((self.rows, *ROW_SHAPE), np.uint8)
        self._scores = device.tensor(shape, np.float32)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("bitmaps", self.bitmaps)
        self._binding.bind_ortvalue_output("scores", self._scores)
        self._options: ort.RunOptions | None = None  # options that name no graph cost 35 us a call
        if graph_id is not None:
            self._options = ort.RunOptions()
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, session: ort.InferenceSession) -> None:
        """Computes the scores; on the dispatcher thread only. The first run captures, each later one replays."""
        session.run_with_iobinding(self._binding, self._options)

    def scores_of(self, rows: int) -> Scores:
        """Copies out the first `rows` scores: the tensor is the next batch's."""
        return np.array(self._scores.numpy()[:rows])


def _open_session(path: Path, device: Device, options: CudaOptions, *, channels_last: bool) -> ort.InferenceSession:
    """The whole model on the device: one node left to the CPU would copy its inputs and outputs with every batch."""
    if not options.tf32:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # cuDNN and cuBLAS obey it even where use_tf32 is ignored
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # our own errors say what failed
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider_options = {
        "device_id": str(device.id),
        # DEFAULT maps to a slow fallback since 1.20 (onnxruntime#22705); EXHAUSTIVE searches for seconds a shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
        # What tensor cores want: convolutions in float16 take 0.6 of the time, in TF32 0.9, in float32 1.3.
        "prefer_nhwc": str(int(channels_last)),
        "enable_cuda_graph": str(int(options.graphs == "on")),
        "arena_extend_strategy": "kSameAsRequested",  # several workers share a device
    }
    try:
        session = ort.InferenceSession(str(path), session_options, providers=[(CUDA, provider_options)])
    except Exception as exc:  # as in _try
        raise ProviderMissing(f"the model cannot run on CUDA alone: {str(exc).splitlines()[0]}") from exc
    if session.get_providers()[0] != CUDA:
        raise ProviderMissing(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _buckets(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... 1,024, from there on also the middles, 1,536, 2,048, 3,072, ..., and `most` itself last."""
    doubling = [1 << n for n in range((most - 1).bit_length())]
    middles = [rows * 3 // 2 for rows in doubling if rows >= _DOUBLING_TO and rows * 3 // 2 < most]
    return (*sorted(doubling + middles), most)
