"""Serve scores that a test chooses, as an older service or another server might: not finite, or of any kind."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
from numpy.typing import NDArray
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

LABELS = ("bear", "cat", "dog")


def row_norm(bitmaps: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return scores as of a model that divides each drawing by its norm: NaN for a blank drawing, (rows, 3)."""
    scores = np.full((len(bitmaps), len(LABELS)), 0.25, np.float32)
    scores[np.arange(len(bitmaps)), bitmaps[:, 0] % len(LABELS)] = 0.5
    scores[~bitmaps.any(axis=1)] = np.nan
    return scores


class StandInServicer(classifier_pb2_grpc.ClassifierServiceServicer):
    """Answer with the scores that `score` computes from bitmaps, uint8 (rows, 784); the first label is the first class.

    `requests` lists the number of rows of each request.
    """

    def __init__(
        self,
        score: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        labels: Sequence[str],
        score_kind: str,
        metrics: dict[str, float],
    ) -> None:
        self._score = score
        self.requests: list[int] = []
        self._model = pb.Model(
            name="m",
            version="1",
            versions=["1"],
            labels=labels,
            max_request_rows=16384,
            digest="d",
            provider="CPUExecutionProvider",
            score_kind=score_kind,
            workers=1,
            worker=1,
        )
        self._model.metrics.update(metrics)

    def replace(
        self,
        score: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        labels: Sequence[str],
        *,
        digest: str,
        max_request_rows: int = 16384,
    ) -> None:
        """Replace the model file, as a model update does."""
        self._score = score
        self._model.labels[:] = labels
        self._model.digest = digest
        self._model.max_request_rows = max_request_rows

    def Classify(self, request, context):  # noqa: N802
        bitmaps = np.frombuffer(request.bitmaps, np.uint8).reshape(-1, 784)
        self.requests.append(len(bitmaps))
        if len(bitmaps) > self._model.max_request_rows:
            message = f"bitmaps must be 1..{self._model.max_request_rows} rows, got {len(bitmaps)} rows"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        scores = self._score(bitmaps)
        response = pb.ClassifyResponse(model_name="m", model_version="1", rows=len(scores), digest=self._model.digest)
        if request.top_k:
            best = np.argsort(-scores, axis=1, kind="stable")[:, : request.top_k]
            response.class_index.extend(best.ravel().tolist())
            response.score.extend(np.take_along_axis(scores, best, axis=1).ravel().tolist())
        else:
            response.scores = scores.astype("<f4").tobytes()
        return response

    def GetModel(self, request, context):  # noqa: N802
        return pb.GetModelResponse(model=self._model)

    def ListModels(self, request, context):  # noqa: N802
        return pb.ListModelsResponse(models=[self._model])


@contextmanager
def stand_in_service(
    score: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = row_norm,
    *,
    labels: Sequence[str] = LABELS,
    score_kind: str = "",
    metrics: dict[str, float] | None = None,
) -> Iterator[tuple[str, StandInServicer]]:
    """Start a server; yield its address and its servicer."""
    servicer = StandInServicer(score, labels, score_kind, metrics or {})
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_send_message_length", -1)])
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()
