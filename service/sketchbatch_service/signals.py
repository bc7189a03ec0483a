"""Turns SIGTERM and SIGINT into a future, for the event loop to wait for."""

import asyncio
import signal

_WANTED = (signal.SIGTERM, signal.SIGINT)


def stop_signal() -> "asyncio.Future[signal.Signals]":
    """A future of the first SIGTERM or SIGINT; later ones change nothing.

    Not `loop.add_signal_handler`: a closing loop takes its handlers away, and the next signal would kill a process that
    has drained well.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def note(number: int) -> None:
        if not stop.done():
            stop.set_result(signal.Signals(number))

    def pass_on(number: int, _: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(note, number)

    for wanted in _WANTED:
        signal.signal(wanted, pass_on)
    return stop


def ignore_late_ones() -> None:
    """From now on no signal changes anything, also while Python itself shuts down."""
    for late in _WANTED:
        signal.signal(late, signal.SIG_IGN)
