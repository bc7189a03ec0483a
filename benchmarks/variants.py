"""Compare the variants of a model on ONNX Runtime's CPU provider: rows/s by threads and rows per call.

Each model runs in its own process for every number of threads. Models are interleaved and repeated, so that a ratio to
the first model compares neighbouring measurements; the result is the median. CPU time is measured in addition to wall
time, because other work changes it less. Writes benchmarks/results/DATE-variants.json and prints a table.
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
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS_PER_CALL = (64, 256, 1024)
THREADS = (1, 2)
MEASURED_S = 0.5  # shortest duration of a measurement


def main() -> None:
    """Compare the models `--repeats` times or, with --threads, measure only the first model, in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="Model files; the others are compared with the first.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        print(json.dumps(measure(arguments.models[0], arguments.threads)))
        return
    if missing := [str(path) for path in arguments.models if not path.is_file()]:
        sys.exit(f"no such model file: {', '.join(missing)}; sketchbatch-train export --variant int8 writes them")
    repeats = [
        {(path, threads): run_apart(path, threads) for threads in THREADS for path in arguments.models}
        for _ in range(arguments.repeats)
    ]
    write(arguments.models, repeats)


def run_apart(path: Path, threads: int) -> dict[str, list[float]]:
    """Run `measure` in a new process."""
    words = [sys.executable, __file__, str(path), "--threads", str(threads)]
    measured: dict[str, list[float]] = json.loads(
        subprocess.run(words, check=True, capture_output=True, text=True).stdout
    )
    return measured


def measure(path: Path, threads: int) -> dict[str, list[float]]:
    """Return rows per wall second and per CPU second for each number of rows in ROWS_PER_CALL."""
    import numpy as np

    session = open_session(path, threads)
    found: dict[str, list[float]] = {"rows_per_s": [], "rows_per_cpu_s": []}
    for rows in ROWS_PER_CALL:
        bitmaps = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), np.uint8)
        session.run(["scores"], {"bitmaps": bitmaps})
        calls, started_at, cpu_started_at = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < started_at + MEASURED_S:
            session.run(["scores"], {"bitmaps": bitmaps})
            calls += 1
        found["rows_per_s"].append(calls * rows / (time.perf_counter() - started_at))
        found["rows_per_cpu_s"].append(calls * rows / (time.process_time() - cpu_started_at))
    return found


def open_session(path: Path, threads: int) -> Any:
    """Open a session on the CPU without spinning, because spinning threads would count as CPU time."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # hides warnings about float16 nodes that the CPU runs as float32
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write(models: list[Path], repeats: list[dict[tuple[Path, int], dict[str, list[float]]]]) -> None:
    """Print the table and write the results file."""
    import onnxruntime as ort

    now = datetime.now(UTC)
    results = {
        "date": now.isoformat(timespec="seconds"),
        "command": "python -m benchmarks variants",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "vnni": has_vnni()},
        "versions": {"python": platform.python_version(), "onnxruntime": ort.__version__},
        "models": [describe(path) for path in models],
        "repeats": len(repeats),
        "rows_per_call": ROWS_PER_CALL,
        "measured": [summary(path, models[0], threads, repeats) for threads in THREADS for path in models],
    }
    print_table(results)
    path = HERE / "results" / f"{now:%Y-%m-%d}-variants.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"-> {path.relative_to(HERE.parent)}")


def describe(path: Path) -> dict[str, Any]:
    """Return the metadata of a model file and the metrics that the file stores for the held-out drawings."""
    metadata = open_session(path, 1).get_modelmeta().custom_metadata_map
    metrics = json.loads(metadata.get("sketchbatch.metrics", "{}"))
    inside = path.resolve().is_relative_to(HERE.parent)
    return {
        "file": path.resolve().relative_to(HERE.parent).as_posix() if inside else path.name,
        "name": metadata.get("sketchbatch.name", ""),
        "created": metadata.get("sketchbatch.created", ""),
        "size_bytes": path.stat().st_size,
        "metrics": {"variant": path.stem} | metrics,
    }


def summary(path: Path, first: Path, threads: int, repeats: list[Any]) -> dict[str, Any]:
    """Return median rates for each number of rows in ROWS_PER_CALL, and median ratios to the model file `first`."""
    found: dict[str, Any] = {"variant": describe(path)["metrics"]["variant"], "threads": threads}
    for name in ("rows_per_s", "rows_per_cpu_s"):
        rates = [repeat[path, threads][name] for repeat in repeats]
        bases = [repeat[first, threads][name] for repeat in repeats]
        ratios = [[rate / base for rate, base in zip(*pair, strict=True)] for pair in zip(rates, bases, strict=True)]
        found[name] = [round(statistics.median(at_rows)) for at_rows in zip(*rates, strict=True)]
        found[f"{name}_ratio"] = [round(statistics.median(at_rows), 2) for at_rows in zip(*ratios, strict=True)]
    return found


def print_table(results: dict[str, Any]) -> None:
    """Print rows/s and ratios to the first model, with a line per model and number of threads."""
    print("rows per call".ljust(20), *(f"{rows:>16}" for rows in ROWS_PER_CALL))
    for line in results["measured"]:
        cells = zip(line["rows_per_s"], line["rows_per_s_ratio"], strict=True)
        name = f"{line['variant']}, {line['threads']} thread{'s' * (line['threads'] > 1)}"
        print(name.ljust(20), *(f"{rate:>9} ({ratio:.2f})".rjust(16) for rate, ratio in cells))


def has_vnni() -> bool | None:
    """Return whether the CPU has instructions for 8-bit products; None if Linux lists no CPU flags."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return "vnni" in flags if flags else None


def cpu_name() -> str:
    """Return the name of the CPU as Linux states it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
