"""Decides whether and when a failed RPC is tried again; does no waiting itself.

Only what is safe and may help: UNAVAILABLE (no server, or one that drains), CANCELLED (not by us: a server that stops
answers so what reaches it in that moment), and RESOURCE_EXHAUSTED when the server says when to come back.
RESOURCE_EXHAUSTED without that means the message was too large, and will be next time.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import grpc

NO_SERVER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What says that no answer will come; to ask again is safe, since asking changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patiently to try again; the request's deadline bounds it all."""

    max_attempts: int = 5
    """Most attempts, each at every server, while no server answers and none ever has: the address may be wrong."""

    patience_s: float = math.inf
    """Longest to go on while no server answers, once one has: a restart takes its time."""

    first_backoff_s: float = 0.15
    """Longest wait after the first time that no server answered, and at least half of it; doubles each time."""

    max_backoff_s: float = 5.0
    """Longest wait between two attempts while no server answers."""

    def delay_s(self, error: grpc.RpcError, failed: int) -> float | None:
        """Seconds to wait after `error`, the last of `failed` in a row; None = it would be the same again.

        No two clients that failed at once come back at once.
        """
        code: grpc.StatusCode = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            advice_s = _pushback_s(error)
            return advice_s and advice_s * random.uniform(1, 1.5)  # noqa: S311 - jitter, not a secret
        if code in NO_SERVER:
            backoff_s = min(self.first_backoff_s * 2.0 ** min(failed - 1, 99), self.max_backoff_s)
            return backoff_s * random.uniform(0.5, 1)  # noqa: S311 - as above
        return None


def _pushback_s(error: grpc.RpcError) -> float | None:
    """The server's own advice, from its trailer in milliseconds; None without one, or if it is negative."""
    pairs: Any = error.trailing_metadata() or ()  # of two kinds: grpc's and grpc.aio's
    advice = str(dict(pairs).get("grpc-retry-pushback-ms", ""))
    return int(advice) / 1000 if advice.isdecimal() else None
