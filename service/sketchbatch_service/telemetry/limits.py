"""Fit the connections into the limit of open files, and log when connections or open files reach their limit.

gRPC is silent in both cases: it closes connections beyond its limit at once, and without a free file descriptor it does
not accept connections, so that new clients wait until their deadlines pass.
"""

import asyncio
import resource
from collections.abc import Callable

import structlog

from ..background import Component, ComponentName, keep_task_running
from ..errors import TooFewFiles
from ..transport.listening import open_descriptors

log = structlog.get_logger()

_OTHER_FILES = 32  # file descriptors for probes, scrapes, model files and logs, besides those that are open at start
_FILES_FULL, _FILES_FREE = 0.9, 0.8  # shares of the limit of open files: of the warning, and of its end
_CONNECTIONS_FREE = 0.9  # share of the limit of connections below which the warning ends
_EVERY_S = 1.0
_MAX_DELAY_S = 60.0  # longest delay after an error


def fitting_connections(wanted: int) -> int:
    """Return how many connections fit into the limit of open files: `wanted`, or fewer with a warning.

    The soft limit of this process is raised if necessary, as far as the hard limit allows.

    Raises:
        TooFewFiles: Not a single connection fits.
    """
    others = len(open_descriptors()) + _OTHER_FILES
    limit = _raised_limit(others + wanted)
    fitting = min(wanted, limit - others)
    if fitting < 1:
        raise TooFewFiles(f"the limit of open files must be at least {others + 1}, got {limit}: raise ulimit -n")
    if fitting < wanted:
        log.warning(
            "fewer connections: the limit of open files is too low",
            max_connections=fitting,
            wanted=wanted,
            open_files_limit=limit,
            to_do=f"raise the limit to {others + wanted}, or lower --max-connections",
        )
    return fitting


def _raised_limit(needed: int) -> int:
    """Raise the soft limit of open files to `needed` if the hard limit allows it; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return needed
    if soft < needed and soft != hard:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


class LimitMonitor:
    """Log when the connections or the open files of this process reach their limit, and when they no longer do."""

    def __init__(self, connections: Callable[[], int], max_connections: int) -> None:
        self._connections = connections
        self._max_connections = max_connections
        self._is_full = self._has_few_files = False

    async def run(self) -> None:
        """Check every second until this coroutine is cancelled; a check takes 2 ms with 1,000 open files."""
        component = Component(ComponentName.LIMIT_MONITOR, max_delay_s=_MAX_DELAY_S)

        async def check_every_second() -> None:
            while True:
                self.check()
                component.record_success()
                await asyncio.sleep(_EVERY_S)

        await keep_task_running(component, check_every_second)

    def check(self) -> None:
        """Compare the numbers with their limits, and log a change."""
        files = len(open_descriptors())
        self._check_files(files, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        # Counting connections takes longer than counting open files, of which each connection has one.
        self._check_connections(self._connections() if self._is_full or files >= self._max_connections else 0)

    def _check_files(self, files: int, limit: int) -> None:
        if limit == resource.RLIM_INFINITY:
            return
        share = _FILES_FREE if self._has_few_files else _FILES_FULL
        had_few, self._has_few_files = self._has_few_files, files >= limit * share
        if self._has_few_files and not had_few:
            log.warning("few file descriptors left: without any, new clients wait in vain", open=files, limit=limit)
        elif had_few and not self._has_few_files:
            log.info("enough file descriptors again", open=files, limit=limit)

    def _check_connections(self, connections: int) -> None:
        limit = self._max_connections
        share = _CONNECTIONS_FREE if self._is_full else 1
        was_full, self._is_full = self._is_full, connections >= limit * share
        if self._is_full and not was_full:
            log.warning("connection limit reached: further connections are closed", open=connections, limit=limit)
        elif was_full and not self._is_full:
            log.info("connections below their limit again", open=connections, limit=limit)
