"""Keep background threads and tasks running: log and count each unexpected exception, then try again with back-off.

Each thread or task owns a `Component`. It calls `record_error` after an exception, waits for the returned delay, and
tries again. `keep_running` and `keep_task_running` do this for a whole loop.

A component counts as failing after three consecutive errors, as a model does. The health monitor then reports
NOT_SERVING if the service cannot work without the component.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import StrEnum

import structlog

log = structlog.get_logger()

FAILING_ERRORS = 3  # consecutive errors after which a component counts as failing: one error may be chance

_FIRST_DELAY_S = 0.05
_MAX_DELAY_S = 1.0  # a service whose cause of failure was removed must work again soon


class ComponentName(StrEnum):
    """The values of the label `component` of the metric `sketchbatch_background_errors_total`."""

    CREDENTIALS = "credential_reloader"
    HEALTH_MONITOR = "health_monitor"
    LEADER = "leader"  # the thread of the pool that polls for requests
    LIMIT_MONITOR = "limit_monitor"  # the task that compares connections and open files with their limits
    LISTENER = "listener"  # the task of the transport `aio` that opens the ports again after a failure of the server
    METRICS_PORT = "metrics_port"
    MODEL_WATCHER = "model_watcher"
    OTHER = "other"  # exceptions that no component handles
    PROBE_PORT = "probe_port"
    RECEIVE_LIMIT = "receive_limit"  # the task that ends calls whose request does not arrive
    RPC_HANDLER = "rpc_handler"  # the code around a handler: errors of a handler itself are answered to its client
    SUPERVISOR_PIPE = "supervisor_pipe"  # the thread of a worker that sends its metrics to the supervisor
    THREAD_POOL = "thread_pool"  # the threads that run batches
    WORKER = "worker"  # a worker process that ended or did not start; counted by the supervisor


_errors = Counter(dict.fromkeys(ComponentName, 0))
_counting = threading.Lock()


def count_error(component: ComponentName) -> None:
    """Count an error that the caller has logged."""
    with _counting:
        _errors[component] += 1


def errors() -> dict[ComponentName, int]:
    """Return the number of errors in this process by component."""
    with _counting:
        return dict(_errors)


class Component:
    """The consecutive errors of one background thread or task. Thread-safe.

    Args:
        name: Names the component in the log and in the metric.
        first_delay_s: Delay after the first error; it doubles with each further error.
        max_delay_s: Longest delay.
    """

    def __init__(
        self, name: ComponentName, *, first_delay_s: float = _FIRST_DELAY_S, max_delay_s: float = _MAX_DELAY_S
    ) -> None:
        self.name = name
        self.on_health: Callable[[], object] = lambda: None  # called after a change of `is_failing`, on any thread
        self._first_delay_s = first_delay_s
        self._max_delay_s = max_delay_s
        self._consecutive_errors = 0
        self._lock = threading.Lock()

    @property
    def is_failing(self) -> bool:
        """Return whether at least the last `FAILING_ERRORS` attempts failed."""
        return self._consecutive_errors >= FAILING_ERRORS

    def record_error(self, error: BaseException) -> float:
        """Log `error` with its traceback and count it; return the delay before the next attempt, in seconds."""
        delay_s = self.count_error()
        log.error("background error, trying again", component=self.name, retry_in_s=delay_s, exc_info=error)
        return delay_s

    def count_error(self) -> float:
        """Count an error that the caller logs; return the delay before the next attempt, in seconds."""
        count_error(self.name)
        with self._lock:
            delay_s = min(self._max_delay_s, self._first_delay_s * 2.0 ** min(self._consecutive_errors, 30))
            self._consecutive_errors += 1
            is_failing_now = self._consecutive_errors == FAILING_ERRORS
        if is_failing_now:
            self.on_health()
        return delay_s

    def record_success(self) -> None:
        """End a series of errors; costs next to nothing if there was none."""
        if not self._consecutive_errors:
            return
        with self._lock:
            was_failing, self._consecutive_errors = self.is_failing, 0
        if was_failing:
            log.info("background component works again", component=self.name)
            self.on_health()


def keep_running(component: Component, work: Callable[[], object], stopping: threading.Event) -> None:
    """Call `work` until it returns normally or `stopping` is set; call it again after an exception. Runs on a thread.

    `work` calls `component.record_success` whenever it has worked.
    """
    while not stopping.is_set():
        try:
            work()
            return
        except BaseException as exc:  # SystemExit, too: Python ends a thread with it silently
            delay_s = component.record_error(exc)
        stopping.wait(delay_s)


async def keep_task_running(component: Component, work: Callable[[], Awaitable[object]]) -> None:
    """Await `work()` until it returns normally or the task is cancelled; call it again after an exception.

    `work` calls `component.record_success` whenever it has worked.
    """
    while True:
        try:
            await work()
            return
        except Exception as exc:
            delay_s = component.record_error(exc)
        await asyncio.sleep(delay_s)
