"""Provide request ids and deadlines to the RPCs, and end RPCs with an error status."""

import itertools
import math
import time
import uuid
from typing import NoReturn

import grpc

from ..transport.interface import Context, Trailers, UnaryCall
from ..transport.status import code_of, to_status, to_trailers
from .request_log import log_rejection

_PROCESS = uuid.uuid4().hex[:16]
_numbers = itertools.count(1)


def new_request_id() -> str:
    """Return an id for a request that has none; it is unique in this process, and almost certainly everywhere."""
    return f"{_PROCESS}-{next(_numbers):x}"


def expiry(context: Context) -> float:
    """Return the deadline of the call in `time.monotonic` seconds; infinity if it has none."""
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else time.monotonic() + remaining_s


async def abort(context: Context, error: Exception, request_id: str = "") -> NoReturn:
    """Log `error`, and end the call with the status, details and trailers of `error`."""
    await context.abort(*_rejection(error, request_id))


def abort_call(call: UnaryCall, error: Exception, request_id: str) -> None:
    """Log `error`, and end a call that runs on the thread pool, as `abort` does."""
    call.abort(*_rejection(error, request_id))


def _rejection(error: Exception, request_id: str) -> tuple[grpc.StatusCode, str, Trailers]:
    log_rejection(error, request_id)
    status = to_status(error, request_id)
    return code_of(error), status.message, to_trailers(error, status)
