"""Decides which concurrent small calls share a request, and when it goes out; does no waiting and no sending itself.

A call that finds nobody under way goes at once, by itself. Others wait in a `Lane`, one for each question,
until a request comes back; all that wait then go together. So no call waits while the client is idle, and the more
ask, the more share a request. A call that has waited `HURRY_AFTER_S` goes all the same (docs/decisions/0011).

Whoever is told to send does so in a thread or task that is no caller's: a caller that leaves takes nobody with it.
A shared request that fails is nobody's answer: each of its callers asks again by itself, and hears of its own faults.
"""

import threading
from collections import deque
from collections.abc import Callable

from ..drawings.readers import Bitmaps
from .classification import Classification, cut

SMALL_ROWS = 16
"""Most rows of a call that may share a request; a larger one is worth a request of its own."""

SHARED_ROWS = 64
"""Most rows of a shared request: the service serves those of 64 rows as small ones."""

HURRY_AFTER_S = 0.02
"""Longest a call waits for a request under way before it goes beside it; a busy service answers some in 2 ms."""

AT_ONCE = 2
"""Requests of a lane under way at once: one is answered while the service reads the next."""


class Share:
    """One caller's rows in a shared request; `settle` is called once, from any thread, when they have an answer."""

    __slots__ = ("answer", "bitmaps", "error", "give_up_at", "has_left", "settle")

    def __init__(self, bitmaps: Bitmaps, give_up_at: float, settle: Callable[[], object]) -> None:
        self.bitmaps = bitmaps
        self.give_up_at = give_up_at  # time.monotonic seconds
        self.settle = settle
        self.answer: Classification | None = None
        self.error: Exception | None = None
        self.has_left = False
        """Set by a caller that waits no longer; its rows are not sent, or their answer is dropped."""


class Lane:
    """The calls that ask the same question. Thread-safe.

    Of its methods, those that return True tell the caller to have `take` called until it returns nothing, by a sender.
    """

    def __init__(self, shared_rows: int) -> None:
        self._shared_rows = shared_rows
        self._lock = threading.Lock()
        self._waiting: deque[Share] = deque()
        self._under_way = 0

    def go_alone(self) -> bool:
        """True if nobody is under way: the caller sends by itself, at once, and then calls `come_back`."""
        with self._lock:
            if self._under_way:
                return False
            self._under_way += 1
            return True

    def come_back(self) -> bool:
        """Ends what `go_alone` began; True = others have come meanwhile: send."""
        with self._lock:
            if not self._waiting:
                self._under_way -= 1
            return bool(self._waiting)

    def wait(self, share: Share) -> bool:
        """Lines up; True = there is room for another request: send."""
        with self._lock:
            self._waiting.append(share)
            if self._under_way >= AT_ONCE:
                return False
            self._under_way += 1
            return True

    def hurry(self, share: Share) -> bool:
        """For a share that has waited too long; True = it waits still: send, beside those under way."""
        with self._lock:
            if share not in self._waiting:
                return False
            self._under_way += 1
            return True

    def take(self) -> list[Share]:
        """The next to share a request, in order of arrival; none = the sender is done."""
        with self._lock:
            taken: list[Share] = []
            free = self._shared_rows
            while self._waiting and len(self._waiting[0].bitmaps) <= free:
                share = self._waiting.popleft()
                if not share.has_left:
                    taken.append(share)
                    free -= len(share.bitmaps)
            if not taken:
                self._under_way -= 1
            return taken


def hand_out(shares: list[Share], answer: Classification) -> None:
    """Gives each its own rows."""
    for share, part in zip(shares, cut(answer, [len(share.bitmaps) for share in shares]), strict=True):
        share.answer = part
        share.settle()


def fail(shares: list[Share], error: Exception) -> None:
    """Tells each that the shared request failed."""
    for share in shares:
        share.error = error
        share.settle()
