"""Wait for an observable condition instead of a fixed time."""

import time
from collections.abc import Callable


def wait_until(is_true: Callable[[], object], limit_s: float = 20) -> None:
    """Call `is_true` repeatedly until it returns a true value; fail after `limit_s` seconds."""
    give_up_at = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < give_up_at, f"the condition is still false after {limit_s:g} s"
        time.sleep(0.02)
