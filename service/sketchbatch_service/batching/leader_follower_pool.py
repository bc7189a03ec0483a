"""The threads that run model calls, and between calls watch for requests.

The thread that takes a request off the network also runs it, where it can: handing a small request to another thread
costs more than its model call. So threads take two roles in turn. One at most watches; the others run batches, or
sleep. The watcher runs quick batches itself, and leaves the watch to another thread before a longer one. While every
lane runs a call nobody watches, unless `polls_while_saturated`: the first that is done has a look at what came
meanwhile, and the threads do not fight for the cores. docs/decisions/0008 has the measurements.

Knows the batchers, and of the network only the function to call.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from .batcher import Batch, Batcher

_LOOK_EVERY_S = 0.001
"""How long rows that are queued may keep threads from looking for more: a small request goes before a large one."""

_LEAVE_S = 0.01
"""How often leaving looks whether the last call has ended."""


class Source(Protocol):
    """Where requests come from."""

    def poll(self, *, blocks: bool) -> bool:
        """Submits what requests have come, after waiting for the first if it `waits`; False = it was closed."""

    def close(self) -> None:
        """Ends `watch`; no request is under way any more."""


class LeaderFollowerPool:
    """Runs the batches of `batchers`, in turn. Use as a context manager: leaving it finishes what is queued.

    Others may join, and leave once nothing of theirs is queued, while it runs.

    Args:
        batchers: Whose rows to run; each says how many of its own calls may run at a time.
        slots: Model calls at a time, of all batchers together.
        source: What to watch, and to close in the end; None = requests are submitted by other threads only.
        polls_while_saturated: Whether one more thread watches while all slots run calls.
    """

    def __init__(
        self,
        batchers: Iterable[Batcher],
        *,
        slots: int,
        source: Source | None = None,
        polls_while_saturated: bool = True,
    ) -> None:
        self._batchers = deque(batchers)
        self._slots = slots
        self._source = source
        self._watches_while_full = polls_while_saturated
        self._poller: int | None = None  # the watching thread's ident
        self._polled_at = -math.inf  # time.monotonic seconds
        self._running = 0  # calls under way
        self._sleeping = 0
        self._is_closed = False
        self._changed = threading.Condition()  # rows, a free watch or the end has come; guards all of the above
        for batcher in self._batchers:
            batcher.wake = self._wake
        # One more than slots: it runs what other threads submit while the last of us watches.
        self._threads = [threading.Thread(target=self._work, name=f"crew-{n}", daemon=True) for n in range(slots + 1)]

    def __enter__(self) -> "LeaderFollowerPool":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            for batcher in self._batchers:
                batcher.close()
            while self._running or self._has_rows():  # an answer must not meet a closed source
                self._changed.wait(_LEAVE_S)
            self._is_closed = True
            self._changed.notify_all()
        if self._source:
            self._source.close()
        for thread in self._threads:
            thread.join()

    def add(self, batcher: Batcher, *, polls_while_saturated: bool) -> None:
        """Runs the batches of one more, on the slots there are."""
        batcher.wake = self._wake
        with self._changed:
            self._batchers.append(batcher)
            self._watches_while_full |= polls_while_saturated

    def remove(self, batcher: Batcher) -> None:
        """Lets go of one that was released."""
        with self._changed:
            self._batchers.remove(batcher)

    def _wake(self) -> None:
        """Rows were submitted. The watcher sees for itself when it has done watching; for others a thread is woken."""
        if threading.get_ident() != self._poller:
            with self._changed:
                self._changed.notify()

    def _work(self) -> None:
        while task := self._next_task():
            task()
            del task  # or the rows and callers of its batch would stay for as long as this thread sleeps

    def _next_task(self) -> Callable[[], None] | None:
        """What this thread is to do next, after sleeping until there is something; None = nothing ever again."""
        me = threading.get_ident()
        with self._changed:
            while True:
                if self._should_poll(me):
                    self._poller = me
                    return partial(self._poll, blocks=False)
                if batch := self._take():
                    if self._poller == me and not batch.is_quick:
                        self._poller = None
                    self._wake_another()
                    return partial(self._run, batch)
                if self._poller == me or self._may_poll():
                    self._poller = me
                    return partial(self._poll, blocks=True)
                if self._is_closed:
                    return None
                self._sleeping += 1
                self._changed.wait()
                self._sleeping -= 1

    def _take(self) -> Batch | None:
        """A batch of the next batcher that has one, if a lane is free."""
        idle_slots = self._slots - self._running
        for _ in range(len(self._batchers) if idle_slots else 0):
            self._batchers.rotate(-1)
            if batch := self._batchers[-1].take(idle_slots):
                self._running += 1
                return batch
        return None

    def _should_poll(self, me: int) -> bool:
        """Whether this thread, before it takes rows that wait, looks for others that may have to go first."""
        is_free = self._poller in (None, me) and self._source is not None and not self._is_closed
        return is_free and self._has_rows() and time.monotonic() > self._polled_at + _LOOK_EVERY_S

    def _may_poll(self) -> bool:
        has_room = self._watches_while_full or self._running < self._slots
        return self._source is not None and not self._is_closed and self._poller is None and has_room

    def _wake_another(self) -> None:
        """Wakes another thread if a share of the rows, or the watch, is left for it."""
        if self._sleeping and (self._may_poll() or (self._running < self._slots and self._has_rows())):
            self._changed.notify()

    def _has_rows(self) -> bool:
        return any(batcher.has_rows for batcher in self._batchers)

    def _run(self, batch: Batch) -> None:
        batch.run()
        with self._changed:
            self._running -= 1

    def _poll(self, *, blocks: bool) -> None:
        assert self._source
        is_open = self._source.poll(blocks=blocks)
        self._polled_at = time.monotonic()
        if not is_open:
            with self._changed:
                self._source = self._poller = None
