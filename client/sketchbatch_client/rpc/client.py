"""Calls the service from threads: batches of bitmaps in, `Classification`s out, in order."""

from collections.abc import AsyncGenerator, Iterable, Iterator

from ..drawings.readers import Bitmaps
from .blocking_backend import Threads, finished
from .classification import Classification, ModelInfo
from .request import question
from .row_client import RowsCaller


class Client(RowsCaller):
    """Connections to a service; safe to share between threads. Close it, or use it as a context manager.

    Takes what `Caller` takes.
    """

    _make_waits = Threads

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connections; requests under way fail."""
        finished(self._close())

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
        return finished(self._classify(bitmaps, question(top_k, model_name, model_version)))

    def score(
        self, batches: Iterable[Bitmaps], *, top_k: int = 0, model_name: str = "", model_version: str = ""
    ) -> Iterator[Classification]:
        """Classifies a stream of batches of any size in constant memory; arguments and errors as `classify`.

        Yields one `Classification` for each request of up to `rows_per_request` rows, in order.
        """
        parts = self._score(_each(batches), question(top_k, model_name, model_version))
        try:
            while True:
                try:
                    part = finished(anext(parts))
                except StopAsyncIteration:
                    return
                yield part
        finally:
            finished(parts.aclose())

    def models(self) -> list[ModelInfo]:
        """Every model and version being served, the default first."""
        return finished(self._list_models())

    def model(self, name: str = "", version: str = "") -> ModelInfo:
        """One model; "" = the default, or the newest version. Raises `ModelNotFound`."""
        return finished(self._get_model(name, version))

    def health(self, service: str = "") -> str:
        """What grpc.health.v1 says: SERVING (of several servers, one at least), NOT_SERVING or SERVICE_UNKNOWN.

        Args:
            service: "" = the server as a whole.
        """
        return finished(self._check_health(service))


async def _each(batches: Iterable[Bitmaps]) -> AsyncGenerator[Bitmaps, None]:
    for batch in batches:
        yield batch
