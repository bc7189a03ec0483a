"""Calls the service: batches of bitmaps in, `Classification`s out, in order.

A call is cut into requests of `rows_per_request`, of which `in_flight` are under way at once; each is tried again as
`RetryPolicy` says, until `timeout_s` has passed.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub

from . import errors
from .readers import Bitmaps
from .retry import RetryPolicy

_ERRORS: dict[grpc.StatusCode, type[errors.SketchbatchError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.RequestRefused,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
}

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as the service describes it."""

    name: str
    version: str
    versions: tuple[str, ...]
    """Every version of this name being served, newest first."""
    is_default: bool
    labels: tuple[str, ...]
    max_request_rows: int
    provider: str
    digest: str
    """SHA-256 of the model file, in hex."""
    metrics: dict[str, Any]
    """As measured when it was trained."""
    created: str
    licence: str


@dataclass(frozen=True, slots=True)
class Classification:
    """The classes of a batch of drawings, row for row in the order sent."""

    model_name: str
    model_version: str
    labels: tuple[str, ...]
    """The model's class names; `class_index` points into them."""
    class_index: NDArray[np.int64]
    """(rows, k), best first; k = top_k, or 1 when all scores were asked for."""
    score: NDArray[np.float32]
    """(rows, k), the score of each `class_index`, 0 to 1."""
    scores: NDArray[np.float32] | None
    """(rows, classes), or None when only the top k were asked for."""

    def __len__(self) -> int:
        return len(self.class_index)

    @property
    def label(self) -> NDArray[np.str_]:
        """The best class name of each row: (rows,)."""
        return np.array(self.labels)[self.class_index[:, 0]]


class Client:
    """A connection to a service; safe to share between threads. Close it, or use it as a context manager.

    Args:
        target: host:port.
        timeout_s: Longest one request may take, retries included.
        rows_per_request: Rows in one RPC, fewer if the service allows fewer; hundreds make its cost small.
        in_flight: RPCs under way at once.
        retry: When to try again.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 60.0,
        rows_per_request: int = 1024,
        in_flight: int = 4,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._rows_per_request = rows_per_request
        self._in_flight = in_flight
        self._retry = retry
        self._channel = grpc.insecure_channel(target, options=_channel_options(target))
        self._stub = ClassifierServiceStub(self._channel)
        self._labels: dict[tuple[str, str], tuple[str, ...]] = {}  # by model name and version
        self._limits: dict[tuple[str, str], int] = {}  # likewise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connection; requests under way fail."""
        self._channel.close()

    def classify(
        self, bitmaps: Bitmaps, *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Classification:
        """Classifies any number of bitmaps.

        Args:
            bitmaps: uint8, (rows, 28, 28) or (rows, 784), or one bitmap of (28, 28); 0 = paper, 255 = ink.
            top_k: How many of the best classes to return; 0 = the scores of all.
            model_name: "" = the service's default.
            model_version: "" = the newest.

        Raises:
            RequestRefused: The bitmaps are none, or of another type or shape; or `top_k` is too large.
            SketchbatchError: As `errors` says, when the service cannot answer.
        """
        rows = _as_rows(bitmaps)
        if not len(rows):
            raise errors.RequestRefused("bitmaps must have at least 1 row, got 0")
        parts = self.score([rows], top_k=top_k, model_name=model_name, model_version=model_version)
        return _joined(list(parts))

    def score(
        self, batches: Iterable[Bitmaps], *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Iterator[Classification]:
        """Classifies a stream of batches of any size in constant memory; arguments and errors as `classify`.

        Yields one `Classification` for each request of up to `rows_per_request` rows, in order.
        """
        options = {"top_k": top_k, "model_name": model_name, "model_version": model_version}
        rows_per_request = min(self._rows_per_request, self._max_request_rows(model_name, model_version))
        under_way: deque[Future[Classification]] = deque()
        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="sketchbatch")
        try:
            for batch in batches:
                rows = _as_rows(batch)
                for start in range(0, len(rows), rows_per_request):
                    if len(under_way) == self._in_flight:
                        yield under_way.popleft().result()
                    part = rows[start : start + rows_per_request]
                    under_way.append(pool.submit(self._classify_once, part, options))
            while under_way:
                yield under_way.popleft().result()
        finally:  # after an error, or when the caller stops early: nothing more is sent, nothing waited for
            pool.shutdown(wait=False, cancel_futures=True)

    def models(self) -> list[ModelInfo]:
        """Every model and version being served, the default first."""
        response = self._call(self._stub.ListModels, pb.ListModelsRequest())
        return [_model_info(model) for model in response.models]

    def model(self, name: str = "", version: str = "") -> ModelInfo:
        """One model; "" = the default, or the newest version. Raises `ModelNotFound`."""
        request = pb.GetModelRequest(model_name=name, model_version=version)
        return _model_info(self._call(self._stub.GetModel, request).model)

    def health(self, service: str = "") -> str:
        """What grpc.health.v1 says: SERVING, NOT_SERVING or SERVICE_UNKNOWN; "" = the server as a whole."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        try:
            response = self._call(
                health_pb2_grpc.HealthStub(self._channel).Check, health_pb2.HealthCheckRequest(service=service)
            )
        except errors.ModelNotFound:  # the health protocol's NOT_FOUND
            return "SERVICE_UNKNOWN"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def _classify_once(self, bitmaps: Bitmaps, options: dict[str, Any]) -> Classification:
        """One request of (rows, 28, 28)."""
        response = self._call(self._stub.Classify, pb.ClassifyRequest(bitmaps=bitmaps.tobytes(), **options))
        labels = self._labels_of(response.model_name, response.model_version)
        if response.scores:
            scores = np.frombuffer(response.scores, "<f4").reshape(response.rows, len(labels))
            class_index = scores.argmax(axis=1)[:, None]
            score = np.take_along_axis(scores, class_index, axis=1)
        else:
            scores = None
            class_index = np.array(response.class_index, np.int64).reshape(response.rows, -1)
            score = np.array(response.score, np.float32).reshape(response.rows, -1)
        return Classification(response.model_name, response.model_version, labels, class_index, score, scores)

    def _max_request_rows(self, name: str, version: str) -> int:
        """Asked for once for each model."""
        if (name, version) not in self._limits:
            self._limits[name, version] = self.model(name, version).max_request_rows
        return self._limits[name, version]

    def _labels_of(self, name: str, version: str) -> tuple[str, ...]:
        """Asked for once for each version that answers."""
        if (name, version) not in self._labels:
            self._labels[name, version] = self.model(name, version).labels
        return self._labels[name, version]

    def _call(self, rpc: Callable[..., Answer], request: object) -> Answer:
        """One RPC with its retries, all within `timeout_s`."""
        give_up_at = time.monotonic() + self._timeout_s
        attempt = 1
        while True:
            try:
                return rpc(request, timeout=max(0.0, give_up_at - time.monotonic()))
            except grpc.RpcError as exc:
                delay_s = self._retry.delay_s(exc, attempt)
                if delay_s is None or time.monotonic() + delay_s >= give_up_at:
                    raise self._translated(exc, attempt) from exc
            time.sleep(delay_s)
            attempt += 1

    def _translated(self, error: grpc.RpcError, attempts: int) -> errors.SketchbatchError:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable(f"no answer from {self.target} in {attempts} attempts: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(f"no answer from {self.target} in {self._timeout_s:g} s")
        if code in _ERRORS:
            return _ERRORS[code](details)
        return errors.ServerFailed(f"{self.target} answered {code.name}: {details}")


def _channel_options(target: str) -> list[tuple[str, int]]:
    options = [("grpc.max_receive_message_length", -1)]  # all scores of a large request exceed the default 4 MiB
    if target.startswith(("localhost:", "127.", "[::1]:")):
        options.append(("grpc.enable_http_proxy", 0))  # an office's https_proxy knows no way back to this machine
    return options


def _as_rows(bitmaps: Bitmaps) -> Bitmaps:
    """Checks type and shape; a view of (rows, 28, 28)."""
    bitmaps = np.asanyarray(bitmaps)
    if bitmaps.dtype == np.uint8:
        if bitmaps.shape == (28, 28):
            return bitmaps[None]
        if bitmaps.shape[1:] in ((28, 28), (784,)):
            return bitmaps.reshape(-1, 28, 28)
    raise errors.RequestRefused(
        f"bitmaps must be uint8 (rows, 28, 28) or (rows, 784), got {bitmaps.dtype} {bitmaps.shape}"
    )


def _joined(parts: list[Classification]) -> Classification:
    first = parts[0]
    if len(parts) == 1:
        return first
    all_scores = [part.scores for part in parts if part.scores is not None]
    return Classification(
        first.model_name,
        first.model_version,
        first.labels,
        np.concatenate([part.class_index for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate(all_scores) if all_scores else None,
    )


def _model_info(model: pb.Model) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        version=model.version,
        versions=tuple(model.versions),
        is_default=model.is_default,
        labels=tuple(model.labels),
        max_request_rows=model.max_request_rows,
        provider=model.provider,
        digest=model.digest,
        metrics=MessageToDict(model.metrics),
        created=model.created,
        licence=model.licence,
    )
