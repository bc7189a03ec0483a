"""Track the attempts of one request: the time left, the delay before a retry, or the error to raise.

Only this module translates gRPC status codes into `errors`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from ... import errors
from .aimd_limit import AimdLimit
from .retry_policy import NO_RESPONSE, RetryPolicy

_ERRORS: dict[grpc.StatusCode, type[errors.SketchbatchError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.RequestRefused,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
}


_STOPPED_S = 1.0
"""Time after the deadline from which a failure proves that this process was stopped: gRPC fails a call at its deadline.

Examples are a container that is paused, a laptop that sleeps, and an event loop that is blocked."""


@dataclass(slots=True)
class RetryState:
    """The failed attempts of one request, and the time left for more. One attempt may try several connections.

    If this process was stopped until after the deadline, no server had a chance to respond. The request then gets its
    whole timeout once more.
    """

    policy: RetryPolicy
    target: str  # named in the error
    timeout_s: float
    has_reached_server: bool  # whether a server has responded before
    limit: AimdLimit | None = None  # lowered when a server pushes back
    proxy: str = ""  # named in the error; see `proxy_of`
    without_port: str = ""  # named in the error; see `first_without_port`
    clock: Callable[[], float] = time.monotonic
    deadline: float = field(init=False)
    failures: int = field(default=0, init=False)
    tls_failure: str = field(default="", init=False)
    """The first details that report a failed TLS handshake. Another address of the same host name may report less."""

    def __post_init__(self) -> None:
        self.deadline = self.clock() + self.timeout_s

    def remaining_s(self) -> float:
        """Return the time left; 0 after the deadline."""
        return max(0.0, self.deadline - self.clock())

    def delay_s(self, error: Exception) -> float | None:
        """Count a failed attempt; return the delay before the next attempt, or None = do not retry."""
        self.failures += 1
        if not self.tls_failure and isinstance(error, grpc.RpcError) and _is_of_tls(error):
            self.tls_failure = error.details() or ""
        if self.renew_after_stop() and _has_code(error, grpc.StatusCode.DEADLINE_EXCEEDED):
            return 0.0
        delay_s = self.policy.delay_s(error, self.failures) if isinstance(error, grpc.RpcError) else None
        if delay_s is None or not self._may_retry(error) or delay_s >= self.remaining_s():
            return None
        if self.limit and _is_pushback(error):
            self.limit.decrease(delay_s)
        return delay_s

    def renew_after_stop(self) -> bool:
        """Renew the deadline if this process was stopped until after it; return whether it was."""
        now = self.clock()
        if now - self.deadline <= _STOPPED_S:
            return False
        self.deadline = now + self.timeout_s
        return True

    def failure(self, error: grpc.RpcError) -> errors.SketchbatchError:
        """Return the error to raise after the last attempt failed with `error`."""
        code, details = error.code(), error.details()
        if code in NO_RESPONSE:
            reason = f"{self.tls_failure or details}{self._hints()}"
            if not self.has_reached_server:
                reason += "; does the service run at this address?"
            return errors.Unavailable(f"no response from {self.target} in {self.failures} attempts: {reason}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.deadline_exceeded()
        if code in _ERRORS:
            return _ERRORS[code](details)
        return errors.ServerFailed(f"{self.target} returned {code.name}: {details}")

    def deadline_exceeded(self) -> errors.DeadlineExceeded:
        """Return the error to raise after the deadline."""
        return errors.DeadlineExceeded(f"no response from {self.target} in {self.timeout_s:g} s{self._hints()}")

    def _hints(self) -> str:
        hints = ""
        if "WRONG_VERSION_NUMBER" in self.tls_failure:  # OpenSSL reports an answer without TLS by this name
            hints += "; the server probably has no TLS: connect without it"
        if self.without_port:
            hints += f"; the port was 443, because {self.without_port} has no port; use HOST:PORT"
        if self.proxy:
            hints += f"; the request used the proxy in {self.proxy}; to connect directly, set no_proxy=HOST"
        return hints

    def _may_retry(self, error: Exception) -> bool:
        """Return True if the server is full; otherwise return whether `max_attempts` or `patience_s` allow a retry."""
        if _is_pushback(error) or self.failures < self.policy.max_attempts:
            return True
        waited_s = self.timeout_s - self.remaining_s()
        return self.has_reached_server and waited_s < self.policy.patience_s


def _is_of_tls(error: grpc.RpcError) -> bool:
    """Return whether the details of an error have one of the words with which gRPC reports a failed handshake."""
    return any(words in (error.details() or "") for words in ("handshake failed", "erification"))


def _is_pushback(error: Exception) -> bool:
    return _has_code(error, grpc.StatusCode.RESOURCE_EXHAUSTED)


def _has_code(error: Exception, code: grpc.StatusCode) -> bool:
    return isinstance(error, grpc.RpcError) and error.code() is code
