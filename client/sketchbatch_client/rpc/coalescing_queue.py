"""Decide which concurrent small calls share a request, and when to send it. This module neither sends nor waits.

A call that finds no request in flight is sent at once, in a request of its own. Other calls wait in the
`CoalescingQueue` of their request key until a response arrives; all waiting calls are then sent together. So no call
waits while the client is idle, and a shared request grows with the number of concurrent calls. A call that has waited
for `MAX_WAIT_S` bypasses the requests in flight (docs/decisions/0011).

A sender runs in a thread or task of its own, so a cancelled call interrupts no other call. If a shared request fails,
each of its calls is retried alone and raises only the errors of its own rows.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..drawings.readers import Bitmaps
from .classification import Classification, cut

SMALL_ROWS = 16  # most rows of a call that may share a request; a larger call is worth a request of its own
SHARED_ROWS = 64  # most rows of a shared request; the service treats requests of up to 64 rows as small
MAX_WAIT_S = 0.02  # longest wait before a call bypasses the requests in flight, which usually take some 2 ms
MAX_IN_FLIGHT = 2  # requests of one queue in flight: the service computes one while it reads the next


@dataclass(slots=True, eq=False)
class PendingCall:
    """The rows of one call that wait for a shared request."""

    bitmaps: Bitmaps
    deadline: float  # time.monotonic seconds
    notify: Callable[[], object]  # called once, from any thread, after `result` was set
    result: Classification | Exception | None = None
    is_cancelled: bool = False  # set when the caller stops waiting: the rows are not sent, or their response is dropped

    def settle(self, result: Classification | Exception) -> None:
        self.result = result
        self.notify()


class CoalescingQueue:
    """Collects the waiting small calls with one request key, and counts their requests in flight. Thread-safe.

    If `end_alone`, `add` or `bypass` returns True, the caller must start a sender. A sender calls `take` and sends
    until `take` returns no call. If the sender cannot do so, `abandon` must be called once instead.
    """

    def __init__(self, shared_rows: int) -> None:
        self._shared_rows = shared_rows
        self._lock = threading.Lock()
        self._waiting: deque[PendingCall] = deque()
        self._in_flight = 0

    def begin_alone(self) -> bool:
        """Return True if no request is in flight: the call then sends its own request, then calls `end_alone`."""
        with self._lock:
            if self._in_flight:
                return False
            self._in_flight += 1
            return True

    def end_alone(self) -> bool:
        """End the request that `begin_alone` allowed; return True if waiting calls need a sender."""
        with self._lock:
            if not self._waiting:
                self._in_flight -= 1
            return bool(self._waiting)

    def add(self, call: PendingCall) -> bool:
        """Append a call; return True if one more request may be sent, for which the caller must start a sender."""
        with self._lock:
            self._waiting.append(call)
            if self._in_flight >= MAX_IN_FLIGHT:
                return False
            self._in_flight += 1
            return True

    def bypass(self, call: PendingCall) -> bool:
        """Return True if `call` still waits: after `MAX_WAIT_S` it needs a sender regardless of `MAX_IN_FLIGHT`."""
        with self._lock:
            if call not in self._waiting:
                return False
            self._in_flight += 1
            return True

    def take(self) -> list[PendingCall]:
        """Return the calls of the next shared request in order of arrival; an empty list ends the sender."""
        with self._lock:
            taken: list[PendingCall] = []
            free_rows = self._shared_rows
            while self._waiting and len(self._waiting[0].bitmaps) <= free_rows:
                call = self._waiting.popleft()
                if not call.is_cancelled:
                    taken.append(call)
                    free_rows -= len(call.bitmaps)
            if not taken:
                self._in_flight -= 1
            return taken

    def abandon(self, error: Exception) -> None:
        """End a sender that has failed: settle every waiting call with `error`.

        The calls must not wait for another sender, because there may be none. Each of them is retried alone.
        """
        with self._lock:
            self._in_flight -= 1
            calls = [call for call in self._waiting if not call.is_cancelled]
            self._waiting.clear()
        fail(calls, error)


def distribute(response: Classification, calls: list[PendingCall]) -> None:
    """Settle each call with its own rows of a shared response."""
    for call, part in zip(calls, cut(response, [len(call.bitmaps) for call in calls]), strict=True):
        call.settle(part)


def fail(calls: list[PendingCall], error: Exception) -> None:
    """Settle each call that has no result yet with the error of a shared request."""
    for call in calls:
        if call.result is None:
            call.settle(error)
