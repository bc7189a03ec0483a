"""Log answered and rejected requests, and count rejections by the class of their error."""

import threading
from collections import Counter
from functools import cache
from typing import Any

import grpc
import structlog

from ..batching.row_queue import Answer
from ..errors import ScoresNotFinite, ServiceError
from ..transport.status import code_of

log = structlog.get_logger()

_rejections = Counter({each.__name__: 0 for each in ServiceError.__subclasses__()})
_counting = threading.Lock()


def log_answer(answer: Answer, *, model_name: str, request_id: str) -> None:
    """Log the rows and the times of an answered request at level `debug`."""
    _debug_log().debug(
        "request answered",
        request_id=request_id,
        model=model_name,
        rows=len(answer.scores),
        queue_s=answer.queue_s,
        inference_s=answer.inference_s,
    )


def log_rejection(error: Exception, request_id: str) -> None:
    """Count `error`; log a fault of the service at level `error` with its cause, other rejections at `debug`."""
    code = code_of(error)
    with _counting:
        _rejections[type(error).__name__ if isinstance(error, ServiceError) else "other"] += 1
    if code is grpc.StatusCode.INTERNAL:
        cause = {"reason": str(error)} if isinstance(error, ScoresNotFinite) else {"exc_info": error}
        log.error("request failed", request_id=request_id, code=code.name, **cause)
    else:
        _debug_log().debug("request rejected", request_id=request_id, code=code.name, reason=str(error))


def rejections() -> dict[str, int]:
    """Return how many requests, and messages of streams, ended in an error, by the class of the error."""
    with _counting:
        return dict(_rejections)


@cache
def _debug_log() -> Any:
    """Return the log without structlog's lazy proxy, which costs a microsecond per event, written or not."""
    return log.bind()
