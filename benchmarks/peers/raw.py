"""Raw ONNX Runtime, called in the process that has the drawings: what the hardware allows, no server at all.

Two ways to use all CPUs: ONNX Runtime's own (one session, a thread for each CPU), and one session of one thread for
each CPU, each with a caller of its own. Both are measured; the faster is what the others are held against.
"""

from collections.abc import Sequence
from functools import partial

import onnxruntime as ort
from callers import in_threads
from processes import cpus

from . import Bitmaps, Call, Peer, Scores, Stop


class Raw:
    """`sessions` sessions of `threads` threads, one caller each; a call has as many rows as the workload's requests."""

    def __init__(self, model: str, _: Call, *, sessions: int, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._sessions = [ort.InferenceSession(model, options, providers=providers) for _ in range(sessions)]

    def classify(self, bitmaps: Bitmaps) -> Scores:
        return _run(self._sessions[0], bitmaps)

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        calls = [partial(_run, session) for session in self._sessions]
        return in_threads(calls, requests, min(in_flight, len(calls)), stop)


def _run(session: ort.InferenceSession, bitmaps: Bitmaps) -> Scores:
    scores: Scores = session.run(["scores"], {"bitmaps": bitmaps})[0]
    return scores


_WORKLOADS = ("1024x4", "64x8", "1x32", "1x1")  # a mix needs somebody who shares out

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
)
