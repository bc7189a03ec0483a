"""Decide whether and after which delay a failed RPC is retried. Never waits itself.

An RPC is retried if a repetition is safe and may succeed: after UNAVAILABLE (no server, or a draining server), after
CANCELLED that the client did not cause (a stopping server), and after RESOURCE_EXHAUSTED with a pushback (a full
server). RESOURCE_EXHAUSTED without a pushback means that the message is too large, so a retry would fail, too.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import grpc

from ...arguments import duration_s, whole_number

NO_RESPONSE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""Codes of an RPC without a response; a retry is safe because requests change nothing on the server."""

_PUSHBACK_DIGITS = 8
"""Most digits of a pushback in milliseconds, for about a day. A longer pushback counts as none, because a request
without a timeout would wait for its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long to retry a request; the timeout of the request ends all retries.

    Raises:
        ValueError: An argument is not a number or outside its range.
    """

    max_attempts: int = 5
    """Most attempts of a request while no server has ever responded to the client: the address may be wrong."""

    patience_s: float = math.inf
    """Longest time to retry while no server responds, if a server has responded before: a restart takes time."""

    first_backoff_s: float = 0.15
    """The delay after the first attempt without a response is random, from half of this time to all of it.

    The delay doubles after each further attempt.
    """

    max_backoff_s: float = 0.5
    """Longest delay between two attempts while no server responds. gRPC itself tries to connect once in 0.5 s, so an
    attempt of a request at a lone server that is down costs little."""

    def __post_init__(self) -> None:
        whole_number("max_attempts", self.max_attempts, 1)
        duration_s("patience_s", self.patience_s, allows_infinity=True)
        duration_s("first_backoff_s", self.first_backoff_s)
        duration_s("max_backoff_s", self.max_backoff_s)

    def delay_s(self, error: grpc.RpcError, failures: int) -> float | None:
        """Return the delay after `error`, the last of `failures` consecutive errors; None = do not retry.

        The delay has jitter, so that clients that failed at the same time do not retry at the same time.
        """
        code: grpc.StatusCode = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            pushback_s = _pushback_s(error)
            return pushback_s and pushback_s * random.uniform(1, 1.5)  # noqa: S311 - jitter, not a secret
        if code in NO_RESPONSE:
            backoff_s = min(self.first_backoff_s * 2.0 ** min(failures - 1, 99), self.max_backoff_s)
            return backoff_s * random.uniform(0.5, 1)  # noqa: S311 - jitter, not a secret
        return None


def has_no_response(error: Exception) -> bool:
    """Return whether `error` is that of an RPC without a response from a server."""
    return isinstance(error, grpc.RpcError) and error.code() in NO_RESPONSE


def is_unhealthy(error: grpc.RpcError) -> bool:
    """Return whether gRPC did not send an RPC because every server reports NOT_SERVING."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "backend unhealthy" in (error.details() or "")


def _pushback_s(error: grpc.RpcError) -> float | None:
    """Return the pushback from the server's trailer; None if it is absent, negative or too long to wait for."""
    pairs: Any = error.trailing_metadata() or ()  # the types of grpc and of grpc.aio differ
    pushback_ms = str(dict(pairs).get("grpc-retry-pushback-ms", ""))
    is_usable = pushback_ms.isdecimal() and len(pushback_ms) <= _PUSHBACK_DIGITS
    return int(pushback_ms) / 1000 if is_usable else None
