"""Run a command in the process of the tests without its signal handlers staying behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Set the handlers of the signals that stop a program as they were before the block."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
