"""Which of the processes on a port this one is, and its line to the parent, if it has one."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from .errors import StartError


@dataclass(frozen=True, slots=True)
class Worker:
    """One process that serves; alone on its port unless said otherwise."""

    number: int = 1
    """1 to `count`."""

    count: int = 1
    """Processes on the port."""

    parent: Connection | None = None
    """The line to the parent: open for as long as that lives."""

    def report(self, outcome: list[str] | StartError) -> None:
        """Tells the parent what is served, or why nothing is."""
        if self.parent:
            with suppress(BrokenPipeError):  # it has gone: the worker drains
                self.parent.send(outcome)

    def heed_parent(self, stop: "asyncio.Future[signal.Signals]", tell: Callable[[], object] = list) -> None:
        """Settles `stop` when the parent is gone, as if it had sent SIGTERM; answers each of its questions by `tell`.

        Said again, it does so from now on by another `tell`.
        """
        if self.parent:
            line, loop = self.parent, asyncio.get_running_loop()

            def hear() -> None:
                try:
                    line.recv()
                    line.send(tell())
                except (EOFError, OSError):
                    loop.remove_reader(line)
                    if not stop.done():
                        stop.set_result(signal.SIGTERM)

            loop.add_reader(line, hear)
