"""Decides whether and when a failed RPC is tried again; does no waiting itself.

Only what is safe and may help: UNAVAILABLE (no server, or one that drains), and RESOURCE_EXHAUSTED when the server
says when to come back. RESOURCE_EXHAUSTED without that means the message was too large, and will be next time.
"""

import random
from dataclasses import dataclass
from typing import Any

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patiently to try again; the request's deadline bounds it all."""

    max_attempts: int = 5
    """Most attempts while UNAVAILABLE; a full server may be asked until the deadline."""

    first_backoff_s: float = 0.1
    """Mean wait after the first UNAVAILABLE; doubles each time."""

    max_backoff_s: float = 5.0
    """Longest wait between two attempts while UNAVAILABLE."""

    def delay_s(self, error: grpc.RpcError, attempt: int) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) failed with `error`; None = give up."""
        code: grpc.StatusCode = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _pushback_s(error)
        if code is grpc.StatusCode.UNAVAILABLE and attempt < self.max_attempts:
            backoff_s = min(self.first_backoff_s * 2.0 ** (attempt - 1), self.max_backoff_s)
            return backoff_s * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
        return None


def _pushback_s(error: grpc.RpcError) -> float | None:
    """The server's own advice, from its trailer in milliseconds; None without one, or if it is negative."""
    pairs: Any = error.trailing_metadata() or ()  # of two kinds: grpc's and grpc.aio's
    advice = str(dict(pairs).get("grpc-retry-pushback-ms", ""))
    return int(advice) / 1000 if advice.isdecimal() else None
