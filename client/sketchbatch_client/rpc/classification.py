"""What comes back: a model as the service describes it, and the classes of a batch of drawings.

Decodes answers, cuts a shared one into its callers' rows, and joins those of a call that took several requests.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from sketchbatch.v1 import classifier_pb2 as pb

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True, slots=True, repr=False)
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

    def columns(self) -> dict[str, NDArray[Any]]:
        """Each (rows,), named as in the files of `sketchbatch score`.

        label and score, with top_k > 1 also label_2, score_2 and so on, with all scores also one score_LABEL a class.
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

    def to_pandas(self) -> "pd.DataFrame":
        """`columns` as a data frame. Raises ImportError: pandas is not installed."""
        try:
            import pandas as pd
        except ImportError as exc:
            raise ImportError("to_pandas needs pandas: pip install 'sketchbatch-client[pandas]'") from exc
        return pd.DataFrame(self.columns())

    def __repr__(self) -> str:
        shown = [f"{label} {score:.3f}" for label, score in zip(self.label[:3], self.score[:3, 0], strict=True)]
        more = ["..."] if len(self) > 3 else []
        model = f"{self.model_name} version {self.model_version}"
        return f"<Classification of {len(self)} rows by {model}: {', '.join(shown + more)}>"


def model_info(model: pb.Model) -> ModelInfo:
    """Without what only the connection needs to know."""
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


def decoded(response: pb.ClassifyResponse, labels: tuple[str, ...]) -> Classification:
    """The answer to one request; `labels` are those of the model that gave it."""
    if all_scores := response.scores:  # once: each look makes a copy
        scores = np.frombuffer(all_scores, "<f4").reshape(response.rows, len(labels))
        class_index = scores.argmax(axis=1)[:, None]
        score = scores.max(axis=1)[:, None]
    else:
        scores = None
        class_index = np.array(response.class_index, np.int64).reshape(response.rows, -1)
        score = np.array(response.score, np.float32).reshape(response.rows, -1)
    return Classification(response.model_name, response.model_version, labels, class_index, score, scores)


def cut(answer: Classification, sizes: Iterable[int]) -> Iterator[Classification]:
    """The answer's rows in parts of those sizes, in order; views, not copies."""
    scores = answer.scores
    start = 0
    for rows in sizes:
        stop = start + rows
        yield Classification(
            answer.model_name,
            answer.model_version,
            answer.labels,
            answer.class_index[start:stop],
            answer.score[start:stop],
            None if scores is None else scores[start:stop],
        )
        start = stop


def joined(parts: Sequence[Classification]) -> Classification:
    """The rows of all parts, of which there is at least one, in order."""
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
