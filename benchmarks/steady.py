"""Sample memory, threads and open files of our service under load for some minutes.

The load saturates the service: four requests of 1024 rows in flight, and concurrently one-row requests. The small model
is used, because it gives the highest request rate. Writes benchmarks/results/DATE-steady.json with a sample every few
seconds.
"""

import argparse
import json
import statistics
import threading
from pathlib import Path
from typing import Any

from bench import HERE, MODELS, describe_machine, describe_model, drawings_file
from contest import Contestant, Load, Server
from peers import find_peer
from rounds import WORKLOADS

SAMPLE_EVERY_S = 5.0
SETTLED_S = 30.0
"""Seconds in which buffers and ONNX Runtime's arena may grow to the size that the load needs."""


def main() -> None:
    """Run the load for `--minutes` and write the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="default: %(default)s")
    asked = parser.parse_args()
    model = MODELS["small"]()
    with (
        drawings_file(None) as (drawings, source),
        Contestant(find_peer("ours"), model=model, drawings=drawings, generators=2) as ours,
    ):
        assert ours.server
        samples: list[dict[str, float]] = []
        with sampling(ours.server, samples):
            bulk, single = ours.measure([Load(1024, 4), Load(1, 1)], asked.minutes * 60)
    settled = [sample for sample in samples if sample["after_s"] >= min(SETTLED_S, asked.minutes * 30)]
    record = {
        **describe_machine(),
        "command": f"python -m benchmarks steady --minutes {asked.minutes:g}",
        "model": describe_model(model),
        "drawings": source,
        "workload": str(WORKLOADS["mix"]),
        "rows": bulk["rows"] + single["rows"],
        "requests": bulk["requests"] + single["requests"],
        "single_p50_ms": single["p50_ms"],
        "single_p99_ms": single["p99_ms"],
        "growth": {name: growth(settled, name) for name in ("resident_mib", "threads", "open_files")},
        "samples": samples,
    }
    print(json.dumps({name: value for name, value in record.items() if name != "samples"}, indent=1))
    path = HERE / "results" / f"{record['date'][:10]}-steady.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"-> {path}")


class sampling:  # noqa: N801 - used like a function
    """Add a sample of a server's processes to a list every few seconds until the context ends."""

    def __init__(self, server: Server, samples: list[dict[str, float]]) -> None:
        self._server = server
        self._samples = samples
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        after_s = 0.0
        while not self._done.wait(SAMPLE_EVERY_S):
            after_s += SAMPLE_EVERY_S
            self._samples.append({"after_s": after_s, **held(self._server.pids())})


def held(pids: list[int]) -> dict[str, float]:
    """Return resident memory in MiB, threads and open files, each summed over the processes."""
    folders = [Path(f"/proc/{pid}") for pid in pids]
    lines = [line.split() for folder in folders for line in (folder / "status").read_text().splitlines()]
    status = {name: sum(int(words[1]) for words in lines if words[0] == f"{name}:") for name in ("VmRSS", "Threads")}
    return {
        "resident_mib": round(status["VmRSS"] / 1024, 1),
        "threads": status["Threads"],
        "open_files": sum(len(list((folder / "fd").iterdir())) for folder in folders),
    }


def growth(samples: list[dict[str, float]], name: str) -> dict[str, Any]:
    """Return the median of the first third and of the last third of the samples, and the largest sample."""
    values = [sample[name] for sample in samples]
    third = max(1, len(values) // 3)
    return {
        "first_third": statistics.median(values[:third]),
        "last_third": statistics.median(values[-third:]),
        "largest": max(values),
    }


if __name__ == "__main__":
    main()
