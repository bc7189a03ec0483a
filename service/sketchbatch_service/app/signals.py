"""Turn SIGTERM and SIGINT into futures of the event loop."""

import asyncio
import signal
import socket
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Stop requests of this process, as futures of the running event loop. A context manager, for the main thread.

    The exit restores the handlers that the process had before. If the exit also ends the process (`ends_process`), it
    ignores the signals instead: a late second signal must not kill a process that has drained successfully.

    `loop.add_signal_handler` is unsuitable: a closing loop removes its handlers, and the next signal would then kill
    the process.
    """

    def __init__(self, *, ends_process: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends_process = ends_process
        # The first signal settles `requested`: drain, then exit. The second settles `forced`: cancel the open calls.
        self.requested: asyncio.Future[signal.Signals] = self._loop.create_future()
        self.forced: asyncio.Future[signal.Signals] = self._loop.create_future()

    def __enter__(self) -> Self:
        # A process that was paused may receive a signal on any thread: the socket wakes the loop on the main thread.
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        self._loop.add_reader(self._wakeup[0], self._wakeup[0].recv, 4096)
        self._previous_wakeup_fd = signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, previous in self._previous_handlers.items():
            # None: the previous handler was not installed by Python, and Python cannot restore it.
            signal.signal(number, signal.SIG_IGN if self._ends_process else previous or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        self._loop.remove_reader(self._wakeup[0])
        for end in self._wakeup:
            end.close()

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
