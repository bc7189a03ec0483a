"""What both clients, of threads and of asyncio, are made of, apart from waiting."""

from collections.abc import Callable
from typing import Any

from sketchbatch.v1 import classifier_pb2 as pb

from ..drawings.readers import Bitmaps
from ..errors import RequestRefused
from .attempts import Attempts
from .channels import Channels
from .classification import ModelInfo, model_info
from .coalescing import SHARED_ROWS, SMALL_ROWS, Lane
from .questions import Question, as_rows
from .retry import RetryPolicy


class Caller:
    """Where to ask, how patiently, and what is known of who answers.

    Args:
        target: host:port.
        timeout_s: Longest one request may take, retries included.
        rows_per_request: Rows in one RPC, fewer if the service allows fewer; hundreds make its cost small.
        in_flight: RPCs of one call under way at once.
        retry: When to try again.
        channels: Connections to spread RPCs over; None = one for each worker process of the service.
    """

    _open_channel: Callable[..., Any]

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 60.0,
        rows_per_request: int = 1024,
        in_flight: int = 4,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        channels: int | None = None,
    ) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._rows_per_request = rows_per_request
        self._in_flight = in_flight
        self._retry = retry
        self._channels = Channels(target, self._open_channel, channels)
        self._models: dict[tuple[str, str], ModelInfo] = {}  # by name and version as asked for, and as answered
        self._lanes: dict[Question, Lane] = {}
        self._get_ready()

    def _get_ready(self) -> None:
        """Makes what sends shared requests, in a way of its own for threads and for tasks."""

    def _attempts(self) -> Attempts:
        return Attempts(self._retry, self.target, self._timeout_s)

    def _noted(self, model: pb.Model) -> ModelInfo:
        """What a GetModel over the first connection has told."""
        self._channels.note(model)
        return model_info(model)

    def _rows_limit(self, model: ModelInfo) -> int:
        return min(self._rows_per_request, model.max_request_rows)

    def _lane(self, asked: Question, rows: int, rows_limit: int) -> Lane | None:
        """Where a call of so many rows may share requests; None = it is too large to."""
        if rows > min(SMALL_ROWS, rows_limit):
            return None
        lane = self._lanes.get(asked)
        return lane or self._lanes.setdefault(asked, Lane(min(SHARED_ROWS, rows_limit)))


def some_rows(bitmaps: Bitmaps) -> Bitmaps:
    """As `as_rows`, and there is one at least."""
    rows = as_rows(bitmaps)
    if not len(rows):
        raise RequestRefused("bitmaps must have at least 1 row, got 0")
    return rows
