"""Turn SIGTERM and SIGINT into futures of the event loop."""

import asyncio
import signal
import socket

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Stop requests of this process, as futures of the running event loop.

    `loop.add_signal_handler` is unsuitable: a closing loop removes its handlers, and the next signal would then kill a
    process that has drained successfully.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The first signal settles `requested`: drain, then exit. The second settles `forced`: cancel the open calls.
        self.requested: asyncio.Future[signal.Signals] = self._loop.create_future()
        self.forced: asyncio.Future[signal.Signals] = self._loop.create_future()
        # A process that was paused may receive a signal on any thread: the socket wakes the loop on the main thread.
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        self._loop.add_reader(self._wakeup[0], self._wakeup[0].recv, 4096)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def handle(self, number: int) -> None:
        """Settle the next of the two futures with signal `number`."""
        pending = next((future for future in (self.requested, self.forced) if not future.done()), None)
        if pending:
            pending.set_result(signal.Signals(number))

    async def forced_within(self, limit_s: float) -> bool:
        """Wait up to `limit_s` for the second signal; return whether it arrived."""
        await asyncio.wait((self.forced,), timeout=limit_s)
        return self.forced.done()

    def _on_signal(self, number: int, _: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.handle, number)


def ignore_signals() -> None:
    """Ignore SIGTERM and SIGINT until the process has ended."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
