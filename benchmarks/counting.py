"""Measure what statistics cost per request: the batcher without statistics, with ours, and with prometheus_client.

The model takes no time, and one thread submits requests and runs batches, so that only the batcher and the counting are
measured. The three variants are interleaved and repeated. The result is the lowest CPU time of all repeats, because
other work may share the cores. Writes benchmarks/results/DATE-counting.json and prints a table.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from sketchbatch_service.arrays import Bitmaps, Scores
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.batching.row_queue import Answer
from sketchbatch_service.batching.statistics import BOUNDS_S, ModelStatistics
from variants import cpu_name

HERE = Path(__file__).resolve().parent
REQUESTS = 8192
SHARES = {"1 request per call": 1, "32 requests per call": 32}


class Uncounted(ModelStatistics):
    """Statistics that count nothing."""

    def add_call(self, *_: object, **__: object) -> None: ...
    def add_codec(self, **_: object) -> None: ...


class PrometheusCounts:
    """Counts each answered request with prometheus_client: rows, and histograms of queue and encoding time."""

    def __init__(self) -> None:
        registry, labels = CollectorRegistry(), ["model", "version"]
        self.rows = Counter("rows", "rows", labels, registry=registry).labels("m", "1")
        self.queue = Histogram("queue", "queue", labels, buckets=BOUNDS_S, registry=registry).labels("m", "1")
        self.encode = Histogram("encode", "encode", labels, buckets=BOUNDS_S, registry=registry).labels("m", "1")

    def count(self, answer: Future[Answer]) -> None:
        """Count one answered request."""
        self.rows.inc(1)
        self.queue.observe(answer.result().queue_s)
        self.encode.observe(1e-5)


def model(bitmaps: Bitmaps) -> Scores:
    """Return zeros as scores, which takes almost no time."""
    return np.zeros((len(bitmaps), 3), np.float32)


def seconds(batcher: Batcher, at_a_time: int, after: Callable[[Future[Answer]], object]) -> float:
    """Return the mean CPU seconds for submitting, running and answering one request."""
    drawing = np.zeros((1, 28, 28), np.uint8)
    started_at = time.thread_time()
    for _ in range(REQUESTS // at_a_time):
        answers = [batcher.submit(drawing) for _ in range(at_a_time)]
        batch = batcher.take(1)
        assert batch
        batch.run()
        for answer in answers:
            after(answer)
    return (time.thread_time() - started_at) / REQUESTS


def variants() -> dict[str, tuple[Batcher, Callable[[Future[Answer]], object]]]:
    """Return the batcher of each variant, and the function to call after each request."""
    batchers = [Batcher(model, BatchLimits(max_batch_rows=32)) for _ in range(3)]
    batchers[0].statistics = batchers[2].statistics = Uncounted()
    return {
        "not counted": (batchers[0], lambda _: None),
        "counted": (batchers[1], lambda _: batchers[1].statistics.add_codec(encoding_s=1e-5)),
        "prometheus_client": (batchers[2], PrometheusCounts().count),
    }


def main() -> None:
    """Measure every variant `--repeats` times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    repeats = parser.parse_args().repeats
    results: dict[str, dict[str, list[float]]] = {share: {name: [] for name in variants()} for share in SHARES}
    for _ in range(repeats):
        for share, at_a_time in SHARES.items():
            for name, (batcher, after) in variants().items():
                results[share][name].append(seconds(batcher, at_a_time, after) * 1e6)
    us = {share: {name: round(min(each), 2) for name, each in found.items()} for share, found in results.items()}
    for share, found in us.items():
        print(share, "  ".join(f"{name}: {value:.1f} us" for name, value in found.items()), sep=": ")
    environment = {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "prometheus_client": version("prometheus-client"),
        "load_average": os.getloadavg()[0],
        "repeats": repeats,
    }
    day = datetime.now(UTC).date()
    text = json.dumps({"date": str(day), **environment, "cpu_us_per_request": us}, indent=2)
    (HERE / "results" / f"{day}-counting.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
