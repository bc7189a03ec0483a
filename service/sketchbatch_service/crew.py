"""The threads that run model calls, and between calls watch for requests.

The thread that takes a request off the network also runs it, where it can: handing a small request to another thread
costs more than its model call. So threads take two roles in turn. One at most watches; the others run batches, or
sleep. The watcher runs quick batches itself, and leaves the watch to another thread before a longer one. While every
lane runs a call nobody watches, unless `watches_while_full`: the first that is done has a look at what came meanwhile,
and the threads do not fight for the cores. docs/decisions/0008 has the measurements.

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

    def watch(self, *, waits: bool) -> bool:
        """Submits what requests have come, after waiting for the first if it `waits`; False = it was closed."""

    def close(self) -> None:
        """Ends `watch`; no request is under way any more."""


class Crew:
    """Runs the batches of `batchers`, in turn. Use as a context manager: leaving it finishes what is queued.

    Others may join, and leave once nothing of theirs is queued, while it runs.

    Args:
        batchers: Whose rows to run; each says how many of its own calls may run at a time.
        lanes: Model calls at a time, of all batchers together.
        source: What to watch, and to close in the end; None = requests are submitted by other threads only.
        watches_while_full: Whether one more thread watches while all lanes run calls.
    """

    def __init__(
        self,
        batchers: Iterable[Batcher],
        *,
        lanes: int,
        source: Source | None = None,
        watches_while_full: bool = True,
    ) -> None:
        self._batchers = deque(batchers)
        self._lanes = lanes
        self._source = source
        self._watches_while_full = watches_while_full
        self._watcher: int | None = None  # the watching thread's ident
        self._looked_at = -math.inf  # time.monotonic seconds
        self._running = 0  # calls under way
        self._sleeping = 0
        self._is_closed = False
        self._changed = threading.Condition()  # rows, a free watch or the end has come; guards all of the above
        for batcher in self._batchers:
            batcher.wake = self._wake
        # One more than lanes: it runs what other threads submit while the last of us watches.
        self._threads = [threading.Thread(target=self._work, name=f"crew-{n}", daemon=True) for n in range(lanes + 1)]

    def __enter__(self) -> "Crew":
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

    def add(self, batcher: Batcher, *, watches_while_full: bool) -> None:
        """Runs the batches of one more, on the lanes there are."""
        batcher.wake = self._wake
        with self._changed:
            self._batchers.append(batcher)
            self._watches_while_full |= watches_while_full

    def remove(self, batcher: Batcher) -> None:
        """Lets go of one that was released."""
        with self._changed:
            self._batchers.remove(batcher)

    def _wake(self) -> None:
        """Rows were submitted. The watcher sees for itself when it has done watching; for others a thread is woken."""
        if threading.get_ident() != self._watcher:
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
                if self._should_look(me):
                    self._watcher = me
                    return partial(self._look, waits=False)
                if batch := self._take():
                    if self._watcher == me and not batch.is_quick:
                        self._watcher = None
                    self._call_for_help()
                    return partial(self._run, batch)
                if self._watcher == me or self._may_watch():
                    self._watcher = me
                    return partial(self._look, waits=True)
                if self._is_closed:
                    return None
                self._sleeping += 1
                self._changed.wait()
                self._sleeping -= 1

    def _take(self) -> Batch | None:
        """A batch of the next batcher that has one, if a lane is free."""
        idle_lanes = self._lanes - self._running
        for _ in range(len(self._batchers) if idle_lanes else 0):
            self._batchers.rotate(-1)
            if batch := self._batchers[-1].take(idle_lanes):
                self._running += 1
                return batch
        return None

    def _should_look(self, me: int) -> bool:
        """Whether this thread, before it takes rows that wait, looks for others that may have to go first."""
        is_free = self._watcher in (None, me) and self._source is not None and not self._is_closed
        return is_free and self._has_rows() and time.monotonic() > self._looked_at + _LOOK_EVERY_S

    def _may_watch(self) -> bool:
        has_room = self._watches_while_full or self._running < self._lanes
        return self._source is not None and not self._is_closed and self._watcher is None and has_room

    def _call_for_help(self) -> None:
        """Wakes another thread if a share of the rows, or the watch, is left for it."""
        if self._sleeping and (self._may_watch() or (self._running < self._lanes and self._has_rows())):
            self._changed.notify()

    def _has_rows(self) -> bool:
        return any(batcher.has_rows for batcher in self._batchers)

    def _run(self, batch: Batch) -> None:
        batch.run()
        with self._changed:
            self._running -= 1

    def _look(self, *, waits: bool) -> None:
        assert self._source
        is_open = self._source.watch(waits=waits)
        self._looked_at = time.monotonic()
        if not is_open:
            with self._changed:
                self._source = self._watcher = None
