"""The load generator: a process that sends requests to one peer, window by window.

Its first output line holds the scores of a few rows, for a check. Each input line is a JSON object that starts a
window; the next line ends it. After the last answer the process prints a JSON line: the number of requests, the seconds
from the first request to the last answer, latencies and its own CPU seconds. Thus every request is counted with its
whole duration.
"""

import argparse
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
from callers import at_rate
from peers import Bitmaps, Caller, find_peer

CHECKED_ROWS = 5


def main() -> None:
    """Connect to the peer, print the scores of a few rows for a check, and run the windows that stdin describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="NAME or NAME@STYLE.")
    parser.add_argument("--target", required=True, help="The server's address, or the model's path.")
    parser.add_argument("--drawings", type=Path, required=True, help="uint8 (rows, 28, 28), a .npy file.")
    parser.add_argument("--channels", type=int, required=True)
    arguments = parser.parse_args()
    peer = find_peer(arguments.peer, channels=arguments.channels)
    caller = peer.connect(arguments.target, peer)
    drawings = np.load(arguments.drawings)
    write({"scores": np.asarray(caller.classify(drawings[:CHECKED_ROWS])).tolist()})
    while line := sys.stdin.readline():
        write(run_window(caller, drawings, **json.loads(line)))


def write(result: dict[str, object]) -> None:
    """Print one JSON line."""
    print(json.dumps(result), flush=True)


def run_window(caller: Caller, drawings: Bitmaps, *, rows: int, in_flight: int, per_s: float) -> dict[str, object]:
    """Send requests until the next line arrives on stdin; return the counts of the window."""
    requests = cut(drawings, rows)
    stop = threading.Event()
    threading.Thread(target=stop_at_next_line, args=(stop,), daemon=True).start()
    started_at, cpu_started_s = time.perf_counter(), used_cpu_s()
    if per_s:
        latencies_s = at_rate(caller.classify, requests, per_s, in_flight, stop)
    else:
        latencies_s = caller.keep_in_flight(requests, in_flight, stop)
    took_s, cpu_s = time.perf_counter() - started_at, used_cpu_s() - cpu_started_s
    p50, p99 = np.percentile(latencies_s, [50, 99]) * 1000
    return {
        "requests": len(latencies_s),
        "rows": len(latencies_s) * rows,
        "took_s": took_s,
        "p50_ms": p50,
        "p99_ms": p99,
        "client_cpu_s": cpu_s,
    }


def used_cpu_s() -> float:
    """Return the CPU seconds of this process and of the programs that it has run."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def stop_at_next_line(stop: threading.Event) -> None:
    """Set `stop` when the next line arrives on stdin, or when stdin ends because the parent has exited."""
    sys.stdin.readline()
    stop.set()


def cut(drawings: Bitmaps, rows: int) -> list[Bitmaps]:
    """Cut `drawings` into requests of `rows` different drawings each."""
    return [drawings[start : start + rows] for start in range(0, len(drawings) - rows + 1, rows)]


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # exits without closing idle channels
