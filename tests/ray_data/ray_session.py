"""Scores datasets on a real Ray cluster of this machine, an actor of which is killed; says as JSON what it saw.

.tools/ray/bin/python ray_session.py ADDRESS BITMAPS.npy FOLDER
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

import psutil  # isort: skip - Ray brings its own along

BLOCKS = 20
BATCH_ROWS = 500  # two in each block
FATAL_ROW = 10_700  # in the second batch of a block in the middle


class Mortal(SketchbatchScorer):
    """Its process is killed once in the cluster, holding scores that it has not handed over."""

    def __init__(self, server: str, grave: Path) -> None:
        super().__init__(server)
        self._grave = grave

    def __call__(self, batch: Batch) -> Batch:
        scored = super().__call__(batch)
        if FATAL_ROW in batch["row"] and not self._grave.exists():
            self._grave.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return scored


def drawings(file: str, rows: int, blocks: int) -> Dataset:
    """The file's first rows, read where they are scored."""
    return ray.data.range(rows, override_num_blocks=blocks).map_batches(
        lambda batch: {"row": batch["id"], "bitmap": np.load(file, mmap_mode="r")[batch["id"]]}
    )


def save(dataset: Dataset, file: Path) -> None:
    """All columns but the bitmaps."""
    batches = list(dataset.drop_columns(["bitmap"]).iter_batches(batch_size=None))
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(file, **{name: np.array(values.tolist()) for name, values in columns.items()})  # no objects


def listening() -> list[str]:
    """The addresses at which this process and all that it started listen."""
    me = psutil.Process()
    found = [each for process in (me, *me.children(recursive=True)) for each in process.net_connections("tcp")]
    return sorted({each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN})


def unknown_model(address: str) -> str:
    """Before anything is handed to the cluster."""
    try:
        score(ray.data.range(1), address, model="zebra")
    except ModelNotFound as exc:
        return str(exc)
    return ""


def refusal(dataset: Dataset, address: str) -> str:
    try:
        score(dataset, address, column="ink", actors=1).materialize()
    except ray.exceptions.RayTaskError as exc:
        return str(exc)
    return ""


def main(address: str, file: str, folder: str) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    told: dict[str, object] = {}
    try:
        grave = Path(folder) / "killed.pid"
        rows = len(np.load(file, mmap_mode="r"))
        scored = drawings(file, rows, BLOCKS).map_batches(
            Mortal,
            fn_constructor_kwargs={"server": address, "grave": grave},
            compute=ActorPoolStrategy(size=2),
            batch_size=BATCH_ROWS,
            num_cpus=0.5,
        )
        save(scored, Path(folder) / "killed.npz")
        told["listening"] = listening()
        save(score(drawings(file, 100, 1), address, actors=1, all_scores=True), Path(folder) / "helped.npz")
        told["unknown_model"] = unknown_model(address)
        told["refusal"] = refusal(drawings(file, 100, 1), address)
    finally:
        ray.shutdown()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
