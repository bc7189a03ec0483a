"""Test that the supervisor restarts a worker whatever prevents its start for a while."""

import asyncio
import errno
import multiprocessing
import os
from pathlib import Path

import pytest
from in_process import until
from sketchbatch_service import background
from sketchbatch_service.app import supervisor
from sketchbatch_service.app.signals import Stop
from sketchbatch_service.background import ComponentName
from sketchbatch_service.errors import WorkerLost
from sketchbatch_service.settings import Settings
from structlog.testing import capture_logs

FAILED_STARTS = 3


class Processes:
    """Act as a context of multiprocessing whose processes serve at once; the test ends them and prevents starts."""

    Pipe = staticmethod(multiprocessing.Pipe)

    def __init__(self) -> None:
        self.started: list[Process] = []
        self.start_errors: list[BaseException] = []  # raised by the next starts, in this order
        self.outcomes: dict[int, WorkerLost | None] = {}  # what a worker reports; None = nothing

    def Process(self, target, args, name) -> "Process":  # noqa: N802 - multiprocessing's name
        return Process(self, args[1])


class Process:
    """Act as a worker process; `end` ends it."""

    pid = None  # it receives no signals
    exitcode = -9

    def __init__(self, processes: Processes, worker) -> None:
        self._processes, self._worker = processes, worker

    def start(self) -> None:
        if self._processes.start_errors:
            raise self._processes.start_errors.pop(0)
        self.sentinel, self._alive = os.pipe()
        outcome = self._processes.outcomes.get(self._worker.number, [f"bear/1 of worker {self._worker.number}"])
        if outcome is not None:
            self._worker.report(outcome)
        else:
            self._pipe = os.dup(self._worker.supervisor.fileno())  # the supervisor closes its own copy
        self._processes.started.append(self)

    def end(self) -> None:
        for name in ("_alive", "_pipe"):
            if (descriptor := vars(self).pop(name, None)) is not None:
                os.close(descriptor)

    kill = end

    def join(self) -> None:
        os.close(self.sentinel)


@pytest.fixture
def processes(monkeypatch) -> Processes:
    """Replace the processes that the supervisor starts, and the delays between two starts."""
    processes = Processes()
    monkeypatch.setattr(supervisor, "get_context", lambda _: processes)
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(supervisor, "_MAX_DELAY_S", 0.01)
    return processes


@pytest.mark.parametrize(
    ("error", "reason", "is_expected"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "worker 1 cannot be started: [Errno 24]", True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "worker 1 cannot be started: [Err", True),
        (MemoryError(), "worker 1 cannot be started: MemoryError", True),
        (ZeroDivisionError("injected"), "injected", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_lost_worker_is_started_until_it_serves(processes, error, reason, is_expected):
    """A worker that ended and cannot be started for a while serves again later.

    The log has an event for the end and for each failed start, with the numbers of workers; an unexpected error has a
    traceback. SIGTERM while the worker is missing ends the supervisor.
    """
    workers = supervisor._Workers(Settings(model=Path("none"), workers=2))
    before = background.errors()[ComponentName.WORKER]
    with capture_logs() as log, Stop(ends_process=False) as stop:
        running = asyncio.create_task(workers.run(stop, metrics_address=""))
        await until(lambda: workers.counts() == {"serving": 2, "wanted": 2})
        processes.start_errors = [error] * FAILED_STARTS
        processes.started[0].end()
        await until(lambda: len(processes.started) == 3 and workers.counts()["serving"] == 2)
        assert background.errors()[ComponentName.WORKER] == before + 1 + FAILED_STARTS
        processes.start_errors = [error] * 10_000
        processes.started[1].end()
        await until(lambda: workers.counts() == {"serving": 1, "wanted": 2})
        stop.handle(15)
        await running
        processes.started[2].end()
        await workers.stop(stop)
    events = [event for event in log if event["event"] in ("worker not started, trying again", "worker serves again")]
    first = events[:FAILED_STARTS]
    assert [(event["reason"].startswith(reason), event["serving"], event["wanted"]) for event in first] == (
        [(True, 1, 2)] * FAILED_STARTS
    )
    assert [event["exc_info"] is None for event in first] == [is_expected] * FAILED_STARTS
    assert {"event": "worker serves again", "log_level": "info", "worker": 1, "serving": 2, "wanted": 2} in events


async def test_a_first_start_that_fails_ends_the_supervisor(processes):
    """If a worker cannot be started at the start of the service, the supervisor raises an error for the operator."""
    processes.start_errors = [OSError(errno.EMFILE, "Too many open files")]
    workers = supervisor._Workers(Settings(model=Path("none"), workers=1))
    with Stop(ends_process=False) as stop:
        with pytest.raises(WorkerLost, match=r"worker 1 cannot be started: .*Too many open files"):
            await workers.run(stop, metrics_address="")
        await workers.stop(stop)


async def test_workers_that_fail_one_after_the_other_end_the_supervisor_with_the_cause(processes):
    """While the supervisor stops the workers after an error of the first one, the error of another one changes nothing.

    Two tasks that wait for the end of one process would lose one of the two wake-ups.
    """
    processes.outcomes = {1: WorkerLost("no such model file"), 2: None}
    workers = supervisor._Workers(Settings(model=Path("none"), workers=2, lame_duck_s=0, drain_s=0))
    with Stop(ends_process=False) as stop:
        with pytest.raises(WorkerLost, match="no such model file"):
            await workers.run(stop, metrics_address="")
        assert len(asyncio.all_tasks()) == 1  # no start goes on
        stopping = asyncio.create_task(workers.stop(stop))
        await asyncio.sleep(0)
        processes.started[1].end()
        await asyncio.wait_for(stopping, 5)


def test_the_supervisor_reports_its_workers_and_errors(processes):
    """The metrics of the supervisor have the numbers of workers, and the errors of its own components."""
    workers = supervisor._Workers(Settings(model=Path("none"), workers=3))
    samples = [sample for metric in workers.metrics() for sample in metric.samples]
    assert {sample.labels["worker"] for sample in samples} == {"supervisor"}
    values = {sample.labels.get("state"): sample.value for sample in samples if sample.name == "sketchbatch_workers"}
    assert values == {"wanted": 3, "serving": 0}
    counted = {sample.labels["component"] for sample in samples if "background_errors_total" in sample.name}
    assert counted == set(ComponentName)
