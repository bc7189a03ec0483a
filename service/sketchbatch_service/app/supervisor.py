"""Runs several processes of the service on one port, and keeps them running.

Each worker is a whole service; the kernel gives every new connection to one of them (SO_REUSEPORT). The parent holds
the port, starts them, says SERVING once all are ready, starts another in place of one that dies, and passes SIGTERM on.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import structlog
from prometheus_client.core import Metric

from ..errors import AddressUnusable, StartError, WorkerLost
from ..settings import Settings
from ..telemetry.exposition import MetricsPort, merge_metrics
from . import process
from .signals import Stop, ignore_late_ones
from .worker import Worker

log = structlog.get_logger()

_RESTART_S = 1.0
"""How long a dead worker's place stays empty: one that dies at once must not keep the machine busy."""

_ANSWER_S = 1.0
"""How long a worker may take to say what it counts: Prometheus itself waits for 10 s."""

_KILL_S = 7.0
"""How long after `lame_duck_s` and `drain_s` a worker that has not ended is killed."""


async def supervise(settings: Settings) -> None:
    """Runs `settings.workers` workers until SIGTERM or SIGINT.

    Raises:
        StartError: The port is in use, or a worker cannot start.
    """
    stop = Stop()
    with _held(settings.address) as address, _held(settings.probe_address) as probe_address:
        settings = replace(settings, address=address, probe_address=probe_address)
        places = [_Place(settings, number) for number in range(1, settings.workers + 1)]
        metrics = MetricsPort(settings.metrics_address, lambda: merge_metrics(place.metrics() for place in places))
        metrics.start()
        settings = replace(settings, metrics_address=metrics.address)
        try:
            await _run(places, settings, stop)
        finally:
            limit_s = settings.lame_duck_s + settings.drain_s + _KILL_S
            await asyncio.gather(*(place.clear(stop, limit_s) for place in places))
    ignore_late_ones()
    log.info("stopped")


async def _run(places: list["_Place"], settings: Settings, stop: Stop) -> None:
    ready = asyncio.gather(*(place.fill() for place in places))
    await asyncio.wait((ready, stop.asked), return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        log.info(
            "SERVING",
            address=settings.address,
            probe_address=settings.probe_address,
            metrics_address=settings.metrics_address,
            workers=len(places),
            models=ready.result()[0],
        )
        keepers = [asyncio.create_task(place.keep_filled()) for place in places]
        await stop.asked
        for keeper in keepers:
            keeper.cancel()
    else:
        ready.cancel()
    log.info("leaving", signal=stop.asked.result().name)


class _Place:
    """Where one worker after another sits."""

    def __init__(self, settings: Settings, number: int) -> None:
        self._settings = settings
        self._number = number
        self._sitter: BaseProcess | None = None
        self._asking = threading.Lock()
        self._answers: Connection | None = None  # the line, while the worker serves

    async def fill(self) -> list[str]:
        """Starts a worker; returns what it serves once it does.

        Raises:
            StartError: It cannot start.
        """
        context = get_context("spawn")  # gRPC and ONNX Runtime do not survive a fork
        self._line, theirs = context.Pipe()  # ours stays open: its end tells the worker of ours
        worker = Worker(self._number, self._settings.workers, theirs)
        self._sitter = context.Process(target=_work, args=(self._settings, worker), name=f"worker-{self._number}")
        self._sitter.start()
        theirs.close()
        try:
            outcome = await asyncio.to_thread(self._line.recv)
        except EOFError:
            raise WorkerLost(f"worker {self._number} ended before it served") from None
        if isinstance(outcome, StartError):
            raise outcome
        models: list[str] = outcome
        self._answers = self._line
        return models

    def metrics(self) -> list[Metric]:
        """What the worker counts now; none while there is none that serves, or it does not answer in time."""
        with self._asking:
            line = self._answers
            try:
                while line and line.poll():  # an answer that came too late for its question
                    line.recv()
                if line:
                    line.send("metrics")
                    if line.poll(_ANSWER_S):
                        metrics: list[Metric] = line.recv()
                        return metrics
            except (EOFError, OSError):
                pass  # it has died: the next one brings a line of its own
        return []

    async def keep_filled(self) -> None:
        """Starts another worker whenever one dies, for ever."""
        while True:
            assert self._sitter
            await _ended(self._sitter)
            log.error("worker died, starting another", worker=self._number, exit_code=self._sitter.exitcode)
            await asyncio.sleep(_RESTART_S)
            with suppress(StartError):  # it has died, too, and is found dead in a moment
                await self.fill()

    async def clear(self, stop: Stop, limit_s: float) -> None:
        """Lets the worker end as `stop` says, and kills it after `limit_s`."""
        if not self._sitter:
            return
        self._pass_on(stop.asked)
        stop.hurried.add_done_callback(self._pass_on)
        try:
            await asyncio.wait_for(_ended(self._sitter), limit_s)
        except TimeoutError:
            log.error("worker did not end in time, killing it", worker=self._number)
            self._sitter.kill()
            await _ended(self._sitter)

    def _pass_on(self, number: "asyncio.Future[signal.Signals]") -> None:
        """The signal that came; SIGTERM where it was an error that ends us."""
        if self._sitter and self._sitter.pid and self._sitter.is_alive():
            os.kill(self._sitter.pid, number.result() if number.done() else signal.SIGTERM)


async def _ended(worker: BaseProcess) -> None:
    """Waits for the end of a worker's process."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(worker.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(worker.sentinel)
    worker.join()


def _work(settings: Settings, worker: Worker) -> None:
    """The whole life of a worker's process."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C goes to the parent, which passes it on once
    process.prepare(settings.log_level, worker=worker.number)
    from .server import serve  # after `prepare`

    try:
        asyncio.run(serve(settings, worker))
    except StartError as exc:
        worker.report(exc)
        sys.exit(1)


@contextmanager
def _held(address: str) -> Iterator[str]:
    """Binds the port, without listening, so that nobody but our workers can; yields the address with the port taken."""
    if not address:
        yield ""
        return
    host, _, wanted = address.rpartition(":")
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), int(wanted), type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as alone:  # with SO_REUSEPORT, two services would share the port in silence
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(place)
            taken = alone.getsockname()
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(taken)
    except OSError as exc:
        raise AddressUnusable(f"cannot listen on {address}: {exc.strerror}") from exc
    with holder:
        yield f"{host}:{taken[1]}"
