"""Translate the service's errors into gRPC statuses, by the table `_CODES`, and count the statuses of ended calls."""

import threading
from collections.abc import Iterable, Iterator
from typing import Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from ..errors import DeadlinePassed, InferenceFailed, InvalidRequest, ModelNotFound, Overloaded, ShuttingDown

_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    InferenceFailed: grpc.StatusCode.INTERNAL,
}

NUMBERS: dict[grpc.StatusCode, int] = {code: code.value[0] for code in grpc.StatusCode}

MISSING_REQUEST = (grpc.StatusCode.INVALID_ARGUMENT, "a request was expected, got none")
NO_SUCH_METHOD = (grpc.StatusCode.UNIMPLEMENTED, "no such method")
DRAINING = (grpc.StatusCode.UNAVAILABLE, "this replica is draining; another will answer")
HANDLER_FAILED = (grpc.StatusCode.UNKNOWN, "the handler failed")

_TRANSIT_S = 0.005  # approximate seconds from the start of a client's timeout to the start of the server's


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of `error`; INTERNAL for an error that is not in the table."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)


def to_status(error: Exception, request_id: str) -> status_pb2.Status:
    """Return the google.rpc.Status of `error`; INTERNAL carries the request id only, its cause is logged."""
    code = code_of(error)
    is_internal = code is grpc.StatusCode.INTERNAL
    text = f"internal error, request id {request_id[:200]}" if is_internal else str(error)
    return status_pb2.Status(code=code.value[0], message=text, details=[_packed(d) for d in _details(error)])


def to_trailers(error: Exception, status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata: the details, and the retry pushback that gRPC clients obey."""
    trailers: list[tuple[str, str | bytes]] = []
    if status.details:
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    if isinstance(error, Overloaded):
        trailers.append(("grpc-retry-pushback-ms", str(_retry_ms(error))))
    return tuple(trailers)


def invalid_message(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return status and details for a message that its method cannot parse."""
    return grpc.StatusCode.INVALID_ARGUMENT, f"the request is not the protobuf message of this method: {error}"


def cancellation_status(*, remaining_s: float, timeout_s: float) -> grpc.StatusCode:
    """Return CANCELLED, or DEADLINE_EXCEEDED for a call that was cancelled shortly before its deadline.

    The client's deadline passes before the server's: gRPC rounds the header `grpc-timeout` up by at most 1 %, and the
    server's timeout starts when the call arrives.
    """
    is_deadline = remaining_s < timeout_s / 100 + _TRANSIT_S
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_deadline else grpc.StatusCode.CANCELLED


class Endable(Protocol):
    """A call that is counted once: `is_over` is set when its first end is counted."""

    is_over: bool


class StatusCounts:
    """Count the ended calls of one method by status. All methods are thread-safe."""

    def __init__(self) -> None:
        self._counts = [0] * len(NUMBERS)
        self._lock = threading.Lock()

    def add(self, number: int, call: Endable | None = None) -> None:
        """Count one ended call by the number of its status; a `call` that is over already is not counted again."""
        with self._lock:
            if call:
                if call.is_over:
                    return
                call.is_over = True
            self._counts[number] += 1

    def counts(self) -> dict[str, int]:
        """Return the counts that are not zero, by status name."""
        return {code.name: count for code, number in NUMBERS.items() if (count := self._counts[number])}


def call_ends(counts: Iterable[tuple[str, StatusCounts]]) -> Iterator[tuple[str, str, int]]:
    """Yield method, status and number of ended calls, from the counts by method."""
    for name, of_method in counts:
        for code, count in of_method.counts().items():
            yield name, code, count


def _details(error: Exception) -> list[message.Message]:
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        seconds, ms = divmod(_retry_ms(error), 1000)
        delay = duration_pb2.Duration(seconds=seconds, nanos=ms * 1_000_000)
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    return []


def _retry_ms(error: Overloaded) -> int:
    return max(1, round(error.retry_after_s * 1000))


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
