"""Run several worker processes on one port, and restart those that end.

Each worker is a complete service; the kernel gives every new connection to one of them (SO_REUSEPORT). The supervisor
reserves the port, starts the workers, and logs SERVING once all are ready. It restarts workers that end, and forwards
SIGTERM and SIGINT.

A worker that cannot be started is retried without end: file descriptors, processes or memory may be short for a while.
The other workers serve in the meantime.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
from prometheus_client.core import Metric

from ..address import HostPort
from ..background import Component, ComponentName
from ..errors import AddressUnusable, StartError, WorkerLost
from ..settings import Settings
from ..telemetry.background_metrics import supervisor_metrics
from ..telemetry.exposition import MetricsPort, merge_metrics
from . import process
from .signals import Stop
from .worker import Worker

log = structlog.get_logger()

_FIRST_DELAY_S = 0.25  # seconds before a worker is started again; they double with each consecutive failure
_MAX_DELAY_S = 1.0  # all workers must serve within 5 s after a shortage has ended, and a start takes up to 2 s
_STABLE_S = 10.0  # a worker that served for this time had no part in the failures before it
_METRICS_S = 1.0  # seconds that a worker may take to send its metrics: Prometheus itself waits 10 s
_KILL_S = 7.0  # seconds after `lame_duck_s` and `drain_s` after which a worker that still runs is killed


async def supervise(settings: Settings) -> None:
    """Run the workers until SIGTERM or SIGINT; raise StartError if the port is in use or a worker cannot start."""
    with (
        Stop(ends_process=True) as stop,
        _reserved(settings.address) as address,
        _reserved(settings.probe_address) as probe_address,
    ):
        settings = replace(settings, address=address, probe_address=probe_address)
        workers = _Workers(settings)
        with MetricsPort(settings.metrics_address, workers.metrics) as metrics_port:
            try:
                await workers.run(stop, metrics_address=metrics_port.address)
            finally:
                await workers.stop(stop)
    log.info("stopped")


class _Workers:
    """All worker processes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._processes = [_WorkerProcess(settings, number, self) for number in range(1, settings.workers + 1)]

    async def run(self, stop: Stop, *, metrics_address: str) -> None:
        """Start the workers, and restart those that end, until a stop signal; raise StartError if one cannot start."""
        starts = [asyncio.create_task(worker.start()) for worker in self._processes]
        ready = asyncio.gather(*starts)
        await asyncio.wait((ready, stop.requested), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            await _cancel(starts)  # of the workers that still start after an error of another one
            models = ready.result()[0]
            addresses = {"address": self._settings.address, "probe_address": self._settings.probe_address}
            log.info(
                "SERVING", **addresses, metrics_address=metrics_address, workers=len(self._processes), models=models
            )
            restarts = [asyncio.create_task(worker.keep_running()) for worker in self._processes]
            await stop.requested
            await _cancel(restarts)
        else:
            await _cancel([ready, *starts])
        log.info("stopping", signal=stop.requested.result().name)

    async def stop(self, stop: Stop) -> None:
        """Forward the signals of `stop`, and wait for the end of all workers."""
        limit_s = self._settings.lame_duck_s + self._settings.drain_s + _KILL_S
        await asyncio.gather(*(worker.stop(stop, limit_s) for worker in self._processes))

    def metrics(self) -> list[Metric]:
        """Return the metrics of the supervisor and of all workers that serve."""
        own = supervisor_metrics(**self.counts())
        return merge_metrics([own, *(worker.metrics() for worker in self._processes)])

    def counts(self) -> dict[str, int]:
        """Return the number of workers that serve, and the number of workers that should serve."""
        serving = sum(worker.is_serving for worker in self._processes)
        return {"serving": serving, "wanted": len(self._processes)}


class _WorkerProcess:
    """The process of worker `number`; a restart replaces it by a new process."""

    def __init__(self, settings: Settings, number: int, workers: _Workers) -> None:
        self.is_serving = False
        self._settings = settings
        self._number = number
        self._workers = workers
        self._component = Component(ComponentName.WORKER, first_delay_s=_FIRST_DELAY_S, max_delay_s=_MAX_DELAY_S)
        self._process: BaseProcess | None = None  # None before the first start, and after a start that failed
        self._serving_since = 0.0  # seconds of the event loop's clock
        self._collecting = threading.Lock()
        self._metrics_pipe: Connection | None = None  # set once the worker serves

    async def start(self) -> list[str]:
        """Start the process, and return the names of its models once it serves.

        After an error no process is left.

        Raises:
            StartError: The process cannot be started, or it ended before it served.
        """
        try:
            self._spawn()
        except (OSError, MemoryError) as exc:
            raise WorkerLost(f"worker {self._number} cannot be started: {str(exc) or type(exc).__name__}") from exc
        try:
            models = await self._models()
        except Exception:
            await self._discard()
            raise
        self._metrics_pipe = self._pipe
        self._serving_since = asyncio.get_running_loop().time()
        self.is_serving = True
        return models

    def metrics(self) -> list[Metric]:
        """Return the worker's metrics; empty if the worker does not serve or does not answer in time."""
        with self._collecting, suppress(EOFError, OSError):  # the worker has ended; the next one has a new pipe
            if pipe := self._metrics_pipe:
                while pipe.poll():  # a late answer to an earlier request
                    pipe.recv()
                pipe.send("metrics")
                if pipe.poll(_METRICS_S):
                    metrics: list[Metric] = pipe.recv()
                    return metrics
        return []

    async def keep_running(self) -> None:
        """Restart the worker whenever its process ends; runs until it is cancelled."""
        delay_s = 0.0
        while True:
            try:
                if self._process:
                    delay_s = await self._until_ended(self._process)
                await asyncio.sleep(delay_s)
                await self.start()
                log.info("worker serves again", worker=self._number, **self._workers.counts())
            except Exception as exc:  # a worker that is not restarted would be lost for good
                delay_s = self._component.count_error()
                log.error(
                    "worker not started, trying again",
                    worker=self._number,
                    reason=str(exc) or type(exc).__name__,
                    retry_in_s=delay_s,
                    **self._workers.counts(),
                    exc_info=None if isinstance(exc, StartError) else exc,
                )

    async def stop(self, stop: Stop, limit_s: float) -> None:
        """Forward the signals of `stop` to the worker, wait for its end, and kill it after `limit_s` seconds."""
        if not self._process:
            return
        self._forward(stop.requested)
        stop.forced.add_done_callback(self._forward)
        try:
            await asyncio.wait_for(_wait_for_end(self._process), limit_s)
        except TimeoutError:
            log.error("worker did not exit in time, killing it", worker=self._number)
            self._process.kill()
            await _wait_for_end(self._process)

    def _spawn(self) -> None:
        """Start a process and connect a pipe to it; raise OSError or MemoryError, without a trace, if that fails."""
        context = get_context("spawn")  # gRPC and ONNX Runtime do not survive a fork
        pipe, worker_end = context.Pipe()
        with worker_end:
            worker = Worker(self._number, self._settings.workers, worker_end)
            process = context.Process(target=_work, args=(self._settings, worker), name=f"worker-{self._number}")
            process.start()
        # The attribute keeps the pipe open until the supervisor ends: by the closed pipe, the worker detects this end.
        self._process, self._pipe = process, pipe

    async def _models(self) -> list[str]:
        """Wait until the worker serves, and return the names of its models; raise StartError if it cannot serve."""
        await _until_readable(self._pipe.fileno())
        try:
            outcome = self._pipe.recv()
        except EOFError:
            raise WorkerLost(f"worker {self._number} ended before it served") from None
        if isinstance(outcome, StartError):
            raise outcome
        return list(outcome)

    async def _discard(self) -> None:
        """End the process of a start that failed."""
        if self._process:
            self._process.kill()
            await _wait_for_end(self._process)
            self._process = None

    async def _until_ended(self, process: BaseProcess) -> float:
        """Wait until the process has ended, and log this; return the seconds before the next start."""
        await _wait_for_end(process)
        self._process = None
        self.is_serving = False
        if asyncio.get_running_loop().time() > self._serving_since + _STABLE_S:
            self._component.record_success()
        delay_s = self._component.count_error()
        exit_code, counts = process.exitcode, self._workers.counts()
        log.error("worker died, starting another", worker=self._number, exit_code=exit_code, **counts)
        return delay_s

    def _forward(self, number: "asyncio.Future[signal.Signals]") -> None:
        """Send the signal `number`; SIGTERM if no signal arrived because an error ends the supervisor."""
        if self._process and self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, number.result() if number.done() else signal.SIGTERM)


async def _cancel(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    """Cancel the tasks that are not done, and wait for their ends: two tasks must not wait for one process."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_end(process: BaseProcess) -> None:
    await _until_readable(process.sentinel)
    process.join()


async def _until_readable(descriptor: int) -> None:
    """Wait without a thread, because a thread cannot be started while processes are short."""
    loop, is_readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _work(settings: Settings, worker: Worker) -> None:
    """Run the service in the worker's process."""
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to the supervisor alone, which forwards it once
    process.prepare(settings.log_level, worker=worker.number)
    from .server import serve  # loads gRPC, which must happen after `prepare`

    try:
        asyncio.run(serve(settings, worker, ends_process=True))
    except StartError as exc:
        worker.report(exc)
        sys.exit(1)


@contextmanager
def _reserved(address: str) -> Iterator[str]:
    """Bind the port without listening, so that only the workers can serve it; yield the address with that port."""
    if not address:
        yield ""
        return
    wanted = HostPort.parse(address)
    try:
        family, place = wanted.resolve()
        with socket.socket(family) as exclusive:  # fails if another service has the port: SO_REUSEPORT would share it
            exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            exclusive.bind(place)
            bound = exclusive.getsockname()
        reservation = socket.socket(family)
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(bound)
    except OSError as exc:
        raise AddressUnusable(f"cannot listen on {address}: {exc.strerror}") from exc
    with reservation:
        yield str(replace(wanted, port=bound[1]))
