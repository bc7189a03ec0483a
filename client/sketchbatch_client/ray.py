"""Scores the bitmaps of a Ray dataset through the service: a callable class for `Dataset.map_batches`.

Flow: Ray makes one `SketchbatchScorer` in each actor -> its first batch opens its one `Client` -> batch in, batch out.
A batch whose actor dies is given to another: scoring changes nothing, so a second time is as good as the first.
Imports Ray only where `score` hands work to it.
"""

from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawings.readers import Bitmaps
from .errors import RequestRefused
from .rpc.classification import Classification, ModelInfo, cut
from .rpc.client import Client

if TYPE_CHECKING:
    from ray.data import Dataset

Batch = dict[str, NDArray[Any]]
"""Columns by name, each with one entry a row; what `map_batches` gives with batch_format="numpy", its default."""

_SHAPES = ((28, 28), (784,))
_BATCH_ROWS = 4096  # four requests under way at once, as `Client` sends them
_ACTOR_CPUS = 0.25  # an actor waits for the service most of the time; a whole core each would leave none to read with


class SketchbatchScorer:
    """Adds the columns label and score to batches; label_2, score_2 and so on, or score_LABEL, where asked for.

    Pickled, it is its options alone. Not for several threads at once, which Ray does not use.

    Args:
        server: As for `Client`.
        column: Where the bitmaps are: uint8 (rows, 28, 28) or (rows, 784), 0 = paper, 255 = ink; or bytes or lists of
            as many. Kept, as are all other columns.
        model: "" = the service's default.
        model_version: "" = the newest when this actor first asks; say which, or use `score`, so that all agree.
        top_k: How many of the best classes each row gets.
        all_scores: Give the score of every class, too; `top_k` is then 1.
        client_options: What else `Client` takes.
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
        self._top_k = 1 if all_scores else top_k
        self._with_all_scores = all_scores
        self._client_options = client_options

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the columns of its scores; the batch itself is left as it is.

        Raises:
            RequestRefused: There is no such column, it holds no bitmaps, or the batch has a column of a name we give.
            SketchbatchError: As `errors` says, when the service cannot answer.
        """
        scores = self._classified(_bitmaps(batch, self._column)).columns()
        if taken := [name for name in scores if name in batch]:
            raise RequestRefused(f"column {taken[0]!r}: expected no such column, since scores go there; rename it")
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
        if not len(bitmaps):  # no rows have the columns that rows would have
            return next(cut(self._classified(np.zeros((1, 28, 28), np.uint8)), [0]))
        return self._client.classify(
            bitmaps,
            top_k=0 if self._with_all_scores else self._top_k,
            model_name=self._served.name,
            model_version=self._served.version,
        )


def score(
    dataset: "Dataset",
    server: str,
    *,
    actors: int | tuple[int, int] = 2,
    batch_rows: int = _BATCH_ROWS,
    model: str = "",
    model_version: str = "",
    **options: Any,
) -> "Dataset":
    """The dataset with scores, by one version of the model throughout, also if a newer one is served meanwhile.

    Args:
        dataset: Has a column of bitmaps.
        server: host:port, as the actors reach it, and this process too.
        actors: How many score at once; (least, most) = as many as there is work for.
        batch_rows: Rows that an actor sends at a time.
        model: As for `SketchbatchScorer`.
        model_version: Likewise.
        options: What else `SketchbatchScorer` takes.

    Raises:
        ModelNotFound: The service has no such model.
        SketchbatchError: As `errors` says, when the service cannot answer now; later, Ray says so.
    """
    from ray.data import ActorPoolStrategy

    scorer = SketchbatchScorer(server, model=model, model_version=model_version, **options)
    with closing(scorer._client):
        served = scorer._served
    least, most = (actors, actors) if isinstance(actors, int) else actors
    return dataset.map_batches(
        SketchbatchScorer,
        fn_constructor_kwargs={"server": server, "model": served.name, "model_version": served.version, **options},
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        batch_size=batch_rows,
        num_cpus=_ACTOR_CPUS,
    )


def _bitmaps(batch: Batch, column: str) -> Bitmaps:
    if column not in batch:
        raise RequestRefused(f"column {column!r}: expected bitmaps, got no such column; there are {', '.join(batch)}")
    values = batch[column]
    parts = [values] if values.dtype != object else [_as_array(value)[None] for value in values]
    for part in parts:
        if part.dtype != np.uint8 or part.shape[1:] not in _SHAPES:
            got = "None" if part[0] is None else f"{part.dtype} {part.shape[1:]}"
            raise RequestRefused(
                f"column {column!r}: expected uint8 (28, 28) or (784,) in each row, or 784 bytes, got {got}"
            )
    return np.concatenate([np.empty((0, 28, 28), np.uint8), *(part.reshape(-1, 28, 28) for part in parts)])


def _as_array(value: object) -> NDArray[Any]:
    """A row that is bytes, a list, or a list of lists, as Ray gives them; of other things, what NumPy makes of them."""
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    array = np.asarray(value)
    lengths = set(map(len, array)) if array.ndim and array.dtype == object else ()
    return np.stack(list(array)) if len(lengths) == 1 else array
