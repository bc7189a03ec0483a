"""Keeps count of one call's attempts: the time left, the wait before the next, or the error that it ends in.

This is the one place where gRPC's status codes become `errors`.
"""

import time

import grpc

from ... import errors
from .aimd_limit import Window
from .retry_policy import NO_SERVER, RetryPolicy

_ERRORS: dict[grpc.StatusCode, type[errors.SketchbatchError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.RequestRefused,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
}


class Attempts:
    """One call's attempts, each at every server there is, all within `timeout_s`; the call makes them and waits.

    Args:
        retry: How patiently.
        target: Who is asked, for the error.
        timeout_s: From now on.
        has_answered: Whether a server ever has.
        window: What is to shrink when the servers are full.
    """

    def __init__(
        self, retry: RetryPolicy, target: str, timeout_s: float, *, has_answered: bool, window: Window | None = None
    ) -> None:
        self.give_up_at = time.monotonic() + timeout_s
        self._retry = retry
        self._target = target
        self._timeout_s = timeout_s
        self._has_answered = has_answered
        self._window = window
        self._failed = 0

    def remaining_s(self) -> float:
        """Seconds left; 0 when the time is up."""
        return max(0.0, self.give_up_at - time.monotonic())

    def delay_s(self, error: Exception) -> float | None:
        """Seconds to wait after an attempt failed with `error`; None = do not try again."""
        self._failed += 1
        delay_s = self._retry.delay_s(error, self._failed) if isinstance(error, grpc.RpcError) else None
        if delay_s is None or not self._is_patient(error) or delay_s >= self.remaining_s():
            return None
        if self._window and _is_full(error):
            self._window.shrink(delay_s)
        return delay_s

    def failure(self, error: grpc.RpcError) -> errors.SketchbatchError:
        """What the caller is told when the last attempt failed with `error`."""
        code, details = error.code(), error.details()
        if code in NO_SERVER:
            return errors.Unavailable(f"no answer from {self._target} in {self._failed} attempts: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.out_of_time()
        if code in _ERRORS:
            return _ERRORS[code](details)
        return errors.ServerFailed(f"{self._target} answered {code.name}: {details}")

    def out_of_time(self) -> errors.DeadlineExceeded:
        """What the caller is told when the time is up."""
        return errors.DeadlineExceeded(f"no answer from {self._target} in {self._timeout_s:g} s")

    def _is_patient(self, error: Exception) -> bool:
        """A full server is asked until the time is up; for one that does not answer, patience depends on its past."""
        if _is_full(error) or self._failed < self._retry.max_attempts:
            return True
        waited_s = self._timeout_s - self.remaining_s()
        return self._has_answered and waited_s < self._retry.patience_s


def _is_full(error: Exception) -> bool:
    return isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
