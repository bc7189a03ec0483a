"""Measures our service beside raw ONNX Runtime and its peers: `make bench`, or a part of it by the flags below.

Every contestant runs the same workloads on the same models in one run, in turn, so that a ratio compares neighbours in
time; servers and load generators are started anew for every repeat, and medians are kept. Prints tables, and writes
benchmarks/results/DATE-bench.json with a plot beside it; a part of it goes to runs/bench/ instead.
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
DRAWN_ROWS = 8192  # cut into requests: 8 of the largest

MODELS: dict[str, Callable[[], Path]] = {
    "shipped": lambda: ROOT / "models" / "bear-cat-dog" / "1" / "model.onnx",
    "article": lambda: article().write(CACHE / "article" / "model.onnx"),
    "small": lambda: small().write(CACHE / "small" / "model.onnx"),
}


def main() -> None:
    """Measures what was asked for, shows it and writes it."""
    unwind_on_signals()  # servers and load generators end with us
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
            peer.name: {"about": peer.about, "style": peer.style, "channels": peer.channels} for peer in peers
        },
        "left_out": left_out,
        "workloads": {name: asdict(WORKLOADS[name]) for name in plan.workloads},
        "measured": results.as_json(),
    }
    print_tables(record)
    folder = HERE / "results" if asked.is_whole else CACHE
    write(record, asked.output or folder / f"{record['date'][:10]}-bench.json")


def read_arguments() -> argparse.Namespace:
    """The flags; `is_whole` says whether they leave nothing out."""
    peers = list(find_peers())
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
    add("--seconds", type=float, default=1.0, help="a window; bulk and mix take two (default: %(default)s)")
    add("--attempts", type=int, default=3, help="at a window that other work disturbs (default: %(default)s)")
    add("--channels", type=int, default=1, help="connections of each load generator (default: %(default)s)")
    add("--data", type=Path, help="drawings in Google's layout (default: those in ../shared, else noise)")
    add("--output", type=Path, help="file (default: benchmarks/results/DATE-bench.json, for a part in runs/bench)")
    add("--quick", action="store_true", help="the small model, one repeat, half a second a window")
    asked = parser.parse_args()
    if asked.quick:
        asked.models, asked.repeats, asked.seconds, asked.attempts = ["small"], 1, 0.5, 1
    parts = ("models", "workloads", "contestants", "repeats", "seconds")
    asked.is_whole = all(getattr(asked, part) == parser.get_default(part) for part in parts)
    return asked


def models_of(text: str) -> list[str]:
    """Reads a list with commas."""
    return known(text, [name for name in text.split(",") if name in MODELS or Path(name).is_file()], MODELS)


def workloads_of(text: str) -> list[str]:
    """Reads a list with commas."""
    return known(text, [name for name in text.split(",") if name in WORKLOADS], WORKLOADS)


def known(text: str, names: list[str], choices: Iterable[str]) -> list[str]:
    """`names`, if they are all that `text` says."""
    if names != text.split(","):
        raise argparse.ArgumentTypeError(f"must be of {','.join(choices)}, got {text}")
    return names


def choose(names: list[str], workloads: list[str], channels: int) -> tuple[list[Peer], dict[str, str]]:
    """The peers that take part in any of `workloads` and can be measured here, and why others cannot."""
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
    """Drawings in random order in a .npy file, and where they are from; without any, noise: never blank paper."""
    folder = (data or REAL_DRAWINGS) / "numpy_bitmap"
    random = np.random.default_rng(0)
    if folder.is_dir():
        rows = np.concatenate([read_bitmaps(folder / f"{label}.npy") for label in ("bear", "cat", "dog")])
        source = "Quick, Draw! by Google (CC BY 4.0): bear, cat, dog"
    else:
        rows, source = random.integers(0, 256, (DRAWN_ROWS, 28, 28), np.uint8), "noise"
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, random.permutation(rows)[:DRAWN_ROWS])
        file.flush()
        yield Path(file.name), source


def describe_machine() -> dict[str, Any]:
    """When, where, with what, by which command."""
    packages = ("onnxruntime", "grpcio", "protobuf", "numpy", "sketchbatch-service", "sketchbatch-client")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench" + f" BENCH={shlex.quote(shlex.join(sys.argv[1:]))}" * bool(sys.argv[1:]),
        "commit": commit(),
        "machine": {"cpu": cpu_name(), "cpus": cpus(), "load": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def commit() -> str:
    """Of this tree, "+changes" behind it where it differs; "" outside git."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def describe_model(path: Path) -> dict[str, Any]:
    """Where it is and what it costs."""
    mflop = flops(onnx.load(path)) / 1e6
    file = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return {"file": file, "mflop_per_row": round(mflop, 3)}


def write(record: dict[str, Any], path: Path) -> None:
    """The record, and the plot beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    plot(record, path.with_suffix(".png"))
    print(f"-> {path}\n-> {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
