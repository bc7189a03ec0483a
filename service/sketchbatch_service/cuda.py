"""Runs one model file on one CUDA device: fixed batch sizes, captured as CUDA graphs, copies beside the computing.

Flow: `predict`, on any of `lanes` threads at once -> the lane's pinned host buffer -> its buffer on the device -> the
engine's one dispatcher thread runs the model -> scores back to the host. While one lane's batch computes, the other
fills its buffers. `open_on_cuda` chooses the session; nothing is served that was not compared with the CPU first.
Must not know gRPC, nor the batcher. What it rests on: docs/decisions/0010-the-cuda-engine.md.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from .arrays import ROW_SHAPE, Bitmaps, Scores
from .cuda_device import CUDA, Device
from .errors import ModelRefused, ProviderMissing

log = structlog.get_logger()

Graphs = Literal["auto", "on", "off"]

LANES = 2
"""One batch computes while the next is copied; a third would only wait."""

FLOAT32_TOLERANCE = 1e-3
"""Most that a score may differ from the CPU's where the model computes in float32: sums in another order, no more."""

COARSE_TOLERANCE = 1e-2
"""The same for float16 (docs/decisions/0006-int8-on-the-cpu.md), TF32, and files that do not say what they are."""

_REFERENCE_ROWS = 256
"""Rows in one model call on the CPU while the device is compared with it: bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """How to run on CUDA."""

    device_id: int = 0
    """Which of the devices visible; see `cuda_device.device_of_worker`."""

    graphs: Graphs = "auto"
    """CUDA graphs: `auto` captures them where that is possible, `on` refuses a model where it is not; `off`."""

    tf32: bool = False
    """Let float32 models multiply in TF32 (10 bits of mantissa): faster, and as coarse as float16."""


def open_on_cuda(
    path: Path, reference: ort.InferenceSession, *, classes: int, max_batch_rows: int, options: CudaOptions
) -> "CudaEngine":
    """Loads the model at `path` and warms it up.

    Args:
        path: The .onnx file.
        reference: The same file on the CPU, to compare with.
        classes: Columns of its scores.
        max_batch_rows: Most rows in one call of `predict`.
        options: The device, and how to compute on it.

    Raises:
        ModelRefused: The model breaks on bitmaps, on the CPU too.
        ProviderMissing: CUDA, or a device, is missing; the whole model does not run there; it scores other than the
            CPU; or graphs are `on` and cannot be captured.
    """
    device = Device.cuda(options.device_id)
    attempts = {"auto": [True, False], "on": [True], "off": [False]}[options.graphs]
    for graphs in attempts:
        try:
            engine = CudaEngine(
                _open_session(path, options, graphs=graphs),
                device,
                classes=classes,
                max_batch_rows=max_batch_rows,
                reference=reference,
                tolerance=_tolerance(reference, options),
            )
            engine.warm_up()
        except ProviderMissing as exc:
            if graphs == attempts[-1]:
                raise
            log.warning("no CUDA graphs for this model", model=str(path), cause=str(exc))
        else:
            break
    log.info("on CUDA", model=str(path), tf32=options.tf32, **engine.description())
    return engine


class CudaEngine:
    """One model on one device. `predict` may be called from `lanes` threads at a time; one more waits for a lane.

    One dispatcher thread makes every model call: ONNX Runtime keeps a captured graph with the thread that captured it,
    and a second call on the same device would only queue behind the first. The device "cpu" runs the same code, copies
    and bindings without a GPU.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        *,
        classes: int,
        max_batch_rows: int,
        reference: ort.InferenceSession,
        tolerance: float = COARSE_TOLERANCE,
        lanes: int = LANES,
    ) -> None:
        self.provider: str = session.get_providers()[0]
        self.lanes = lanes
        self.buckets = _powers_of_two(max_batch_rows)
        self.has_graphs = session.get_provider_options().get(CUDA, {}).get("enable_cuda_graph") == "1"
        self.largest_difference = 0.0
        """Largest difference of any score from the CPU's in `warm_up`."""
        self._session = session
        self._device = device
        self._classes = classes
        self._reference = reference
        self._tolerance = tolerance
        self._dispatcher = ThreadPoolExecutor(1, thread_name_prefix=f"{device.name}-{device.id}")
        ids = range(1, 1 + lanes * len(self.buckets))  # a graph for each bucket of each lane
        self._lanes = [
            _Lane(device, [self._slot(rows, each) for rows, each in zip(self.buckets, ids[lane::lanes], strict=True)])
            for lane in range(lanes)
        ]
        self._free: SimpleQueue[_Lane] = SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)

    def warm_up(self) -> None:
        """Runs every bucket of every lane, which captures its graph, and then compares each with the CPU.

        ONNX Runtime replays what was captured under a graph's id whatever is bound: a mix-up would answer with another
        batch's scores and no error. So each is compared on drawings it has not seen, once all are captured. No other
        thread of this process may use CUDA meanwhile: a capture fails when one does.

        Raises:
            ModelRefused: The model breaks on bitmaps, or its scores are not one for each row and label.
            ProviderMissing: It breaks on this device only, or scores otherwise there.
        """
        slots = [(lane, slot) for lane in self._lanes for slot in lane.slots]
        drawings = random_drawings(self.buckets[-1] + len(slots))
        expected = self._expected(drawings)
        for lane, slot in slots:
            self._predict(lane, slot, drawings[: slot.rows])
        for start, (lane, slot) in enumerate(slots, 1):
            scores = self._predict(lane, slot, drawings[start : start + slot.rows])
            self._compare(scores, expected[start : start + slot.rows])

    def predict(self, bitmaps: Bitmaps) -> Scores:
        """Scores uint8 (rows, 28, 28), 1 <= rows <= `max_batch_rows`: float32 (rows, classes), same order."""
        lane = self._free.get()
        try:
            slot = lane.fill(bitmaps)
            self._dispatcher.submit(slot.run, self._session).result()
            return slot.scores_of(len(bitmaps))
        finally:
            self._free.put(lane)

    def description(self) -> dict[str, object]:
        """What an operator may want to know, for the log."""
        return {
            "device_id": self._device.id,
            "buckets": list(self.buckets),
            "cuda_graphs": self.has_graphs,
            "largest_difference": self.largest_difference,
            "tolerance": self._tolerance,
        }

    def _slot(self, rows: int, graph_id: int) -> "_Slot":
        return _Slot(self._session, self._device, rows, self._classes, graph_id if self.has_graphs else None)

    def _expected(self, drawings: Bitmaps) -> Scores:
        """What the CPU says of `drawings`."""
        parts = []
        for start in range(0, len(drawings), _REFERENCE_ROWS):
            part = drawings[start : start + _REFERENCE_ROWS]
            try:
                scores = self._reference.run(["scores"], {"bitmaps": part})[0]
            except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
                raise ModelRefused(f"the model breaks on {len(part)} rows: {str(exc).splitlines()[0]}") from exc
            if scores.shape != (len(part), self._classes):
                raise ModelRefused(
                    f"scores of {len(part)} rows must be {(len(part), self._classes)}, got {scores.shape}"
                )
            parts.append(scores)
        return np.concatenate(parts)

    def _predict(self, lane: "_Lane", slot: "_Slot", drawings: Bitmaps) -> Scores:
        lane.fill(drawings)
        try:
            self._dispatcher.submit(slot.run, self._session).result()
        except Exception as exc:  # as in _expected
            raise ProviderMissing(f"the model breaks on {slot.rows} rows: {str(exc).splitlines()[0]}") from exc
        return slot.scores_of(slot.rows)

    def _compare(self, scores: Scores, expected: Scores) -> None:
        difference = float(np.abs(scores - expected).max())
        self.largest_difference = max(self.largest_difference, difference)
        if not difference <= self._tolerance:  # also where it is not a number
            raise ProviderMissing(
                f"scores of {len(scores)} rows may differ from the CPU's by {self._tolerance:g}, got {difference:.2g}"
            )


class _Lane:
    """One caller's buffers: a pinned one on the host, and those of each bucket on the device."""

    def __init__(self, device: Device, slots: list["_Slot"]) -> None:
        self.slots = slots  # by rows, ascending
        self._device = device
        self._host = device.host_rows(slots[-1].rows)

    def fill(self, bitmaps: Bitmaps) -> "_Slot":
        """Copies `bitmaps` to the device, into the smallest bucket that holds them.

        The bucket's other rows keep what they had: their scores are cut off.
        """
        self._device.enter_thread()
        rows = len(bitmaps)
        slot = next(slot for slot in self.slots if slot.rows >= rows)
        self._host[:rows] = bitmaps
        slot.bitmaps.update_inplace(self._host[: slot.rows])  # returns when the device has them
        return slot


class _Slot:
    """One bucket of one lane: its tensors at addresses that stay, bound once, and the graph captured over them."""

    def __init__(
        self, session: ort.InferenceSession, device: Device, rows: int, classes: int, graph_id: int | None
    ) -> None:
        self.rows = rows
        self.bitmaps = device.tensor((rows, *ROW_SHAPE), np.uint8)
        self._scores = device.tensor((rows, classes), np.float32)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("bitmaps", self.bitmaps)
        self._binding.bind_ortvalue_output("scores", self._scores)
        self._options: ort.RunOptions | None = None  # 35 us a call, to find that they name no graph
        if graph_id is not None:
            self._options = ort.RunOptions()
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, session: ort.InferenceSession) -> None:
        """Computes the scores; on the dispatcher thread only. The first run captures, each later one replays."""
        session.run_with_iobinding(self._binding, self._options)

    def scores_of(self, rows: int) -> Scores:
        """Copies out the first `rows` scores: the tensor is the next batch's."""
        return np.array(self._scores.numpy()[:rows])


def _open_session(path: Path, options: CudaOptions, *, graphs: bool) -> ort.InferenceSession:
    """The whole model on the device: one node left to the CPU would copy its inputs and outputs with every batch."""
    if not options.tf32:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # cuDNN and cuBLAS obey it even where use_tf32 is ignored
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # our own errors say what failed
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider_options = {
        "device_id": str(options.device_id),
        # DEFAULT maps to a slow fallback since 1.20 (onnxruntime#22705); EXHAUSTIVE searches for seconds a shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(graphs)),
        "arena_extend_strategy": "kSameAsRequested",  # several workers share a device
    }
    try:
        session = ort.InferenceSession(str(path), session_options, providers=[(CUDA, provider_options)])
    except Exception as exc:  # as in _expected
        raise ProviderMissing(f"the model cannot run on CUDA alone: {str(exc).splitlines()[0]}") from exc
    if session.get_providers()[0] != CUDA:
        raise ProviderMissing(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _tolerance(reference: ort.InferenceSession, options: CudaOptions) -> float:
    """What the file says of itself decides: only float32 is held to float32's."""
    metrics = json.loads(reference.get_modelmeta().custom_metadata_map.get("sketchbatch.metrics", "{}"))
    is_float32 = metrics.get("variant") == "float32"
    return FLOAT32_TOLERANCE if is_float32 and not options.tf32 else COARSE_TOLERANCE


def random_drawings(rows: int) -> Bitmaps:
    """Wandering lines, the same for the same number: unlike noise, they do not all get the same scores."""
    random = np.random.default_rng(rows)
    turns = random.normal(0, 0.4, (rows, 150)).cumsum(axis=1) + random.uniform(0, 2 * np.pi, (rows, 1))
    lengths = random.integers(20, 150, (rows, 1))
    steps = np.minimum(np.arange(150), lengths)  # a shorter line ends early, and stays there
    drawings = np.zeros((rows, *ROW_SHAPE), np.uint8)
    across, down = (
        np.take_along_axis(_within(random.uniform(8, 20, (rows, 1)) + wave(turns).cumsum(axis=1)), steps, axis=1)
        for wave in (np.cos, np.sin)
    )
    drawings[np.arange(rows)[:, None], down, across] = random.integers(128, 256, (rows, 1))
    return np.maximum(drawings, np.roll(drawings, 1, axis=2))  # two pixels wide


def _within(places: NDArray[np.float64]) -> NDArray[np.int_]:
    """Reflects at the bitmap's border: 0..27."""
    last = ROW_SHAPE[0] - 1
    return np.asarray(np.abs((places + last) % (2 * last) - last), int)


def _powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself last."""
    return (*(1 << n for n in range((most - 1).bit_length())), most)
