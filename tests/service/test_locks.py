"""Test that locks which requests need are not held during slow work: copies of counts, clocks, reading of files.

The tests of the batcher and of the thread pool check that futures are settled without their locks.
"""

import sys
import threading
from concurrent import futures

import pytest
from fakes import drawings
from sketchbatch_service.batching.row_queue import Request
from sketchbatch_service.batching.statistics import Duration, ModelStatistics
from sketchbatch_service.transport.file_reloader import FileReloader
from sketchbatch_service.transport.status import CallEnds


def is_blocked(work) -> bool:
    """Run `work` on another thread; return whether it waits for a lock that this thread holds."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    return thread.is_alive()


def model_counts():
    """Return functions that count an event of a model, and that read the number of events."""
    statistics = ModelStatistics()
    return lambda: statistics.add_codec(encoding_s=0.001), lambda: statistics.counts().encoding.total().count


def call_counts():
    """Return functions that count an ended call of a server, and that read the number of calls."""
    ends = CallEnds().of_method("/Service/Method")
    return lambda: ends.add(0, 0.001), lambda: ends.histograms()[0][1].total().count


@pytest.mark.parametrize("functions", [model_counts, call_counts])
def test_counts_are_copied_without_the_lock_that_counting_takes(functions):
    """While one thread reads the counts, others can count: reading calls no function under the lock of the counts."""
    count, read = functions()
    called, blocking = [], []

    def count_on_another_thread(frame, event, _):
        if event == "call" and not blocking:
            called.append(frame.f_code.co_qualname)
            blocking.extend(called[-1:] if is_blocked(count) else [])

    count()
    sys.setprofile(count_on_another_thread)
    try:
        read()
    finally:
        sys.setprofile(None)
    assert (blocking, len(called) > 2) == ([], True)
    assert read() == 1 + len(called)


def test_failures_are_counted_by_a_clock_that_is_read_without_the_lock():
    """While one thread reads the clock to count a failed request, others can count."""
    blocked = []
    statistics = ModelStatistics(lambda: blocked.append(is_blocked(lambda: statistics.add_codec(encoding_s=0))) or 3.0)
    statistics.add_failure(Request(drawings(1), expires_at=9.0, queued_at=1.0))
    assert (blocked, statistics.counts().fail) == ([False], Duration(1, 2.0))


def test_a_file_is_read_again_without_making_other_threads_wait(tmp_path):
    """While one thread reads a changed file, which may take long, other threads use the previous content."""
    path, is_reading, goes_on = tmp_path / "file", threading.Event(), threading.Event()
    path.write_text("one")
    goes_on.set()

    def read() -> str:
        is_reading.set()
        assert goes_on.wait(10)
        return path.read_text()

    reloader = FileReloader([path], read)
    is_reading.clear()
    goes_on.clear()
    path.write_text("second")
    with futures.ThreadPoolExecutor(2) as pool:
        reading = pool.submit(reloader.reload_if_changed)
        assert is_reading.wait(5)
        other = pool.submit(reloader.reload_if_changed)
        try:
            assert (other.result(5), reloader.content) == (None, "one")
        finally:
            goes_on.set()
        assert (reading.result(5), reloader.content) == ("second", "second")
