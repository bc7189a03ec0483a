"""Turns SIGTERM and SIGINT into futures, for the event loop to wait for."""

import asyncio
import signal

_WANTED = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """What the signals of this process ask for; of the running event loop.

    Not `loop.add_signal_handler`: a closing loop takes its handlers away, and the next signal would kill a process that
    has drained well.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[signal.Signals] = self._loop.create_future()
        """Settled by the first signal: end in good order."""
        self.hurried: asyncio.Future[signal.Signals] = self._loop.create_future()
        """Settled by the second: end now."""
        for wanted in _WANTED:
            signal.signal(wanted, self._pass_on)

    def note(self, number: int) -> None:
        """As if the signal had come."""
        waiting = next((each for each in (self.asked, self.hurried) if not each.done()), None)
        if waiting:
            waiting.set_result(signal.Signals(number))

    async def hurried_within(self, limit_s: float) -> bool:
        """Waits for the second signal, for so long at most; whether it came."""
        await asyncio.wait((self.hurried,), timeout=limit_s)
        return self.hurried.done()

    def _pass_on(self, number: int, _: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.note, number)


def ignore_late_ones() -> None:
    """From now on no signal changes anything, also while Python itself shuts down."""
    for late in _WANTED:
        signal.signal(late, signal.SIG_IGN)
