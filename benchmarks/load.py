"""The load generator: a process of its own that asks one peer, window after window.

Reads a JSON line for each window, asks until the next line comes, waits for what is under way, and answers with a JSON
line: requests, the window's seconds from the first request to the last answer, latencies, its own CPU seconds. So every
request sent is counted, and all the time that it took. Its first line holds a few rows' scores, for a check.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from peers import Bitmaps, Caller, find_peer

CHECKED_ROWS = 5


def main() -> None:
    """Connects, says so, and runs the windows asked for on stdin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="NAME or NAME@STYLE.")
    parser.add_argument("--target", required=True, help="The server's address, or the model's path.")
    parser.add_argument("--drawings", type=Path, required=True, help="uint8 (rows, 28, 28), a .npy file.")
    parser.add_argument("--channels", type=int, required=True)
    arguments = parser.parse_args()
    peer = find_peer(arguments.peer, channels=arguments.channels)
    caller = peer.connect(arguments.target, peer)
    drawings = np.load(arguments.drawings)
    say({"scores": np.asarray(caller.classify(drawings[:CHECKED_ROWS])).tolist()})
    while line := sys.stdin.readline():
        say(run_window(caller, drawings, **json.loads(line)))


def say(result: dict[str, object]) -> None:
    """One line on stdout."""
    print(json.dumps(result), flush=True)


def run_window(caller: Caller, drawings: Bitmaps, *, rows: int, in_flight: int) -> dict[str, object]:
    """Asks until stdin's next line."""
    requests = cut(drawings, rows)
    stop = threading.Event()
    threading.Thread(target=stop_at_next_line, args=(stop,), daemon=True).start()
    started_at, cpu_started_s = time.perf_counter(), time.process_time()
    latencies_s = caller.keep_in_flight(requests, in_flight, stop)
    took_s, cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_started_s
    p50, p99 = np.percentile(latencies_s, [50, 99]) * 1000
    return {
        "requests": len(latencies_s),
        "rows": len(latencies_s) * rows,
        "took_s": took_s,
        "p50_ms": p50,
        "p99_ms": p99,
        "client_cpu_s": cpu_s,
    }


def stop_at_next_line(stop: threading.Event) -> None:
    """Also at stdin's end: whoever asked is gone."""
    sys.stdin.readline()
    stop.set()


def cut(drawings: Bitmaps, rows: int) -> list[Bitmaps]:
    """Requests of `rows` drawings each, no two alike."""
    return [drawings[start : start + rows] for start in range(0, len(drawings) - rows + 1, rows)]


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # idle channels need no farewell
