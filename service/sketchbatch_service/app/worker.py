"""Which of the processes on a port this one is, and its line to the parent, if it has one."""

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ..errors import StartError
from .signals import Stop


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

    def stop_without_parent(self, stop: Stop) -> None:
        """Stops when the parent is gone, as if it had sent SIGTERM."""
        if self.parent:
            line, loop = self.parent, asyncio.get_running_loop()

            def orphaned() -> None:
                loop.remove_reader(line)
                if not stop.asked.done():
                    stop.note(signal.SIGTERM)

            loop.add_reader(line, orphaned)  # the parent writes nothing before `report`: what can be read is the end

    def answer_parent(self, tell: Callable[[], object], stop: Stop) -> None:
        """Answers each question of the parent by `tell`, until it is gone: then `stop_without_parent`."""
        if self.parent:
            line, loop = self.parent, asyncio.get_running_loop()
            loop.remove_reader(line)

            def answer() -> None:
                with suppress(EOFError, OSError):
                    while True:
                        line.recv()
                        line.send(tell())
                with suppress(RuntimeError):  # the loop is closed: we are at our own end
                    loop.call_soon_threadsafe(self.stop_without_parent, stop)

            # A thread: a parent that does not read an answer holds up nothing else.
            threading.Thread(target=answer, name="parent", daemon=True).start()
