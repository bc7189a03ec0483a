"""What an RPC does besides its work: knows its deadline, ends in a status, and logs what was refused."""

import itertools
import math
import threading
import time
import uuid
from collections import Counter
from functools import cache
from typing import Any, NoReturn

import grpc
import structlog

from ..batching.row_queue import Answer
from ..errors import ServiceError
from ..transport.interface import UnaryCall
from ..transport.status import code_of, to_status, to_trailers

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
"""In fact a `grpc_calls.AsyncCall`, which does what we ask of one."""

_refusals = Counter({each.__name__: 0 for each in ServiceError.__subclasses__()})

_refusing = threading.Lock()  # guards it

_PROCESS = uuid.uuid4().hex[:16]
_numbers = itertools.count(1)


def new_request_id() -> str:
    """An id for a request that brought none: unlike any other of this process, and hardly like one of another."""
    return f"{_PROCESS}-{next(_numbers):x}"


def expiry(context: Context) -> float:
    """The call's deadline in `time.monotonic` seconds; infinite without one."""
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else time.monotonic() + remaining_s


async def abort(context: Context, error: Exception, request_id: str) -> NoReturn:
    """Ends the call with the status of `error`, its details and its trailers."""
    log_rejection(error, request_id)
    status = to_status(error, request_id)
    await context.abort(code_of(error), status.message, to_trailers(error, status))


def abort_call(call: UnaryCall, error: Exception, request_id: str) -> None:
    """Likewise, of a direct call."""
    log_rejection(error, request_id)
    status = to_status(error, request_id)
    call.abort(code_of(error), status.message, to_trailers(error, status))


def log_rejection(error: Exception, request_id: str) -> None:
    """Writes what broke as an error, what the caller did or must wait for at `debug`; counts both."""
    code = code_of(error)
    with _refusing:
        _refusals[type(error).__name__ if isinstance(error, ServiceError) else "other"] += 1
    if code is grpc.StatusCode.INTERNAL:
        log.error("request failed", request_id=request_id, code=code.name, exc_info=error)
    else:
        _bound_log().debug("request refused", request_id=request_id, code=code.name, reason=str(error))


def rejections() -> dict[str, int]:
    """Requests, and messages of streams, of this process that ended in an error, by the error's class."""
    with _refusing:
        return dict(_refusals)


def log_answer(answer: Answer, *, model_name: str, request_id: str) -> None:
    """Writes what was answered, and its timings, at `debug`."""
    _bound_log().debug(
        "request answered",
        request_id=request_id,
        model=model_name,
        rows=len(answer.scores),
        queue_s=answer.queue_s,
        inference_s=answer.inference_s,
    )


@cache
def _bound_log() -> Any:
    """The log without its proxy, which costs a microsecond at each event, also those that are not written."""
    return log.bind()
