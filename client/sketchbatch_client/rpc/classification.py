"""Decode responses into `ModelInfo` and `Classification`; split and join classifications by rows."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from sketchbatch.rejection import Rejection, RejectionThreshold
from sketchbatch.v1 import classifier_pb2 as pb

from ..errors import ServerFailed

if TYPE_CHECKING:
    import pandas as pd


class ModelKey(NamedTuple):
    """The model file that computed a response; the digest is empty if the service is too old to return it."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" + (f" (SHA-256 {self.digest})" if self.digest else "")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as the service describes it."""

    name: str
    version: str
    versions: tuple[str, ...]
    """All served versions of this name, newest first."""
    is_default: bool
    labels: tuple[str, ...]
    max_request_rows: int
    provider: str
    digest: str
    """SHA-256 of the model file, in hex; of a list of files if the model has external data (see `Model.digest`)."""
    metrics: dict[str, Any]
    """Metrics that were measured after the training and stored in the model file; None = not a finite number."""
    created: str
    licence: str
    score_kind: str = ""
    """What the scores of a row are: probabilities, log-probabilities, independent or logits, as `Model.score_kind` of
    the protos describes; "" = unknown, because the service is older than this field."""
    training_digests: bytes = field(default=b"", repr=False)
    """Sample of the digests of the training drawings, as `Model.training_digests` of the protos describes; empty if the
    model file has none, or if the model was requested without them."""
    rejection: Rejection | None = None
    """Thresholds below which a drawing probably shows none of the classes: `rejection.at(0.95).score` keeps 95 % of
    the drawings of the model's classes. None = the model file stores none, or the service is older than this field."""


@dataclass(frozen=True, slots=True, repr=False)
class Classification:
    """The predicted classes of some rows and their scores, in the order in which the rows were passed to the client.

    The service may replace its model during a call of several requests. Each row then has the label of the model file
    that scored it: `labels` contains the class names of all these files.
    """

    model_name: str
    model_version: str
    """The version that scored the first row."""
    labels: tuple[str, ...]
    """The class names of the model; `class_index` contains positions in this tuple."""
    class_index: NDArray[np.int64]
    """(rows, k), best first; k = top_k, or 1 if all scores were requested."""
    score: NDArray[np.float32]
    """(rows, k), the score of each `class_index`; `ModelInfo.score_kind` has the range."""
    scores: NDArray[np.float32] | None
    """(rows, classes), or None if only the top k were requested. A file gives 0 to classes that it does not have."""
    digests: tuple[str, ...] = ()
    """`ModelInfo.digest` of each model file that scored rows, without repetition: usually one. Empty if the service is
    too old to return it."""
    queue_us: int = 0
    """Microseconds from the arrival of the request at the service to the start of its first model call. The longest
    time if the rows were sent in several requests."""
    inference_us: int = 0
    """Duration of the model calls of the request, in microseconds, which may include rows of other requests. The
    longest duration if the rows were sent in several requests."""
    index: Any = None
    """The index of the pandas series that was classified, for `to_pandas`; None if it was no such series."""

    def __len__(self) -> int:
        return len(self.class_index)

    @property
    def label(self) -> NDArray[np.str_]:
        """The name of the best class of each row: (rows,)."""
        return np.array(self.labels)[self.class_index[:, 0]]

    def finite_rows(self) -> NDArray[np.bool_]:
        """Return whether all scores of a row are finite: (rows,). A row with NaN or infinity has no best class."""
        scores = self.score if self.scores is None else self.scores
        finite: NDArray[np.bool_] = np.all(np.isfinite(scores), axis=1)
        return finite

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return columns of shape (rows,), named as in the files of `sketchbatch score`.

        The columns are label and score; for top_k > 1 also label_2, score_2, ...; for all scores score_LABEL per class.
        """
        names = np.array(self.labels)
        columns: dict[str, NDArray[Any]] = {}
        for place in range(self.class_index.shape[1]):
            suffix = f"_{place + 1}" if place else ""
            columns[f"label{suffix}"] = names[self.class_index[:, place]]
            columns[f"score{suffix}"] = self.score[:, place]
        if self.scores is not None:
            columns |= {f"score_{label}": self.scores[:, index] for index, label in enumerate(self.labels)}
        return columns

    def to_pandas(self, index: Any = None) -> "pd.DataFrame":
        """Return `columns` as a data frame, which `DataFrame.join` joins with the data frame of the drawings.

        Args:
            index: One entry per row; None = the index of the series that was classified, or else 0, 1, 2, ...

        Raises:
            ImportError: pandas is not installed.
            ValueError: `index` does not have one entry per row.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise ImportError(
                "to_pandas needs pandas: pip install 'sketchbatch-client[pandas]', or in a checkout "
                f".tools/bin/uv pip install --python {sys.executable} pandas"
            ) from exc
        return pd.DataFrame(self.columns(), index=self.index if index is None else index)

    def __repr__(self) -> str:
        shown = [f"{label} {score:.3f}" for label, score in zip(self.label[:3], self.score[:3, 0], strict=True)]
        more = ["..."] if len(self) > 3 else []
        model = f"{self.model_name} version {self.model_version}"
        return f"<Classification of {len(self)} rows by {model}: {', '.join(shown + more)}>"


def model_info(model: pb.Model) -> ModelInfo:
    """Convert a `Model` message, whose fields have the same names as those of `ModelInfo`."""
    values = {each.name: getattr(model, each.name) for each in fields(ModelInfo)}
    lists = {"versions": tuple(model.versions), "labels": tuple(model.labels)}
    return ModelInfo(**values | lists | {"metrics": _metrics(model.metrics), "rejection": _rejection(model)})


def _rejection(model: pb.Model) -> Rejection | None:
    if not model.HasField("rejection"):
        return None
    stored = model.rejection
    thresholds = tuple(
        RejectionThreshold(each.coverage, each.score, each.accuracy, each.unknown_rejected)
        for each in stored.thresholds
    )
    return Rejection(stored.rows, stored.unknown_rows, stored.auroc, thresholds)


def _metrics(stored: struct_pb2.Struct) -> dict[str, Any]:
    """Convert the metrics of a model; a number that JSON does not have becomes None."""
    metrics = struct_pb2.Struct()
    metrics.CopyFrom(stored)
    for value in metrics.fields.values():
        _clear_non_finite(value)
    return MessageToDict(metrics)


def _clear_non_finite(value: struct_pb2.Value) -> None:
    """Replace each number in `value` that is not finite by null."""
    kind = value.WhichOneof("kind")
    if kind == "number_value" and not math.isfinite(value.number_value):
        value.null_value = struct_pb2.NULL_VALUE
    elif kind == "list_value":
        for each in value.list_value.values:
            _clear_non_finite(each)
    elif kind == "struct_value":
        for each in value.struct_value.fields.values():
            _clear_non_finite(each)


def decode(response: pb.ClassifyResponse, labels: tuple[str, ...]) -> Classification:
    """Decode the response to one request; `labels` are those of the model that computed the scores."""
    if all_scores := response.scores:  # read once: each access copies the bytes
        scores = np.frombuffer(all_scores, "<f4").reshape(response.rows, len(labels))
        class_index = scores.argmax(axis=1)[:, None]
        score = scores.max(axis=1)[:, None]
    else:
        scores = None
        class_index = np.array(response.class_index, np.int64).reshape(response.rows, -1)
        score = np.array(response.score, np.float32).reshape(response.rows, -1)
    digests = (response.digest,) if response.digest else ()
    return Classification(
        model_name=response.model_name,
        model_version=response.model_version,
        labels=labels,
        class_index=class_index,
        score=score,
        scores=scores,
        digests=digests,
        queue_us=response.queue_us,
        inference_us=response.inference_us,
    )


def cut(whole: Classification, sizes: Iterable[int]) -> Iterator[Classification]:
    """Split a classification into several, in order; `sizes` has the number of rows of each. No rows are copied."""
    start = 0
    for size in sizes:
        yield select(whole, slice(start, start + size))
        start += size


def select(whole: Classification, rows: NDArray[np.bool_] | slice) -> Classification:
    """Return the rows of a classification in a slice, or for which `rows` (rows,) is true, in order."""
    return Classification(  # `dataclasses.replace` takes twice the time, and this runs once per call of a busy client
        model_name=whole.model_name,
        model_version=whole.model_version,
        labels=whole.labels,
        class_index=whole.class_index[rows],
        score=whole.score[rows],
        scores=None if whole.scores is None else whole.scores[rows],
        digests=whole.digests,
        queue_us=whole.queue_us,
        inference_us=whole.inference_us,
        index=None if whole.index is None else whole.index[rows],
    )


def non_finite(model_name: str, model_version: str) -> str:
    """Return the reason why a row whose scores are NaN or infinite has no label."""
    return f"{model_name} version {model_version} returned scores that are not finite"


def check_finite(result: Classification, first_row: int = 0) -> Classification:
    """Return `result`, whose first row is row `first_row` of a call. Raises ServerFailed if a score is not finite."""
    scores = result.score if result.scores is None else result.scores
    if not math.isfinite(scores.sum()) and not (finite := result.finite_rows()).all():  # a sum can also overflow
        row = first_row + int(finite.argmin())
        raise ServerFailed(f"row {row}: {non_finite(result.model_name, result.model_version)} (NaN or infinity)")
    return result


def joined(parts: Sequence[Classification]) -> Classification:
    """Join one or more classifications into one; the rows keep their order and their labels."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if any(part.labels != first.labels for part in parts):
        labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
        parts = [_with_labels(part, labels) for part in parts]
    all_scores = [part.scores for part in parts if part.scores is not None]
    return replace(
        first,
        labels=parts[0].labels,
        class_index=np.concatenate([part.class_index for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        scores=np.concatenate(all_scores) if all_scores else None,
        digests=tuple(dict.fromkeys(digest for part in parts for digest in part.digests)),
        queue_us=max(part.queue_us for part in parts),
        inference_us=max(part.inference_us for part in parts),
        index=None,
    )


def _with_labels(part: Classification, labels: tuple[str, ...]) -> Classification:
    """Return the same result with `labels`, which contain all labels of `part`, in any order."""
    position = {label: index for index, label in enumerate(labels)}
    columns = np.array([position[label] for label in part.labels], np.int64)
    scores = None
    if part.scores is not None:
        scores = np.zeros((len(part), len(labels)), np.float32)
        scores[:, columns] = part.scores
    return replace(part, labels=labels, class_index=columns[part.class_index], scores=scores)
