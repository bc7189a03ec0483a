"""Delay a fork until no blocking RPC of the process is in flight, for at most one second.

gRPC supports forks if the environment variable GRPC_ENABLE_FORK_SUPPORT is 1 and no thread is in a call of gRPC
(https://github.com/grpc/grpc/blob/master/doc/fork_support.md). Otherwise the child sometimes waits for ever for a lock
of gRPC that another thread held, or ends with a segmentation fault.
"""

import os
import threading
import time

_LONGEST_WAIT_S = 1.0
"""Longest wait of a fork for RPCs in flight. After this time the process forks anyway: a program that forks must not
wait for a server that does not respond."""


class ForkGate:
    """Counts RPCs in flight, and delays new ones while the process forks. As a context manager it counts one RPC."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_flight = 0
        self._is_closed = False

    def __enter__(self) -> None:
        with self._changed:
            while self._is_closed:
                self._changed.wait()
            self._in_flight += 1

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._in_flight -= 1
            if self._is_closed and not self._in_flight:
                self._changed.notify_all()

    def close(self) -> None:
        """Delay new RPCs, and wait until none is in flight, at most `_LONGEST_WAIT_S`."""
        ends_at = time.monotonic() + _LONGEST_WAIT_S
        with self._changed:
            self._is_closed = True
            while self._in_flight and (remaining_s := ends_at - time.monotonic()) > 0:
                self._changed.wait(remaining_s)

    def open(self) -> None:
        """Admit new RPCs again."""
        with self._changed:
            self._is_closed = False
            self._changed.notify_all()

    def renew(self) -> None:
        """Reset the gate in a forked child: threads that held its lock, or were counted, exist only in the parent."""
        self.__init__()  # type: ignore[misc]


gate = ForkGate()
"""The gate of this process: all channels share the state of gRPC."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=gate.close, after_in_parent=gate.open, after_in_child=gate.renew)
