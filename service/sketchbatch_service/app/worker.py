"""Describe one worker process, and connect it to the supervisor."""

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from ..background import Component, ComponentName, keep_running
from ..errors import StartError
from .signals import Stop


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` processes that serve the same port; the default is a process without a supervisor."""

    number: int = 1  # 1 to `count`
    count: int = 1  # processes on the port
    supervisor: Connection | None = None  # pipe to the supervisor; the pipe closes when the supervisor ends

    def report(self, outcome: list[str] | StartError) -> None:
        """Send the names of the served models, or the error that prevented the start, to the supervisor."""
        if self.supervisor:
            with suppress(BrokenPipeError):  # the supervisor has ended, so this worker drains
                self.supervisor.send(outcome)

    def stop_without_supervisor(self, stop: Stop) -> None:
        """Stop this worker when the supervisor ends, as if SIGTERM had arrived."""
        if self.supervisor:
            pipe, loop = self.supervisor, asyncio.get_running_loop()

            def on_closed() -> None:
                loop.remove_reader(pipe)
                if not stop.requested.done():
                    stop.handle(signal.SIGTERM)

            loop.add_reader(pipe, on_closed)  # the supervisor sends nothing before `report`: readable means closed

    def answer_supervisor(self, collect: Callable[[], object], stop: Stop) -> None:
        """Send the result of `collect` for each message of the supervisor, until the supervisor ends."""
        if self.supervisor:
            pipe, loop = self.supervisor, asyncio.get_running_loop()
            loop.remove_reader(pipe)

            def answer() -> None:
                with suppress(EOFError, OSError):
                    while True:
                        pipe.recv()
                        pipe.send(collect())  # without an answer, the supervisor reports no metrics of this worker
                        component.record_success()
                with suppress(RuntimeError):  # the loop is closed: this worker is ending
                    loop.call_soon_threadsafe(self.stop_without_supervisor, stop)

            component = Component(ComponentName.SUPERVISOR_PIPE)
            # A thread of its own, because `send` blocks while the supervisor does not read.
            work = partial(keep_running, component, answer, threading.Event())
            threading.Thread(target=work, name="supervisor", daemon=True).start()
