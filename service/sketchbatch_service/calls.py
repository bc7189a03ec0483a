"""What an RPC does besides its work: knows its deadline, ends in a status, and logs what was refused."""

import itertools
import math
import time
import uuid
from typing import Any, NoReturn

import grpc
import structlog

from .grpc_calls import DirectCall
from .status import code_of, to_status, to_trailers

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
"""In fact a `grpc_calls.AsyncCall`, which does what we ask of one."""


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
    log_refusal(error, request_id)
    status = to_status(error, request_id)
    await context.abort(code_of(error), status.message, to_trailers(error, status))


def refuse(call: DirectCall, error: Exception, request_id: str) -> None:
    """Likewise, of a direct call."""
    log_refusal(error, request_id)
    status = to_status(error, request_id)
    call.refuse(code_of(error), status.message, to_trailers(error, status))


def log_refusal(error: Exception, request_id: str) -> None:
    """Writes what broke as an error, what the caller did or must wait for at `debug`."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        log.error("request failed", request_id=request_id, code=code.name, exc_info=error)
    else:
        log.debug("request refused", request_id=request_id, code=code.name, reason=str(error))
