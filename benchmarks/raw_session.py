"""Measure ONNX Runtime alone on the shipped model: rows/s by threads, spinning and rows per call.

Each setting runs in its own process, without the threads of other sessions. Settings are interleaved and repeated; the
result is the median. Writes benchmarks/results/DATE-raw-session.json and prints a table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from variants import cpu_name

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "bear-cat-dog" / "2" / "model.onnx"
ROWS_PER_CALL = (1, 8, 16, 32, 64, 128, 256, 1024)
SETTINGS = [(threads, spins) for threads in (1, 2) for spins in (True, False)]
MEASURED_ROWS = 4096  # rows that each measurement runs, but at least three calls


def main() -> None:
    """Run every setting `--repeats` times or, with --threads, measure one setting in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--spins", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        print(json.dumps(measure(arguments.threads, arguments.spins)))
        return
    repeats = [{setting: run_apart(*setting) for setting in SETTINGS} for _ in range(arguments.repeats)]
    rows_per_s = {
        f"{threads} threads, {'spinning' if spins else 'not spinning'}": [
            round(statistics.median(repeat[threads, spins][place] for repeat in repeats))
            for place in range(len(ROWS_PER_CALL))
        ]
        for threads, spins in SETTINGS
    }
    write(rows_per_s, arguments.repeats)


def run_apart(threads: int, spins: bool) -> list[float]:
    """Run `measure` in a new process."""
    words = [sys.executable, __file__, "--threads", str(threads), *(["--spins"] if spins else [])]
    measured: list[float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return measured


def measure(threads: int, spins: bool) -> list[float]:
    """Return rows/s for each number of rows in ROWS_PER_CALL."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    session = ort.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
    found = []
    for rows in ROWS_PER_CALL:
        bitmaps = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), np.uint8)
        session.run(["scores"], {"bitmaps": bitmaps})
        calls = max(3, MEASURED_ROWS // rows)
        started_at = time.perf_counter()
        for _ in range(calls):
            session.run(["scores"], {"bitmaps": bitmaps})
        found.append(calls * rows / (time.perf_counter() - started_at))
    return found


def write(rows_per_s: dict[str, list[int]], repeats: int) -> None:
    """Print the table and write the results file."""
    import onnxruntime as ort

    print("rows per call".ljust(26), *(f"{rows:>7}" for rows in ROWS_PER_CALL))
    for name, values in rows_per_s.items():
        print(name.ljust(26), *(f"{value:>7}" for value in values))
    now = datetime.now(UTC)
    results = {
        "date": now.isoformat(timespec="seconds"),
        "command": "python -m benchmarks raw-session",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version(), "onnxruntime": ort.__version__},
        "model": MODEL.relative_to(HERE.parent).as_posix(),
        "repeats": repeats,
        "rows_per_call": ROWS_PER_CALL,
        "rows_per_s": rows_per_s,
    }
    path = HERE / "results" / f"{now:%Y-%m-%d}-raw-session.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"-> {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
