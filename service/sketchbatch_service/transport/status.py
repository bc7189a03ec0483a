"""Translate the service's errors into gRPC statuses, by the table `_CODES`, and count the statuses of ended calls."""

import threading
from collections.abc import Iterator
from typing import Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from ..batching.statistics import Histogram
from ..errors import (
    DeadlinePassed,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ScoresNotFinite,
    ServiceError,
    ShuttingDown,
)

_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    InferenceFailed: grpc.StatusCode.INTERNAL,
    ScoresNotFinite: grpc.StatusCode.INTERNAL,
}

NUMBERS: dict[grpc.StatusCode, int] = {code: code.value[0] for code in grpc.StatusCode}
_BY_NUMBER = {number: code for code, number in NUMBERS.items()}

MISSING_REQUEST = (grpc.StatusCode.INVALID_ARGUMENT, "a request was expected, got none")
NO_SUCH_METHOD = (grpc.StatusCode.UNIMPLEMENTED, "no such method")
DRAINING = (grpc.StatusCode.UNAVAILABLE, "this replica is draining; another will answer")
CALLS_CANCELLED = grpc.StatusCode.UNAVAILABLE  # gRPC's status for the calls that a stopping server cancels
MESSAGE_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC's status for a message above the maximum size
HANDLER_FAILED = (grpc.StatusCode.UNKNOWN, "the handler failed")

_EARLY_SHARE, _EARLY_S = 0.05, 0.005
"""A client's deadline passes before the server's by up to this share of the timeout plus these seconds: gRPC rounds
`grpc-timeout` up by at most 1 %, and the server's timeout starts when the server reads the call. On two busy cores, 30
calls with 10 s arrived 0.3 s late."""


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of `error`; INTERNAL for an error that is not in the table."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)


def to_status(error: Exception, request_id: str) -> status_pb2.Status:
    """Return the google.rpc.Status of `error`.

    A status INTERNAL contains the request id. It also contains the text of our own errors, which names the model. The
    text of any other error is only logged.
    """
    code, text = code_of(error), str(error)
    if code is grpc.StatusCode.INTERNAL:
        text = text if isinstance(error, ServiceError) else "internal error"
        text = f"{text}, request id {request_id[:200]}"
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

    The client's deadline passes before the server's, and the client then cancels the call.
    """
    is_deadline = remaining_s < _EARLY_SHARE * timeout_s + _EARLY_S
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_deadline else grpc.StatusCode.CANCELLED


class Endable(Protocol):
    """A call that ends once: `is_over` is set by the first of several events that could end it."""

    is_over: bool


class CallEnds:
    """Count the ended calls of a server by method and status, with their times in seconds. It is thread-safe.

    A time starts when the server receives the call, and ends when its response or error is handed to gRPC.
    """

    def __init__(self) -> None:
        self.begun = 0  # calls
        self.are_calls_cancelled = False  # set before a stopping server cancels its open calls
        self.rejected = StatusCounts(self)  # of calls that reached no method
        self._methods: dict[str, StatusCounts] = {}

    def of_method(self, path: str) -> "StatusCounts":
        """Return the counts of a method, by the path of its calls; a second call returns the same object."""
        return self._methods.setdefault(path, StatusCounts(self))

    @property
    def open_calls(self) -> int:
        """The number of calls that have not ended."""
        return self.begun - sum(times.total().count for _, _, times in self.histograms())

    def histograms(self) -> Iterator[tuple[str, str, Histogram]]:
        """Yield method ("SERVICE/METHOD", or "none" if no method was reached), status, and the times of its calls."""
        named = [(path[1:], counts) for path, counts in list(self._methods.items())]
        for name, counts in [*named, ("none", self.rejected)]:
            for code, histogram in counts.histograms():
                yield name, code.name, histogram


class StatusCounts:
    """The ended calls of one method by status. All methods are thread-safe."""

    def __init__(self, server: CallEnds) -> None:
        self._server = server
        self._total: dict[int, Histogram] = {}  # until the last call of `histograms`; the values never change
        self._reading = threading.Lock()  # guards `_total`; only `histograms` takes it
        self._histograms: dict[int, Histogram] = {}  # since then
        self._lock = threading.Lock()  # guards `_histograms` and `Endable.is_over`; each call takes it

    def begin(self) -> None:
        """Count a call that begins; only one thread may call this method."""
        self._server.begun += 1

    def end(self, call: Endable) -> bool:
        """Mark `call` as over; return False if it was over before, and so must not be counted."""
        with self._lock:
            was_over, call.is_over = call.is_over, True
            return not was_over

    def add(self, number: int, seconds: float) -> None:
        """Count one ended call by the number of its status."""
        with self._lock:
            histogram = self._histograms.get(number)
            if histogram is None:
                histogram = self._histograms[number] = Histogram()
            histogram.add(seconds)

    def add_cancelled(self, seconds: float, *, remaining_s: float, timeout_s: float) -> None:
        """Count a call that ended before its status was sent: by the status that its client has received."""
        if self._server.are_calls_cancelled:
            status = CALLS_CANCELLED
        else:
            status = cancellation_status(remaining_s=remaining_s, timeout_s=timeout_s)
        self.add(NUMBERS[status], seconds)

    def histograms(self) -> list[tuple[grpc.StatusCode, Histogram]]:
        """Return the times by status, of each status with which a call has ended; later calls do not change them."""
        with self._reading:
            with self._lock:
                new, self._histograms = self._histograms, {}
            self._total |= {number: self._total.get(number, Histogram()) + times for number, times in new.items()}
            return [(_BY_NUMBER[number], times) for number, times in self._total.items()]


def _details(error: Exception) -> list[message.Message]:
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        seconds, ms = divmod(_retry_ms(error), 1000)
        delay = duration_pb2.Duration(seconds=seconds, nanos=ms * 1_000_000)
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    if isinstance(error, ModelNotFound) and error.newest_version:
        newest = {"newest_version": error.newest_version}
        return [error_details_pb2.ErrorInfo(reason="VERSION_NOT_SERVED", domain="sketchbatch.v1", metadata=newest)]
    return []


def _retry_ms(error: Overloaded) -> int:
    return max(1, round(error.retry_after_s * 1000))


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
