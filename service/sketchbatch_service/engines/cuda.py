"""Run one model file on one CUDA device, in fixed batch sizes with CUDA graphs; copy a batch while another computes.

Flow: a thread calls `predict` -> the pinned host buffer of a free buffer set -> its buffer on the device -> the one
dispatcher thread runs the model -> scores back on the host. While the batch of one buffer set computes, another set is
filled. `open_on_cuda` chooses the session and compares the scores with the CPU's before a model serves. The module
knows neither gRPC nor the batcher. Reasons and measurements: docs/decisions/0010-the-cuda-engine.md.
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

BATCH_ROWS = 4096  # default limit of rows per call: 2 ms on an H200, a fourth more rows/s than 1,024 (docs/gpu.md)
_DOUBLING_TO = 1024  # rows up to which bucket sizes double: calls take at most 0.5 ms, so padding costs little


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """How to run a model on CUDA."""

    device: int = 0  # taken modulo the number of devices, so that numbered workers use all devices
    graphs: Literal["auto", "on", "off"] = "auto"  # CUDA graphs: `auto` captures them if possible, `on` always
    tf32: bool = False  # multiply float32 in TF32 (10 bits of mantissa): faster, and as coarse as float16
    slots: int = 2  # concurrent batches: one computes while the next is copied; a third would only wait


def open_on_cuda(path: Path, reference: Reference, *, max_batch_rows: int, options: CudaOptions) -> "CudaEngine":
    """Load the model at `path` and warm it up; `reference` is the same model on the CPU.

    If `max_batch_rows` is 0, the limit is `BATCH_ROWS`.

    Raises:
        ModelRefused: The model fails on bitmaps, on the CPU too.
        ProviderMissing: CUDA or a device is missing, a node of the model does not run on CUDA, the model's scores
            differ from the CPU's, or graphs are `on` and cannot be captured.
    """
    Device.cuda(options.device)  # raises before a model is loaded
    if options.graphs == "auto":
        with ExitStack() as stack:
            try:
                return _open(path, reference, max_batch_rows, replace(options, graphs="on"), stack)
            except ProviderMissing as exc:
                log.warning("no CUDA graphs for this model", model=str(path), cause=str(exc))
            # Free the failed session now: if its CUDA stream is still capturing, the calls of other models would fail.
            gc.collect()
    with ExitStack() as stack:
        return _open(path, reference, max_batch_rows, options, stack)


def _open(
    path: Path, reference: Reference, max_batch_rows: int, options: CudaOptions, stack: ExitStack
) -> "CudaEngine":
    """Open an engine with graphs `on` or `off`. With graphs, `stack` then holds the capture lock until it is closed."""
    device = Device.cuda(options.device)
    is_coarse = options.tf32 or reference.variant == "float16"
    session = _open_session(path, device, options, channels_last=is_coarse)
    engine = CudaEngine(session, device, reference, max_batch_rows=max_batch_rows, options=options)
    if engine.has_graphs:
        stack.enter_context(CAPTURES.capture())
    engine.warm_up()
    log.info("on CUDA", model=str(path), tf32=options.tf32, **engine.description())
    return engine


class CudaEngine:
    """One model on one device; `slots` threads may call `predict` concurrently, further threads wait for a buffer set.

    One dispatcher thread makes every model call: ONNX Runtime ties a captured graph to the thread that captured it, and
    the device would run a second call after the first anyway. On the device "cpu" the same code runs without a GPU.
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
        self.slots = options.slots  # concurrent calls of `predict`
        self.buckets = _bucket_sizes(max_batch_rows or BATCH_ROWS)  # computed sizes; a batch is padded to the next
        self.batch_rows = self.buckets[-1]  # most rows in one call
        self.min_split_rows = self.batch_rows  # splitting saves no time: the device runs one call at a time
        self.quick_rows = 0  # the CPU is idle during any call, and can poll
        self.polls_while_saturated = True  # the CPU is idle while the device computes
        self._settings = session.get_provider_options().get(CUDA, {})
        self.has_graphs = self._settings.get("enable_cuda_graph") == "1"
        self.tolerance = reference.tolerance(tf32=options.tf32)  # largest allowed difference from the CPU's scores
        self.largest_difference = 0.0  # from the CPU's scores, found by `warm_up`
        self._session = session
        self._device = device
        self._reference = reference
        self._dispatcher = ThreadPoolExecutor(1, thread_name_prefix=f"{device.name}-{device.id}")
        self._buffer_sets = [_BufferSet(device, self._make_buckets(number)) for number in range(options.slots)]
        self._free: SimpleQueue[_BufferSet] = SimpleQueue()
        for buffer_set in self._buffer_sets:
            self._free.put(buffer_set)

    def warm_up(self) -> None:
        """Run all buckets of all buffer sets to capture their graphs; then compare their scores with those of the CPU.

        ONNX Runtime replays the graph of an id, whatever buffers are bound: a mixed-up id would return the scores of
        another batch without an error. So all graphs are captured before the first comparison, which uses other
        drawings. No other thread of the process may use CUDA while graphs are captured: see `Captures`.

        Raises:
            ModelRefused: The model fails on bitmaps, or its scores do not have the shape (rows, classes).
            ProviderMissing: The model fails on this device only, or its scores differ from the CPU's.
        """
        # By ascending rows, to change the batch size rarely: cuDNN chooses its algorithms again after each change.
        pairs = sorted(
            ((buffer_set, bucket) for buffer_set in self._buffer_sets for bucket in buffer_set.buckets),
            key=lambda pair: pair[1].rows,
        )
        drawings = random_drawings(self.batch_rows + len(pairs))
        expected = self._reference.scores(drawings)
        for buffer_set, bucket in pairs:
            self._try(buffer_set, bucket, drawings[: bucket.rows])
        for start, (buffer_set, bucket) in enumerate(pairs, 1):
            scores = self._try(buffer_set, bucket, drawings[start : start + bucket.rows])
            self._compare(scores, expected[start : start + bucket.rows])

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Return float32 (rows, classes) for uint8 (rows, 28, 28), 1 <= rows <= `batch_rows`, in the same order."""
        buffer_set = self._free.get()
        try:
            with CAPTURES.call():
                bucket = buffer_set.fill(bitmaps)
                self._dispatcher.submit(bucket.run, self._session).result()
                return bucket.scores_of(len(bitmaps))
        finally:
            self._free.put(buffer_set)

    def description(self) -> dict[str, object]:
        """Return the properties of the engine that the log shows to an operator."""
        return {
            "device_id": self._device.id,
            "buckets": list(self.buckets),
            "cuda_graphs": self.has_graphs,
            "channels_last": self._settings.get("prefer_nhwc") == "1",
            "largest_difference": self.largest_difference,
            "tolerance": self.tolerance,
        }

    def _make_buckets(self, set_number: int) -> list["_Bucket"]:
        """Create the buckets of one buffer set, each with its own graph id."""
        first_id = 1 + set_number * len(self.buckets)
        return [
            _Bucket(self._session, self._device, self._reference, rows, graph_id if self.has_graphs else None)
            for graph_id, rows in enumerate(self.buckets, first_id)
        ]

    def _try(self, buffer_set: "_BufferSet", bucket: "_Bucket", drawings: Bitmaps) -> Scores:
        buffer_set.fill(drawings)
        try:
            self._dispatcher.submit(bucket.run, self._session).result()
        except Exception as exc:  # ONNX Runtime's exceptions have no public base class
            raise ProviderMissing(f"the model fails on {bucket.rows} rows: {str(exc).splitlines()[0]}") from exc
        return bucket.scores_of(bucket.rows)

    def _compare(self, scores: Scores, expected: Scores) -> None:
        difference = float(np.abs(scores - expected).max())
        self.largest_difference = max(self.largest_difference, difference)
        if not difference <= self.tolerance:  # `not <=` is also true for NaN
            raise ProviderMissing(
                f"scores of {len(scores)} rows may differ from the CPU's by {self.tolerance:g}, got {difference:.2g}"
            )


class _BufferSet:
    """The buffers of one execution slot: one pinned buffer on the host, and two per bucket on the device."""

    def __init__(self, device: Device, buckets: list["_Bucket"]) -> None:
        self.buckets = buckets  # by ascending rows
        self._device = device
        self._host = device.host_rows(buckets[-1].rows)

    def fill(self, bitmaps: Bitmaps) -> "_Bucket":
        """Copy `bitmaps` to the device, into the smallest bucket that holds them, and return the bucket.

        The bucket's remaining rows keep their previous content: `scores_of` cuts off their scores.
        """
        self._device.enter_thread()
        rows = len(bitmaps)
        bucket = next(bucket for bucket in self.buckets if bucket.rows >= rows)
        self._host[:rows] = bitmaps
        bucket.bitmaps.update_inplace(self._host[: bucket.rows])  # returns after the copy
        return bucket


class _Bucket:
    """One bucket of one buffer set: tensors at constant addresses, bound once, and the graph captured on them."""

    def __init__(
        self, session: ort.InferenceSession, device: Device, reference: Reference, rows: int, graph_id: int | None
    ) -> None:
        self.rows = rows
        self.bitmaps = device.tensor((rows, *ROW_SHAPE), np.uint8)
        self._scores = device.tensor((rows, reference.classes), np.float32)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(reference.names.input, self.bitmaps)
        self._binding.bind_ortvalue_output(reference.names.scores, self._scores)
        self._options: ort.RunOptions | None = None  # None: options without a graph id would cost 35 us per call
        if graph_id is not None:
            self._options = ort.RunOptions()
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, session: ort.InferenceSession) -> None:
        """Compute the scores, on the dispatcher thread only; the first run captures the graph, later runs replay it."""
        session.run_with_iobinding(self._binding, self._options)

    def scores_of(self, rows: int) -> Scores:
        """Return a copy of the first `rows` scores: the next batch overwrites the tensor."""
        return np.array(self._scores.numpy()[:rows])


def _open_session(path: Path, device: Device, options: CudaOptions, *, channels_last: bool) -> ort.InferenceSession:
    """Load the whole model on the device: a node on the CPU would copy its inputs and outputs in every batch."""
    if not options.tf32:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # obeyed by cuDNN and cuBLAS even where use_tf32 is ignored
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # the exception already reports the cause
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider_options = {
        "device_id": str(device.id),
        # DEFAULT is a slow fallback since ONNX Runtime 1.20 (onnxruntime#22705). EXHAUSTIVE takes seconds per shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
        # Channels last suits tensor cores. It changes the time of convolutions by a factor: 0.6 in float16, 0.9 in
        # TF32, 1.3 in float32.
        "prefer_nhwc": str(int(channels_last)),
        "enable_cuda_graph": str(int(options.graphs == "on")),
        "arena_extend_strategy": "kSameAsRequested",  # no reserve: several workers may share a device
    }
    try:
        session = ort.InferenceSession(str(path), session_options, providers=[(CUDA, provider_options)])
    except Exception as exc:  # ONNX Runtime's exceptions have no public base class
        raise ProviderMissing(f"the model cannot run on CUDA alone: {str(exc).splitlines()[0]}") from exc
    if session.get_providers()[0] != CUDA:
        raise ProviderMissing(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _bucket_sizes(most: int) -> tuple[int, ...]:
    """Return the powers of two below `most`, above 1,024 also the middles between them (1,536, ...), and `most`."""
    doubling = [1 << n for n in range((most - 1).bit_length())]
    middles = [rows * 3 // 2 for rows in doubling if rows >= _DOUBLING_TO and rows * 3 // 2 < most]
    return (*sorted(doubling + middles), most)
