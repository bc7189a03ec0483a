"""Run batches on a pool of threads that also polls for requests: the Leader/Followers pattern.

Source of the pattern: Schmidt et al., "Pattern-Oriented Software Architecture", volume 2 (POSA2), 2000. One thread, the
leader, polls for requests. The other threads, the followers, run batches or sleep. The thread that received a small
request can run it itself: passing it to another thread would cost more than its model call.

Each thread repeats these steps:

1. If rows wait, a slot is free and the last poll was over a millisecond ago: poll without blocking. A small request may
   have arrived that runs before the waiting rows.
2. If rows wait and a slot is free: take a batch, and run it. Before the run, wake a follower if it can run remaining
   rows or become the leader. A leader keeps its role during a quick batch only.
3. If there is no leader: become the leader and poll until a request arrives.
4. Otherwise: sleep.

While all slots run model calls, no thread polls, because polling takes CPU time from the calls. The first thread that
finishes its call polls next. There are two exceptions: `polls_while_saturated` is set, or these calls are long and
quick requests are expected. The leader then runs quick batches itself, beyond the slots: a small request does not wait
for a bulk job. Measurements: docs/decisions/0008.

An unexpected exception ends no thread: the thread logs it, waits and repeats the steps (`background`). After three such
exceptions in a row, one of the `components` is failing, and the health monitor reports NOT_SERVING.

The module does not know gRPC: requests come from a `RequestSource`.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from ..background import Component, ComponentName
from ..errors import InferenceFailed
from .batcher import Batch, Batcher

_POLL_INTERVAL_S = 0.001  # longest time for which waiting rows may keep the threads from polling
_EXIT_CHECK_S = 0.01  # seconds between two checks, at the exit, of whether the last model call has ended


class RequestSource(Protocol):
    """The server that receives requests and submits their rows."""

    def poll(self, *, blocks: bool) -> bool:
        """Submit the requests that have arrived; if `blocks`, wait for the first. Return False after `close`."""

    def close(self) -> None:
        """Make `poll` return False; called when no request is running any more."""


class LeaderFollowerPool:
    """Run the batches of `batchers` in turn. A context manager: its exit finishes the queued rows.

    Batchers can be added and removed while the pool runs.

    Args:
        batchers: Their `limits.slots` bound the concurrent model calls of one model.
        slots: Concurrent model calls of all batchers together.
        source: Polled for requests, and closed at the exit. None = only threads outside the pool submit requests.
        polls_while_saturated: Whether one more thread polls while all slots run model calls, long or not.
    """

    def __init__(
        self,
        batchers: Iterable[Batcher],
        *,
        slots: int,
        source: RequestSource | None = None,
        polls_while_saturated: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batchers = deque(batchers)
        self._slots = slots
        self._source = source
        self._polls_while_saturated = polls_while_saturated
        self._clock = clock
        self._leader: int | None = None  # thread ident
        self._polled_at = -math.inf
        self._running_calls = 0  # in slots
        self._long_calls = 0  # among these
        self._extra_calls = 0  # beyond the slots
        self._sleeping_threads = 0
        self._is_closed = False
        self._batches = Component(ComponentName.THREAD_POOL)
        self._polls = Component(ComponentName.LEADER)
        self._stopping = threading.Event()  # ends the delay after an exception
        # Guards all of the above. Notified when rows were submitted, when there is no leader, and at the exit.
        self._changed = threading.Condition()
        for batcher in self._batchers:
            batcher.wake = self._wake
        # One thread more than slots: while one thread polls, the others can use all slots.
        self._threads = [threading.Thread(target=self._work, name=f"pool-{n}", daemon=True) for n in range(slots + 1)]

    def __enter__(self) -> "LeaderFollowerPool":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            for batcher in self._batchers:
                batcher.close()
            # The source must stay open until the last response: a later response would abort the process.
            while self._running_calls or self._extra_calls or self._has_rows():
                self._changed.wait(_EXIT_CHECK_S)
            self._is_closed = True
            self._changed.notify_all()
        self._stopping.set()
        if self._source:
            self._source.close()
        for thread in self._threads:
            thread.join()

    @property
    def components(self) -> tuple[Component, ...]:
        """Return the components without which no request is answered."""
        return self._batches, self._polls

    def add(self, batcher: Batcher, *, polls_while_saturated: bool) -> None:
        """Run the batches of one more batcher; the number of slots stays the same."""
        batcher.wake = self._wake
        with self._changed:
            self._batchers.append(batcher)
            self._polls_while_saturated |= polls_while_saturated

    def remove(self, batcher: Batcher) -> None:
        """Forget a released batcher."""
        with self._changed:
            self._batchers.remove(batcher)

    def _wake(self) -> None:
        """Wake a follower after rows were submitted; the leader itself checks for rows after each poll."""
        if threading.get_ident() != self._leader:
            with self._changed:
                self._changed.notify()

    def _work(self) -> None:
        while True:
            task = None  # otherwise a sleeping thread would keep the rows and requests of its last batch alive
            try:
                task = self._next_task()
                if task is None:
                    return
                task()
            except BaseException as exc:  # a thread that ended would be missing for good
                self._resign()
                self._stopping.wait(self._batches.record_error(exc))

    def _resign(self) -> None:
        """Let another thread poll, if this thread is the leader."""
        with self._changed:
            if self._leader == threading.get_ident():
                self._leader = None
                self._changed.notify()

    def _next_task(self) -> Callable[[], None] | None:
        """Return the next step of this thread, after sleeping until there is one; None = the pool is closed."""
        me = threading.get_ident()
        with self._changed:
            while True:
                if self._must_poll_first(me):
                    self._leader = me
                    return partial(self._poll, blocks=False)
                if batch := self._take() or self._take_extra(me):
                    if self._leader == me and not batch.is_quick:
                        self._leader = None
                    self._wake_follower()
                    return partial(self._run, batch)
                if self._leader == me or self._can_lead():
                    self._leader = me
                    return partial(self._poll, blocks=True)
                if self._is_closed:
                    return None
                self._sleeping_threads += 1
                self._changed.wait()
                self._sleeping_threads -= 1

    def _must_poll_first(self, me: int) -> bool:
        """Return whether this thread polls before it takes rows: step 1 of the module's description."""
        may_lead = self._leader in (None, me) and self._source is not None and not self._is_closed
        return may_lead and self._has_rows() and self._clock() > self._polled_at + _POLL_INTERVAL_S

    def _take(self) -> Batch | None:
        """Return a batch of the next batcher that has one, or None if there is none or no slot is free."""
        idle_slots = self._slots - self._running_calls
        for _ in range(len(self._batchers) if idle_slots else 0):
            self._batchers.rotate(-1)
            if batch := self._batchers[-1].take(idle_slots):
                self._running_calls += 1
                self._long_calls += batch.is_long
                return batch
        return None

    def _take_extra(self, me: int) -> Batch | None:
        """Return a quick batch if all slots run long calls; the leader runs it, or without a source any idle thread."""
        is_leader = self._leader == me or not self._source
        if not is_leader or not self._may_run_extra():
            return None
        for _ in range(len(self._batchers)):
            self._batchers.rotate(-1)
            if batch := self._batchers[-1].take_extra():
                self._extra_calls += 1
                return batch
        return None

    def _may_run_extra(self) -> bool:
        """Return whether a quick batch may run beyond the slots: all run long calls, and no other such batch runs."""
        is_busy = self._long_calls >= self._slots and not self._extra_calls
        return is_busy and any(batcher.expects_quick_requests for batcher in self._batchers)

    def _can_lead(self) -> bool:
        may_poll = self._polls_while_saturated or self._running_calls < self._slots or self._may_run_extra()
        return self._source is not None and not self._is_closed and self._leader is None and may_poll

    def _wake_follower(self) -> None:
        """Wake a follower if it can run waiting rows or become the missing leader."""
        if self._sleeping_threads and (self._can_lead() or (self._running_calls < self._slots and self._has_rows())):
            self._changed.notify()

    def _has_rows(self) -> bool:
        return any(batcher.has_rows for batcher in self._batchers)

    def _run(self, batch: Batch) -> None:
        try:
            batch.run()
        except BaseException as exc:
            for request in batch.requests:  # fail the requests that are not settled: they would wait for ever
                error = InferenceFailed("the service failed after the model call")
                error.__cause__ = exc
                request.fail(error)
            raise
        finally:
            with self._changed:
                if batch.is_extra:
                    self._extra_calls -= 1
                else:
                    self._running_calls -= 1
                    self._long_calls -= batch.is_long
        self._batches.record_success()

    def _poll(self, *, blocks: bool) -> None:
        """Poll as the leader; after an exception, keep the role, so that no thread polls during the delay."""
        assert self._source
        try:
            is_open = self._source.poll(blocks=blocks)
        except BaseException as exc:
            self._stopping.wait(self._polls.record_error(exc))
            is_open = not self._is_closed
        else:
            self._polls.record_success()
        self._polled_at = self._clock()
        if not is_open:
            with self._changed:
                self._source = self._leader = None
