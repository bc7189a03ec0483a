"""Test that reached limits of connections and of open files are logged, and that connections fit into open files."""

import resource

import pytest
from sketchbatch_service.errors import TooFewFiles
from sketchbatch_service.telemetry import limits
from sketchbatch_service.telemetry.limits import LimitMonitor, fitting_connections
from structlog.testing import capture_logs


@pytest.fixture
def files(monkeypatch):
    """Set the number of open files and their soft and hard limit, as the process appears to have them."""

    def set_files(open_files: int, soft: int, hard: int) -> None:
        current[:] = [open_files, soft, hard]

    current = [0, 0, 0]
    monkeypatch.setattr(limits, "open_descriptors", lambda: range(current[0]))
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(current[1:]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: set_files(current[0], *pair))
    return set_files


@pytest.mark.parametrize(
    ("soft", "hard", "fitting", "soft_after"),
    [
        (1024, 1024, 900, 1024),
        (256, 4096, 900, 962),
        (256, resource.RLIM_INFINITY, 900, 962),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 900, resource.RLIM_INFINITY),
        (256, 512, 450, 512),
        (64, 64, 2, 64),
    ],
)
def test_connections_fit_into_the_limit_of_open_files(files, soft, hard, fitting, soft_after):
    """The soft limit is raised as far as needed and allowed; if it stays too low, fewer connections are accepted.

    30 files are open, and 32 more are reserved.
    """
    files(30, soft, hard)
    with capture_logs() as log:
        assert fitting_connections(900) == fitting
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft_after
    assert [event["max_connections"] for event in log] == ([] if fitting == 900 else [fitting])


def test_a_limit_without_room_for_a_connection_stops_the_start(files):
    """If not a single connection fits into the limit of open files, the error names the limit that is needed."""
    files(30, 62, 62)
    with pytest.raises(TooFewFiles, match="must be at least 63, got 62"):
        fitting_connections(900)


def test_few_file_descriptors_are_logged_once_and_again_when_there_are_enough(files):
    """A warning is logged when 90 % of the file descriptors are open, and an event when less than 80 % are open."""
    monitor = LimitMonitor(lambda: 0, 900)
    with capture_logs() as log:
        for open_files in (89, 90, 99, 100, 85, 79, 80):
            files(open_files, 100, 100)
            monitor.check()
    assert [(event["log_level"], event["open"], event["limit"]) for event in log] == [
        ("warning", 90, 100),
        ("info", 79, 100),
    ]


def test_a_reached_limit_of_connections_is_logged_once_and_again_when_it_is_left(files):
    """A warning is logged when all connections are in use, and an event when less than 90 % of them are."""
    files(500, 1000, 1000)
    connections = [0]
    monitor = LimitMonitor(lambda: connections[0], 100)
    with capture_logs() as log:
        for connections[0] in (99, 100, 100, 95, 89, 99):
            monitor.check()
    assert [(event["log_level"], event["open"], event["limit"]) for event in log] == [
        ("warning", 100, 100),
        ("info", 89, 100),
    ]


def test_connections_are_counted_only_if_they_may_have_reached_their_limit(files):
    """While fewer files are open than connections are allowed, the connections are not counted, which would be slow."""
    files(99, 1000, 1000)

    def count() -> int:
        raise AssertionError("counted")

    LimitMonitor(count, 100).check()


class _Stop(BaseException):
    """End the loop of the monitor."""


async def test_the_monitor_goes_on_after_an_error(monkeypatch):
    """A failed check is logged with its cause, and the next check runs later."""
    outcomes = iter([OSError("no /dev/fd"), None])
    pauses = []

    def check() -> None:
        if outcome := next(outcomes):
            raise outcome

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise _Stop

    monitor = LimitMonitor(lambda: 0, 100)
    monkeypatch.setattr(monitor, "check", check)
    monkeypatch.setattr(limits.asyncio, "sleep", sleep)
    with capture_logs() as log, pytest.raises(_Stop):
        await monitor.run()
    assert [(event["event"], event["component"]) for event in log] == [
        ("background error, trying again", "limit_monitor")
    ]
    assert pauses == [0.05, 1.0]
