"""ONNX Runtime called in process, without a server: the limit of the hardware.

Each raw peer uses all CPUs in a different way: one session with a thread per CPU (ONNX Runtime's default); one
single-threaded session per CPU; single-threaded sessions with large requests split into calls whose activations fit
into the caches of the CPU. Ratios refer to the fastest raw peer in each workload. One more peer is the limit of the
model: it always uses all CPUs with calls of 64 rows, whatever the workload.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnxruntime as ort
from callers import in_threads
from processes import cpus

from . import LIMIT_OF_MODEL, Bitmaps, Peer, Scores, Stop


class Raw:
    """`sessions` sessions of ONNX Runtime, each with `threads` threads and one caller; `call_rows` limits one call."""

    def __init__(self, model: str, _: Peer, *, sessions: int, threads: int, call_rows: int = 1024) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._call_rows = call_rows
        self._sessions = [ort.InferenceSession(model, options, providers=providers) for _ in range(sessions)]

    def classify(self, bitmaps: Bitmaps) -> Scores:
        return self._run(self._sessions[0], bitmaps)

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        calls = [partial(self._run, session) for session in self._sessions]
        return in_threads(calls, requests, min(in_flight, len(calls)), stop)

    def _run(self, session: ort.InferenceSession, bitmaps: Bitmaps) -> Scores:
        starts = range(0, len(bitmaps), self._call_rows)
        calls = [session.run(["scores"], {"bitmaps": bitmaps[at : at + self._call_rows]})[0] for at in starts]
        scores: Scores = calls[0] if len(calls) == 1 else np.concatenate(calls)
        return scores


class RawJoined(Raw):
    """`Raw` in calls of `call_rows` rows: smaller requests are joined, and all sessions are busy."""

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        each = max(1, self._call_rows // len(requests[0]))  # requests per call
        joined = [np.concatenate(requests[at : at + each]) for at in range(0, len(requests) - each + 1, each)]
        took_s = super().keep_in_flight(joined, len(self._sessions), stop)
        return [seconds for seconds in took_s for _ in range(each)]


_WORKLOADS = ("1024x4", "64x8", "1x32", "1x1")  # the mix needs a scheduler, which raw calls do not have

PEERS = (
    Peer(
        name="raw-default",
        about=f"ONNX Runtime in process, one session, {cpus()} threads, its defaults, called from one thread",
        connect=partial(Raw, sessions=1, threads=cpus()),
        workloads=_WORKLOADS,
    ),
    Peer(
        name="raw-per-cpu",
        about=f"ONNX Runtime in process, {cpus()} sessions of 1 thread, each called from a thread of its own",
        connect=partial(Raw, sessions=cpus(), threads=1),
        workloads=_WORKLOADS,
    ),
    Peer(
        name="raw-per-cpu-64",
        about="raw-per-cpu with requests of more than 64 rows split into calls of 64",
        connect=partial(Raw, sessions=cpus(), threads=1, call_rows=64),
        workloads=("1024x4",),  # in the other workloads, raw-per-cpu-64 equals raw-per-cpu
    ),
    Peer(
        name=LIMIT_OF_MODEL,
        about="raw-per-cpu in calls of 64 rows in every workload: smaller requests are joined, larger ones are split",
        connect=partial(RawJoined, sessions=cpus(), threads=1, call_rows=64),
        workloads=_WORKLOADS,
    ),
)
