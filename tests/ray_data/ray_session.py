"""Score datasets on a local Ray cluster, kill one actor, and print a report as JSON.

Usage: .tools/ray/bin/python ray_session.py ADDRESS BITMAPS.npy FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import ray
from ray.data import ActorPoolStrategy, Dataset
from sketchbatch_client import ModelNotFound
from sketchbatch_client.ray import Batch, SketchbatchScorer, score

import psutil  # isort: skip - psutil is part of Ray's package

BLOCKS = 20
BATCH_ROWS = 500  # each block of the dataset has two batches
FATAL_ROW = 10_700  # this row is in the second batch of a block


class KilledScorer(SketchbatchScorer):
    """Score batches, but kill this process when the row FATAL_ROW has been scored for the first time.

    The process is killed before it returns the batch. It writes the file `pid_file` first. Processes that find this
    file are not killed.
    """

    def __init__(self, server: str, pid_file: Path) -> None:
        super().__init__(server)
        self._pid_file = pid_file

    def __call__(self, batch: Batch) -> Batch:
        scored = super().__call__(batch)
        if FATAL_ROW in batch["row"] and not self._pid_file.exists():
            self._pid_file.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return scored


def drawings(file: str, rows: int, blocks: int) -> Dataset:
    """Return a dataset of the first `rows` rows of a file, which the workers of the Ray cluster read."""
    return ray.data.range(rows, override_num_blocks=blocks).map_batches(
        lambda batch: {"row": batch["id"], "bitmap": np.load(file, mmap_mode="r")[batch["id"]]}
    )


def save(dataset: Dataset, file: Path) -> None:
    """Write all columns except the bitmaps to an .npz file."""
    batches = list(dataset.drop_columns(["bitmap"]).iter_batches(batch_size=None))
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(file, **{name: np.array(values.tolist()) for name, values in columns.items()})  # no object arrays


def listening() -> list[str]:
    """Return the addresses on which this process and its descendants listen."""
    own = psutil.Process()
    found = [each for process in (own, *own.children(recursive=True)) for each in process.net_connections("tcp")]
    return sorted({each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN})


def unknown_model(address: str) -> str:
    """Return the error for an unknown model, which `score` raises before the job starts."""
    try:
        score(ray.data.range(1), address, model="zebra")
    except ModelNotFound as exc:
        return str(exc)
    return ""


def refusal(dataset: Dataset, address: str) -> str:
    """Return the error of a job whose option `column` names a column that does not exist."""
    try:
        score(dataset, address, column="ink", actors=1).materialize()
    except ray.exceptions.RayTaskError as exc:
        return str(exc)
    return ""


def main(address: str, file: str, folder: str) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    report: dict[str, object] = {}
    try:
        pid_file = Path(folder) / "killed.pid"
        rows = len(np.load(file, mmap_mode="r"))
        scored = drawings(file, rows, BLOCKS).map_batches(
            KilledScorer,
            fn_constructor_kwargs={"server": address, "pid_file": pid_file},
            compute=ActorPoolStrategy(size=2),
            batch_size=BATCH_ROWS,
            num_cpus=0.5,
        )
        save(scored, Path(folder) / "killed.npz")
        report["listening"] = listening()
        save(score(drawings(file, 100, 1), address, actors=1, all_scores=True), Path(folder) / "helped.npz")
        report["unknown_model"] = unknown_model(address)
        report["refusal"] = refusal(drawings(file, 100, 1), address)
    finally:
        ray.shutdown()
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
