"""Run NVIDIA's perf_analyzer against our service over the Open Inference Protocol.

Starts `sketchbatch-serve` with the shipped models and measures `bear-cat-dog`. Installs perf_analyzer from the wheel
tritonclient 2.46.0, the last wheel that contains this tool. perf_analyzer needs Debian's libb64-0d. Writes
benchmarks/results/DATE-perf-analyzer.json and prints a table.
"""

import csv
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from variants import cpu_name

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "perf-analyzer"
MODEL = "bear-cat-dog"
WINDOW_MS = 2000

WORKLOADS = {  # rows per request, requests in flight, further flags of perf_analyzer
    "1 row x 1": (1, 1, []),
    "1 row x 32": (1, 32, ["--async"]),
    "1 row x 32, one stream": (1, 32, ["--streaming"]),
    "64 rows x 8": (64, 8, []),
    "1024 rows x 4": (1024, 4, []),
}
COLUMNS = {  # our names, and the columns of the tool's CSV
    "rows_per_s": "Inferences/Second",
    "p50_us": "p50 latency",
    "p99_us": "p99 latency",
    "queue_us": "Server Queue",
    "decoding_us": "Server Compute Input",
    "inference_us": "Server Compute Infer",
    "encoding_us": "Server Compute Output",
}


def main() -> None:
    """Measure every workload once, one after the other."""
    make = shutil.which("make") or "make"
    subprocess.run([make, "--no-print-directory", f".tools/{TOOLS.name}/.done"], cwd=ROOT, check=True)
    (TOOLS / "bin" / "perf_analyzer").chmod(0o755)
    with serving() as address:
        found = {name: measure(address, *workload) for name, workload in WORKLOADS.items()}
    write(found)


@contextmanager
def serving() -> Iterator[str]:
    """Serve the shipped models in a process on a free port; yield the address."""
    words = [Path(sys.executable).parent / "sketchbatch-serve", "--model", ROOT / "models", "--address", "127.0.0.1:0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        events = (json.loads(line) for line in process.stderr or [])
        yield next(event["address"] for event in events if event["message"] == "SERVING")
    finally:
        process.terminate()
        process.communicate()


def measure(address: str, rows: int, in_flight: int, further: list[str]) -> dict[str, float]:
    """Run perf_analyzer once; return the averages of three windows that perf_analyzer found stable."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.csv"
        words = [TOOLS / "bin" / "perf_analyzer", "-m", MODEL, "-u", address, "-i", "grpc", "-b", rows, *further]
        words += ["--concurrency-range", in_flight, "-p", WINDOW_MS, "-s", 50, "-f", file]
        libraries = next(TOOLS.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"))
        environment = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
        finished = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)
        if finished.returncode:
            sys.exit(f"perf_analyzer failed; is Debian's libb64-0d installed? {finished.stderr or finished.stdout}")
        line = next(csv.DictReader(file.read_text().splitlines()))
    return {name: float(line[column]) for name, column in COLUMNS.items()}


def write(found: dict[str, dict[str, float]]) -> None:
    """Print the table and write the results file."""
    print("".ljust(24), *(name.rjust(13) for name in COLUMNS))
    for workload, values in found.items():
        print(workload.ljust(24), *(f"{value:13,.0f}" for value in values.values()))
    now = datetime.now(UTC)
    results = {
        "date": now.isoformat(timespec="seconds"),
        "command": "python -m benchmarks perf-analyzer",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {
            "python": platform.python_version(),
            "perf_analyzer": "2.46.0",
            "grpcio": importlib.metadata.version("grpcio"),
            "onnxruntime": importlib.metadata.version("onnxruntime"),
        },
        "model": MODEL,
        "window_ms": WINDOW_MS,
        "found": found,
    }
    path = ROOT / "benchmarks" / "results" / f"{now:%Y-%m-%d}-perf-analyzer.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"-> {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
