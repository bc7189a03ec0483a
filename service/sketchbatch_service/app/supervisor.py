"""Run several worker processes on one port, and restart those that end.

Each worker is a complete service; the kernel gives every new connection to one of them (SO_REUSEPORT). The supervisor
reserves the port, starts the workers, and logs SERVING once all are ready. It restarts workers that end, and forwards
SIGTERM and SIGINT.
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

from ..address import HostPort
from ..errors import AddressUnusable, StartError, WorkerLost
from ..settings import Settings
from ..telemetry.exposition import MetricsPort, merge_metrics
from . import process
from .signals import Stop, ignore_signals
from .worker import Worker

log = structlog.get_logger()

_RESTART_S = 1.0  # seconds before a worker is restarted: one that ends at once must not keep the machine busy
_METRICS_S = 1.0  # seconds that a worker may take to send its metrics: Prometheus itself waits 10 s
_KILL_S = 7.0  # seconds after `lame_duck_s` and `drain_s` after which a worker that still runs is killed


async def supervise(settings: Settings) -> None:
    """Run the workers until SIGTERM or SIGINT; raise StartError if the port is in use or a worker cannot start."""
    stop = Stop()
    with _reserved(settings.address) as address, _reserved(settings.probe_address) as probe_address:
        settings = replace(settings, address=address, probe_address=probe_address)
        workers = [_WorkerProcess(settings, number) for number in range(1, settings.workers + 1)]
        metrics = MetricsPort(settings.metrics_address, lambda: merge_metrics(worker.metrics() for worker in workers))
        metrics.start()
        settings = replace(settings, metrics_address=metrics.address)
        try:
            await _run(workers, settings, stop)
        finally:
            limit_s = settings.lame_duck_s + settings.drain_s + _KILL_S
            await asyncio.gather(*(worker.stop(stop, limit_s) for worker in workers))
    ignore_signals()
    log.info("stopped")


async def _run(workers: list["_WorkerProcess"], settings: Settings, stop: Stop) -> None:
    ready = asyncio.gather(*(worker.start() for worker in workers))
    await asyncio.wait((ready, stop.requested), return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        addresses = {name: getattr(settings, name) for name in ("address", "probe_address", "metrics_address")}
        log.info("SERVING", **addresses, workers=len(workers), models=ready.result()[0])
        restarts = [asyncio.create_task(worker.keep_running()) for worker in workers]
        await stop.requested
        for restart in restarts:
            restart.cancel()
    else:
        ready.cancel()
        with suppress(asyncio.CancelledError, StartError):  # without `await`, asyncio would log the cancellation
            await ready
    log.info("stopping", signal=stop.requested.result().name)


class _WorkerProcess:
    """The process of worker `number`; a restart replaces it by a new process."""

    def __init__(self, settings: Settings, number: int) -> None:
        self._settings = settings
        self._number = number
        self._process: BaseProcess | None = None
        self._collecting = threading.Lock()
        self._metrics_pipe: Connection | None = None  # set once the worker serves

    async def start(self) -> list[str]:
        """Start the process, and return the names of its models once it serves; raise StartError if it cannot."""
        context = get_context("spawn")  # gRPC and ONNX Runtime do not survive a fork
        # The attribute keeps the pipe open until the supervisor ends: by the closed pipe, the worker detects this end.
        self._pipe, worker_end = context.Pipe()
        worker = Worker(self._number, self._settings.workers, worker_end)
        self._process = context.Process(target=_work, args=(self._settings, worker), name=f"worker-{self._number}")
        self._process.start()
        worker_end.close()
        try:
            outcome = await asyncio.to_thread(self._pipe.recv)
        except EOFError:
            raise WorkerLost(f"worker {self._number} ended before it served") from None
        if isinstance(outcome, StartError):
            raise outcome
        self._metrics_pipe = self._pipe
        return list(outcome)

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
        while True:
            assert self._process
            await _wait_for_end(self._process)
            log.error("worker died, starting another", worker=self._number, exit_code=self._process.exitcode)
            await asyncio.sleep(_RESTART_S)
            with suppress(StartError):  # the new process has ended, too: the next loop iteration restarts the worker
                await self.start()

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

    def _forward(self, number: "asyncio.Future[signal.Signals]") -> None:
        """Send the signal `number`; SIGTERM if no signal arrived because an error ends the supervisor."""
        if self._process and self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, number.result() if number.done() else signal.SIGTERM)


async def _wait_for_end(worker: BaseProcess) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(worker.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(worker.sentinel)
    worker.join()


def _work(settings: Settings, worker: Worker) -> None:
    """Run the service in the worker's process."""
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to the supervisor alone, which forwards it once
    process.prepare(settings.log_level, worker=worker.number)
    from .server import serve  # loads gRPC, which must happen after `prepare`

    try:
        asyncio.run(serve(settings, worker))
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
