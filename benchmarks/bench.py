"""Compare our service with ONNX Runtime called in process and with other servers.

Each contestant runs the same workloads on the same models in one run, in turn, so that a ratio compares neighbouring
measurements. Each repeat starts servers and load generators again; the tables show medians. A whole run (`make bench`)
writes benchmarks/results/DATE-bench.json and a plot. If flags leave measurements out, the run writes to runs/bench/.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from networks import article, small
from peers import Peer, find_peer, find_peers
from plots import plot
from processes import cpus
from rounds import WORKLOADS, Plan, run
from sketchbatch_client.atomic import replacing, unwind_on_signals
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_trainer.report.cost import flops
from tables import print_tables
from variants import HERE, cpu_name

ROOT = HERE.parent
CACHE = ROOT / "runs" / "bench"
REAL_DRAWINGS = ROOT.parent / "shared" / "data" / "quickdraw"
DRAWN_ROWS = 8192  # as many rows as eight of the largest requests

WITH_H2LOAD = ("plain", "ours", "ours-aio", "instant-core", "instant-aio")
"""Peers that a whole run also measures with h2load, where it is installed."""

MODELS: dict[str, Callable[[], Path]] = {
    "shipped": lambda: ROOT / "models" / "bear-cat-dog" / "2" / "model.onnx",
    "article": lambda: article().write(CACHE / "article" / "model.onnx"),
    "small": lambda: small().write(CACHE / "small" / "model.onnx"),
}


def main() -> None:
    """Measure what the flags select, print the tables and write the results."""
    unwind_on_signals()  # a signal also ends servers and load generators
    asked = read_arguments()
    peers, left_out = choose(asked.contestants, asked.workloads, asked.channels)
    with drawings_file(asked.data) as (drawings, source):
        plan = Plan(
            models={name: MODELS.get(name, Path(name).resolve)() for name in asked.models},
            peers=peers,
            workloads=asked.workloads,
            drawings=drawings,
            repeats=asked.repeats,
            seconds=asked.seconds,
            attempts=asked.attempts,
        )
        started_at = time.monotonic()
        results = run(plan)
    record = {
        **describe_machine(),
        "settings": {
            "repeats": plan.repeats,
            "window_s": plan.seconds,
            "attempts": plan.attempts,
            "drawings": source,
        },
        "took_s": round(time.monotonic() - started_at),
        "models": {name: describe_model(path) for name, path in plan.models.items()},
        "contestants": {
            peer.name: {"about": peer.about, "style": peer.style, "channels": peer.channels, "limits": peer.limits}
            for peer in peers
        },
        "left_out": left_out,
        "workloads": {name: asdict(WORKLOADS[name]) for name in plan.workloads},
        "measured": results.as_json(),
    }
    print_tables(record)
    folder = HERE / "results" if asked.is_whole else CACHE
    write(record, asked.output or folder / f"{record['date'][:10]}-bench.json")


def read_arguments() -> argparse.Namespace:
    """Parse the flags; `is_whole` is true if the flags leave out no measurement."""
    peers = [*find_peers(), *(f"{name}@h2load" for name in WITH_H2LOAD)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=models_of, default=list(MODELS), help=f"of {','.join(MODELS)}, or files")
    add("--workloads", type=workloads_of, default=list(WORKLOADS), help=f"of {','.join(WORKLOADS)}")
    add(
        "--contestants",
        type=lambda text: text.split(","),
        default=peers,
        help=f"of {','.join(peers)}; also NAME@STYLE and NAME+FLAG=VALUE",
    )
    add("--repeats", type=int, default=3, help="default: %(default)s")
    add("--seconds", type=float, default=1.0, help="of one window; bulk and mix take two (default: %(default)s)")
    add(
        "--attempts",
        type=int,
        default=3,
        help="to measure a window without other work on the machine (default: %(default)s)",
    )
    add("--channels", type=int, default=1, help="connections of each load generator (default: %(default)s)")
    add("--data", type=Path, help="drawings in Google's layout (default: those in ../shared, else noise)")
    add("--output", type=Path, help="file (default: benchmarks/results/DATE-bench.json; of a part, in runs/bench)")
    add("--quick", action="store_true", help="measure the small model once, with windows of half a second")
    asked = parser.parse_args()
    if asked.quick:
        asked.models, asked.repeats, asked.seconds, asked.attempts = ["small"], 1, 0.5, 1
    parts = ("models", "workloads", "contestants", "repeats", "seconds")
    asked.is_whole = all(getattr(asked, part) == parser.get_default(part) for part in parts)
    return asked


def models_of(text: str) -> list[str]:
    """Parse a comma-separated list of models."""
    return known(text, [name for name in text.split(",") if name in MODELS or Path(name).is_file()], MODELS)


def workloads_of(text: str) -> list[str]:
    """Parse a comma-separated list of workloads."""
    return known(text, [name for name in text.split(",") if name in WORKLOADS], WORKLOADS)


def known(text: str, names: list[str], choices: Iterable[str]) -> list[str]:
    """Return `names` if `text` contains no other name; otherwise reject `text`."""
    if names != text.split(","):
        raise argparse.ArgumentTypeError(f"must be of {','.join(choices)}, got {text}")
    return names


def choose(names: list[str], workloads: list[str], channels: int) -> tuple[list[Peer], dict[str, str]]:
    """Return the named peers that run any of `workloads`, and the reasons why some cannot run on this machine."""
    try:
        peers = [find_peer(name, channels=channels) for name in names]
    except ValueError as exc:
        sys.exit(f"--contestants: {exc}")
    peers = [peer for peer in peers if any(map(peer.takes, workloads))]
    left_out = {peer.name: reason for peer in peers if (reason := peer.missing())}
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    return [peer for peer in peers if peer.name not in left_out], left_out


@contextmanager
def drawings_file(data: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield a .npy file of drawings in random order, and their source; without a data folder, the file has noise."""
    folder = (data or REAL_DRAWINGS) / "numpy_bitmap"
    random = np.random.default_rng(0)
    if folder.is_dir():
        rows = np.concatenate([read_bitmaps(folder / f"{label}.npy")[:] for label in ("bear", "cat", "dog")])
        source = "Quick, Draw! by Google (CC BY 4.0): bear, cat, dog"
    else:
        rows, source = random.integers(0, 256, (DRAWN_ROWS, 28, 28), np.uint8), "noise"
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, random.permutation(rows)[:DRAWN_ROWS])
        file.flush()
        yield Path(file.name), source


def describe_machine() -> dict[str, Any]:
    """Return date, command, commit, machine and versions of a benchmark run."""
    arguments = [word.removeprefix(f"{ROOT}/") for word in sys.argv[1:]]  # paths of this machine mean nothing elsewhere
    packages = ("onnxruntime", "grpcio", "protobuf", "numpy", "sketchbatch-service", "sketchbatch-client")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench" + f" BENCH={shlex.quote(shlex.join(arguments))}" * bool(arguments),
        "commit": commit(),
        "machine": {"cpu": cpu_name(), "cpus": cpus(), "load": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def commit() -> str:
    """Return the commit of the working tree, with "+changes" if files were edited; "" outside git."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def describe_model(path: Path) -> dict[str, Any]:
    """Return the file of a model and the model's MFLOP per row."""
    mflop = flops(onnx.load(path)) / 1e6
    file = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return {"file": file, "mflop_per_row": round(mflop, 3)}


def write(record: dict[str, Any], path: Path) -> None:
    """Write the record as JSON, and its plot as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    plot(record, path.with_suffix(".png"))
    print(f"-> {path}\n-> {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
