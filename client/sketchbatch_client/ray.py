"""Classify the bitmaps of a Ray dataset: a callable class for `Dataset.map_batches`.

Flow: Ray creates one `SketchbatchScorer` per actor -> the actor's first batch opens a `Client` -> each batch is
returned with its scores. If an actor dies, Ray gives its batch to another actor; scoring has no side effects, so a
repetition is harmless. Only `score` imports Ray.
"""

from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import whole_number
from .drawings.bitmap_arrays import as_bitmaps
from .drawings.readers import Bitmaps
from .errors import RequestRefused
from .rpc.classification import Classification, ModelInfo, cut
from .rpc.client import Client

if TYPE_CHECKING:
    from ray.data import Dataset

Batch = dict[str, NDArray[Any]]
"""Columns by name, each with one entry per row, as `map_batches` passes them by default (batch_format="numpy")."""

_ACTOR_CPUS = 0.25  # an actor mostly waits for the service; with one CPU per actor, none would be left to read data


class SketchbatchScorer:
    """Add the columns label and score to batches; on request also label_2, score_2, ... or score_LABEL.

    Pickling keeps only the options, not the connection. The object is not thread-safe; Ray does not require that.

    Args:
        server: Target of `Client`.
        column: Column of bitmaps, as `Client.classify` accepts them: integers from 0 to 255, 0 = paper, 255 = ink, per
            row (28, 28), (784,), (28, 28, 1) or (1, 28, 28), or 784 bytes. The batch keeps this and all other columns.
        model: "" = the default model of the service.
        model_version: "" = the newest version at the actor's first batch; `score` uses one version for all actors.
        top_k: Number of best classes per row.
        all_scores: Also add the score of every class; `top_k` is then 1.
        client_options: Further arguments of `Client`.

    Raises:
        ValueError: `top_k` is not an integer, 0 or more.
    """

    def __init__(
        self,
        server: str,
        *,
        column: str = "bitmap",
        model: str = "",
        model_version: str = "",
        top_k: int = 1,
        all_scores: bool = False,
        **client_options: Any,
    ) -> None:
        self._server = server
        self._column = column
        self._model = model
        self._model_version = model_version
        self._top_k = 0 if all_scores else whole_number("top_k", top_k, 0)  # 0 = all scores
        self._client_options = client_options

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the columns of its scores; the argument is not changed.

        Raises:
            RequestRefused: The column is missing or holds no bitmaps, or a column of scores exists already.
            SketchbatchError: The service cannot respond.
        """
        scores = self._classified(_bitmaps(batch, self._column)).columns()
        if taken := [name for name in scores if name in batch]:
            raise RequestRefused(f"column {taken[0]!r} must not exist, because scores are written there: rename it")
        return {**batch, **scores}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_client", "_served")}

    @cached_property
    def _client(self) -> Client:
        return Client(self._server, **self._client_options)

    @cached_property
    def _served(self) -> ModelInfo:
        return self._client.model(self._model, self._model_version)

    def _classified(self, bitmaps: Bitmaps) -> Classification:
        if not len(bitmaps):  # a batch without rows gets the same columns as any other
            return next(cut(self._classified(np.zeros((1, 28, 28), np.uint8)), [0]))
        served = self._served
        return self._client.classify(bitmaps, top_k=self._top_k, model_name=served.name, model_version=served.version)


def score(
    dataset: "Dataset",
    server: str,
    *,
    actors: int | tuple[int, int] = 2,
    batch_rows: int = 4096,
    model: str = "",
    model_version: str = "",
    **options: Any,
) -> "Dataset":
    """Return the dataset with scores of one model version, even if a newer version is activated meanwhile.

    Args:
        dataset: Has a column of bitmaps.
        server: Target of `Client`, reachable from this process and from all actors.
        actors: Number of concurrent actors, or (minimum, maximum), between which Ray chooses by the amount of work.
        batch_rows: Rows per batch of an actor. 4,096 rows are four requests, which `Client` keeps in flight
            concurrently.
        model: "" = the default model of the service.
        model_version: "" = the newest version.
        options: Further arguments of `SketchbatchScorer`.

    Raises:
        ValueError: An argument is invalid.
        ModelNotFound: The service does not serve this model.
        SketchbatchError: The service cannot respond now; later errors are raised by Ray.
    """
    minimum, maximum = _actor_counts(actors)
    whole_number("batch_rows", batch_rows, 1)
    scorer = SketchbatchScorer(server, model=model, model_version=model_version, **options)
    from ray.data import ActorPoolStrategy

    with closing(scorer._client):
        served = scorer._served
    return dataset.map_batches(
        SketchbatchScorer,
        fn_constructor_kwargs={"server": server, "model": served.name, "model_version": served.version, **options},
        compute=ActorPoolStrategy(min_size=minimum, max_size=maximum),
        batch_size=batch_rows,
        num_cpus=_ACTOR_CPUS,
    )


def _actor_counts(actors: int | tuple[int, int]) -> tuple[int, int]:
    """Return the lowest and the highest number of actors; raise ValueError if they are no such numbers."""
    if not isinstance(actors, tuple):
        actors = (actors, actors)
    if len(actors) != 2:
        raise ValueError(f"actors must be a number or (minimum, maximum), got {actors!r}")
    minimum = whole_number("actors", actors[0], 1)
    return minimum, whole_number("actors", actors[1], minimum)


def _bitmaps(batch: Batch, column: str) -> Bitmaps:
    if column not in batch:
        raise RequestRefused(f"column {column!r} must exist and hold bitmaps, got the columns {', '.join(batch)}")
    values = batch[column]
    try:
        bitmaps = as_bitmaps(values, f"column {column!r}")
    except ValueError as exc:
        raise RequestRefused(str(exc)) from exc
    if len(bitmaps) != len(values):  # the whole column has the shape of one bitmap
        got = f"{values.dtype} {values.shape[1:]}"
        raise RequestRefused(f"column {column!r} must be uint8 (28, 28) or (784,) per row, got {got}")
    return bitmaps
