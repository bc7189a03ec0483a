"""Measure CUDA: the hardware's limits, ONNX Runtime by batch size, the service over gRPC, and execution slots.

Needs a plain Python with numpy, grpcio, protobuf, onnx and onnxruntime-gpu (docs/gpu.md), and finds our packages by
their folders. Each measurement runs in its own process (`gpu_parts.py`), so that a measurement that breaks CUDA does
not affect the others. After `--budget-s` seconds no measurement continues; the results name each measurement that is
missing. Prints tables and writes one JSON file. `--provider cpu` tries the script without a GPU; its figures do not
describe CUDA.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from variants import cpu_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDERS = [str(ROOT / folder) for folder in ("protos", "service", "client", "trainer", "tests")]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")])}

GRAPHS = {"enable_cuda_graph": "1"}
CHANNELS_LAST = {"prefer_nhwc": "1"}
RAW = (  # name of a measurement, variant, settings of ONNX Runtime's CUDA provider
    ("float32", "float32", {"use_tf32": "0"}),
    ("float32, graphs", "float32", {"use_tf32": "0"} | GRAPHS),
    ("float32 channels last, graphs", "float32", {"use_tf32": "0"} | GRAPHS | CHANNELS_LAST),
    ("float32 as TF32 channels last, graphs", "float32", {"use_tf32": "1"} | GRAPHS | CHANNELS_LAST),
    ("float16", "float16", {"use_tf32": "0"}),
    ("float16, graphs", "float16", {"use_tf32": "0"} | GRAPHS),
    ("float16 channels last, graphs", "float16", {"use_tf32": "0"} | GRAPHS | CHANNELS_LAST),
)
RAW_ON_CPU = (("float32", "float32", {}), ("float16", "float16", {}))
VARIANTS = ("float32", "float16")
WORKERS = (1, 4, 8)

MODEL_S = 60.0
"""Largest number of seconds for reading the model; the time budget starts afterwards."""

MIN_LEFT_S = 5.0
"""Seconds of the time budget that must be left to start another measurement."""

CARD_TFLOPS = 790.0
"""Dense float16 TFLOP/s of an H200, measured with random matrices of side 8,192; --card-tflops overrides it."""


class Bench:
    """One benchmark run: the remaining time, the results, and the measurements that are missing."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.results: dict[str, Any] = {}
        self.not_measured: dict[str, str] = {}
        self._ends_at = time.monotonic() + MODEL_S  # deadline of reading the model; the time budget starts afterwards

    @property
    def left_s(self) -> float:
        """Return the seconds that remain until the deadline."""
        return self._ends_at - time.monotonic()

    def begin(self) -> None:
        """Start the time budget `--budget-s`."""
        self._ends_at = time.monotonic() + self.arguments.budget_s

    def part(self, name: str, key: str, *words: object, most_s: float = 90) -> Any:
        """Run the measurement `name` of gpu_parts.py; store its result under `name` and `key`, and return it or None.

        None means that the measurement failed or that the time was up.
        """
        flags = ["--provider", self.arguments.provider, "--measure-s", str(self.arguments.measure_s)]
        answer = self.run(f"{name}: {key}", [sys.executable, str(HERE / "gpu_parts.py"), name, *flags, *words], most_s)
        if answer is not None:
            self.results.setdefault(name, {})[key] = json.loads(answer.splitlines()[-1])
        return self.results.get(name, {}).get(key)

    def run(self, what: str, command: list[object], most_s: float) -> str | None:
        """Run `command`, return its output; if the time is up or `command` fails, record the reason, return None."""
        if self.left_s < MIN_LEFT_S:
            return self.leave_out(what, "the time was up")
        print(f"... {what}", file=sys.stderr, flush=True)
        try:
            words = list(map(str, command))
            options = {"env": ENVIRONMENT, "cwd": ROOT, "capture_output": True, "text": True}
            finished = subprocess.run(words, timeout=min(most_s, self.left_s), check=False, **options)
        except subprocess.TimeoutExpired as exc:
            return self.leave_out(what, f"took more than {exc.timeout:.0f} s")
        if finished.returncode:
            return self.leave_out(what, (finished.stdout + finished.stderr).strip()[-4000:])
        return finished.stdout

    def leave_out(self, what: str, why: str) -> None:
        """Record why `what` was not measured."""
        self.not_measured[what] = why
        print(f"not measured: {what}: {why}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print the tables and write the results."""
    arguments = parse()
    bench = Bench(arguments)
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "float16" / "1" / "model.onnx"
        files = {"float32": arguments.model, "float16": half}
        about = bench.part("model", "model", "--model", arguments.model, "--write-float16", half)
        if about is None:
            sys.exit("the model could not be read")
        print_floors(about, arguments.card_tflops)
        bench.begin()
        if arguments.provider == "cuda":
            run_tests(bench)
        files = {variant: file for variant, file in files.items() if variant in arguments.variants}
        measure_raw(bench, files)
        measure_service(bench, files)
        measure_engine(bench, files)
    print_tables(bench)
    write(bench)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "bear-cat-dog" / "2" / "model.onnx")
    parser.add_argument("--rows", type=int, default=4096, help="Most rows in one model call.")
    parser.add_argument("--request-rows", type=int, default=1024, help="Rows per request to the service.")
    parser.add_argument("--budget-s", type=float, default=450, help="Seconds after which no measurement starts.")
    parser.add_argument(
        "--measure-s", type=float, default=0.3, help="Seconds per figure; ten times that for the service."
    )
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--card-tflops", type=float, default=CARD_TFLOPS)
    parser.add_argument("--output", type=Path, help="Where the JSON goes, if not to benchmarks/results/.")
    return parser.parse_args()


def print_floors(about: dict[str, Any], card_tflops: float) -> None:
    """Print the limits of rows/s that the card and its bus set, before the measurements start."""
    mflop, bus = about["mflop_per_row"], about["bus_gb_per_s"]
    about["floors"] = {"card_tflops": card_tflops, "rows_per_s_by_the_card": card_tflops * 1e6 / mflop}
    print(f"floor, card: {mflop:.1f} MFLOP per row at {card_tflops:g} TFLOP/s: {card_tflops / mflop:,.1f} M rows/s")
    if bus:
        about["floors"]["rows_per_s_by_the_bus"] = bus * 1e9 / 784
        print(f"floor, bus: 784 bytes per row at {bus:.1f} GB/s from pinned memory: {bus * 1e3 / 784:,.1f} M rows/s")


def run_tests(bench: Bench) -> None:
    """Run the tests of tests/gpu, which compare the scores of every bucket with the CPU's scores."""
    words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ROOT, "--confcutdir", ROOT / "tests" / "gpu"]
    command = [
        sys.executable,
        *words,
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-rs",
        ROOT / "tests" / "gpu",
    ]
    output = bench.run("tests/gpu", command, 150)
    bench.results["tests"] = output.strip().splitlines()[-1] if output else "failed"
    print(f"tests/gpu: {bench.results['tests']}")


def measure_raw(bench: Bench, files: dict[str, Path]) -> None:
    """Measure ONNX Runtime alone, each setting in its own process; each bucket's scores are compared with the CPU's."""
    for name, variant, options in RAW if bench.arguments.provider == "cuda" else RAW_ON_CPU:
        if variant not in files:
            continue
        words = ("--model", files[variant], "--rows", bench.arguments.rows, "--options", json.dumps(options))
        bench.part("raw", name, *words)


def measure_service(bench: Bench, files: dict[str, Path]) -> None:
    """Measure rows/s over gRPC by number of workers, with two client processes more than workers."""
    help_text = bench.run("--workers", [sys.executable, "-m", "sketchbatch_service", "--help"], 30) or ""
    for variant, file in files.items():
        for workers in bench.arguments.workers:
            if workers > 1 and "--workers" not in help_text:
                bench.leave_out(f"service: {variant}, {workers} workers", "this service has no --workers")
                continue
            if bench.left_s < MIN_LEFT_S:
                bench.leave_out(f"service: {variant}, {workers} workers", "the time was up")
                continue
            measure_one_service(bench, variant, file, workers)


def measure_one_service(bench: Bench, variant: str, file: Path, workers: int) -> None:
    """Measure one service with more client processes than workers; if it has one worker, also measure single rows."""
    key, seconds = f"{variant}, {workers} workers", 10 * bench.arguments.measure_s
    flags = ["--model", file, "--provider", bench.arguments.provider, "--max-batch-rows", bench.arguments.rows]
    try:
        with serving(
            *flags, *(["--workers", workers] if workers > 1 else []), most_s=min(120, bench.left_s)
        ) as address:
            words = ("--address", address, "--callers", workers + 2, "--rows", bench.arguments.request_rows)
            bench.part("service", key, *words, "--seconds", seconds, most_s=seconds + 40)
            if workers == 1:
                words = ("--address", address, "--callers", 1, "--rows", 1, "--in-flight", 1)
                bench.part("one_row", variant, *words, "--seconds", seconds / 2, most_s=seconds + 40)
    except RuntimeError as exc:
        bench.leave_out(f"service: {key}", str(exc))


def measure_engine(bench: Bench, files: dict[str, Path]) -> None:
    """Measure the gain of a second execution slot, without gRPC."""
    for variant, file in files.items():
        for slots in (1, 2):
            words = ("--model", file, "--rows", bench.arguments.rows, "--slots", slots)
            bench.part("engine", f"{variant}, {slots} slots", *words)


@contextmanager
def serving(*flags: object, most_s: float) -> Iterator[str]:
    """Serve on a free port; yield the address. Kill the service and its workers after `most_s`.

    Raises:
        RuntimeError: The service ended before it was ready; the message contains the output of the service.
    """
    command = [sys.executable, "-m", "sketchbatch_service", "--address", "127.0.0.1:0", *map(str, flags)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr
    timer = threading.Timer(most_s, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        lines: list[str] = []
        while '"SERVING"' not in (lines[-1] if lines else ""):
            lines.append(process.stderr.readline())
            if not lines[-1]:
                raise RuntimeError(f"the service did not start: {''.join(lines)[-4000:]}")
        yield json.loads(lines[-1])["address"]
    finally:
        process.terminate()
        process.communicate()  # returns when the service ends or the timer kills it
        timer.cancel()


def print_tables(bench: Bench) -> None:
    """Print rows/s, and for engine and service the ratio to the best rate of ONNX Runtime with the same variant.

    The rate of ONNX Runtime includes copies and is the best over all batch sizes and layouts.
    """
    best: dict[str, float] = {}
    for name, found in bench.results.get("raw", {}).items():
        print(f"\nraw, {name}: largest difference from the CPU {max(found['difference']):.1e}")
        for line in ("rows", "ms_computing", "ms_with_copies"):
            print(line.ljust(16), *(f"{value:>9.4g}" for value in found[line]))
        if "TF32" not in name:
            variant = name.split(",")[0].split()[0]
            rates = [rows / ms * 1e3 for rows, ms in zip(found["rows"], found["ms_with_copies"], strict=True)]
            best[variant] = max(best.get(variant, 0), *rates)
    for part in ("engine", "service"):
        print()
        for key, found in bench.results.get(part, {}).items():
            ratio = found["rows_per_s"] / best[key.split(",")[0]] if key.split(",")[0] in best else 0
            found["of_raw"] = round(ratio, 3)
            print(f"{part}, {key}".ljust(34), f"{found['rows_per_s']:>12,.0f} rows/s {ratio:>7.2f} of raw")
    for variant, found in bench.results.get("one_row", {}).items():
        print(f"one row at a time, {variant}".ljust(34), f"{found['p50_ms']:>12.3f} ms (p50, plain stub)")


def write(bench: Bench) -> None:
    """Write the results as a JSON file."""
    now, arguments = datetime.now(UTC), bench.arguments
    results = {
        "date": now.isoformat(timespec="seconds"),
        "command": "make bench-gpu" + (" PROVIDER=cpu" if arguments.provider == "cpu" else ""),
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "gpus": gpu_names()},
        "versions": {"python": platform.python_version()} | bench.results["model"]["model"].pop("versions"),
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("output", "model")},
        **bench.results,
        "not_measured": bench.not_measured,
    }
    dry = "" if arguments.provider == "cuda" else "-on-cpu"
    path = arguments.output or HERE / "results" / f"{now:%Y-%m-%d}-gpu{dry}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"-> {path}")


def gpu_names() -> list[str]:
    """Return each card with its driver from nvidia-smi; an empty list if nvidia-smi is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


if __name__ == "__main__":
    main()
