"""Test that each log event is one JSON line, whichever library wrote the event."""

import json
import subprocess
import sys

PROGRAM = """
import logging, threading, warnings
import structlog
from sketchbatch_service.app import logs

logs.set_up("info", worker=3)
structlog.get_logger().info("ours", rows=5)
structlog.get_logger().debug("too little")
logging.getLogger("library").error("theirs", exc_info=ValueError("why"))
logging.getLogger("library").debug("too little")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise KeyError("end")
"""


def test_every_event_is_one_json_line():
    """Each log event is one JSON line with a level, a time and the number of the worker.

    This is true for our own events, events of libraries, warnings and unhandled exceptions.
    """
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in finished.stderr.splitlines()]
    logged = [(event["level"], event["message"].splitlines()[0].split(": ")[-1]) for event in events]
    assert logged == [
        ("info", "ours"),
        ("error", "theirs"),
        ("warning", "old"),
        ("error", "unhandled exception in a thread"),
        ("error", "unhandled exception"),
    ]
    assert all(event["worker"] == 3 and event["time"] for event in events)
    assert (events[0]["rows"], events[1]["logger"]) == (5, "library")
    assert ["ValueError: why" in events[1]["exception"], "ZeroDivisionError" in events[3]["exception"]] == [True, True]
