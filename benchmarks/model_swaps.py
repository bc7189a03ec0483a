"""Measure the latency of requests while the service loads a new version of a model.

Sends one-row requests to models/bear-cat-dog, one and eight at a time, while its file is replaced repeatedly. A request
counts as "loading" if it overlaps a load, whose times are in the log, and otherwise as "quiet". Measures with the
loading thread at nice 10, the value of the service, and at nice 0, in turn. Writes benchmarks/results/DATE-swaps.json
and prints the medians.
"""

import argparse
import json
import shutil
import statistics
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

import grpc
import numpy as np
import onnx
from bench import HERE, describe_machine
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from steady import held

MODEL = HERE.parent / "models" / "bear-cat-dog" / "2" / "model.onnx"
REST_S = 0.3
NICE = (10, 0)
IN_FLIGHT = (1, 8)
SERVE = "import sketchbatch_service.models.watcher as w, sketchbatch_service.__main__ as m; w._NICE = {}; m.main()"

Times = list[tuple[float, float]]
"""Start and end of each request, in seconds since 1970."""


def main() -> None:
    """Measure each setting in turn and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement; default: %(default)s")
    asked = parser.parse_args()
    measured: list[dict[str, Any]] = []
    for _ in range(asked.rounds):
        for nice in NICE:
            for in_flight in IN_FLIGHT:
                measured.append(measure(nice, in_flight, asked.seconds))
                print(json.dumps(measured[-1]), flush=True)
    summary = [summarized(measured, nice, in_flight) for in_flight in IN_FLIGHT for nice in NICE]
    command = "python -m benchmarks model-swaps"
    record = {**describe_machine(), "command": command, "summary": summary, "rounds": measured}
    path = HERE / "results" / f"{record['date'][:10]}-swaps.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"-> {path}")


def measure(nice: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """Run one service; return the latencies of its requests and its memory."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), nice) as (service, address, log):
        requests: Times = []
        ends_at = time.time() + seconds
        callers = [threading.Thread(target=classify, args=(address, ends_at, requests)) for _ in range(in_flight)]
        for caller in callers:
            caller.start()
        memory = []
        while time.time() < ends_at:
            loaded = served(log)
            swap(Path(folder))
            while served(log) == loaded and time.time() < ends_at:
                time.sleep(0.02)
            memory.append(held([service.pid])["resident_mib"])
            time.sleep(REST_S)
        for caller in callers:
            caller.join()
        loads = [load_times(event) for event in list(log) if event["message"] == "model serves"]
    overlaps = [any(begun < end and start < ended for start, end in loads) for begun, ended in requests]
    quiet, loading = (
        [(ended - begun) * 1e3 for (begun, ended), each in zip(requests, overlaps, strict=True) if each is is_loading]
        for is_loading in (False, True)
    )
    return {
        "nice": nice,
        "in_flight": in_flight,
        "loads": len(loads),
        "load_s": round(statistics.median(end - start for start, end in loads), 4),
        "quiet": figures(quiet),
        "loading": figures(loading),
        "resident_mib": [memory[0], memory[len(memory) // 2], memory[-1]],
    }


@contextmanager
def serving(folder: Path, nice: int) -> Iterator[tuple["subprocess.Popen[str]", str, list[dict[str, Any]]]]:
    """Run a service for `folder`/models; yield its process, its address and its log, a list that grows.

    Write a.onnx and b.onnx, with which `swap` replaces the served model file in turn.
    """
    place = folder / "models" / "bear-cat-dog" / "2"
    place.mkdir(parents=True)
    shutil.copy(MODEL, place / "model.onnx")
    for word in ("a", "b"):
        model = onnx.load(MODEL)
        model.metadata_props.add(key="turn", value=word)
        onnx.save(model, folder / f"{word}.onnx")
    flags = ["--model", str(folder / "models"), "--address", "127.0.0.1:0", "--watch-models-s", "0.1"]
    command = [sys.executable, "-c", SERVE.format(nice), *flags, "--provider", "cpu", "--lame-duck-s", "0"]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert service.stderr
    log: list[dict[str, Any]] = []
    ready = threading.Event()

    def read() -> None:
        assert service.stderr
        for line in service.stderr:
            log.append(json.loads(line))
            if log[-1]["message"] == "SERVING":
                ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(20), "the service did not start"
        yield service, next(each["address"] for each in log if each["message"] == "SERVING"), log
    finally:
        service.terminate()
        service.wait(30)
        reader.join()


def served(log: list[dict[str, Any]]) -> int:
    """Return the number of model files that the service has loaded since its start."""
    return sum(event["message"] == "model serves" for event in list(log))


def swap(folder: Path) -> None:
    """Replace the served model file by the next file."""
    turn = folder / "a.onnx"
    shutil.copy(turn, folder / "ready.onnx")
    (folder / "ready.onnx").rename(folder / "models" / "bear-cat-dog" / "2" / "model.onnx")
    (folder / "b.onnx").rename(turn.with_suffix(".next"))
    turn.rename(folder / "b.onnx")
    turn.with_suffix(".next").rename(turn)


def classify(address: str, ends_at: float, requests: Times) -> None:
    """Send one-row requests one after another, and add start and end of each request to `requests`."""
    request = pb.ClassifyRequest(bitmaps=np.random.default_rng(1).integers(0, 256, 784, np.uint8).tobytes())
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        stub.Classify(request)
        while (begun := time.time()) < ends_at:
            stub.Classify(request)  # a failed request ends the measurement
            requests.append((begun, time.time()))


def load_times(event: dict[str, Any]) -> tuple[float, float]:
    """Return when the load of a model began and ended."""
    end = datetime.fromisoformat(event["time"]).astimezone(UTC).timestamp()
    return end - event["load_s"], end


def figures(latencies_ms: list[float]) -> dict[str, float]:
    """Return number, p50, p99 and maximum of latencies."""
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {
        "requests": len(latencies_ms),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "max_ms": round(max(latencies_ms), 1),
    }


def summarized(measured: list[dict[str, Any]], nice: int, in_flight: int) -> dict[str, Any]:
    """Return the medians over the rounds of one setting."""
    rounds = [each for each in measured if (each["nice"], each["in_flight"]) == (nice, in_flight)]
    return {
        "nice": nice,
        "in_flight": in_flight,
        "loads": sum(each["loads"] for each in rounds),
        "load_s": statistics.median(each["load_s"] for each in rounds),
        **{
            f"{when}_{name}": round(statistics.median(each[when][name] for each in rounds), 3)
            for when in ("quiet", "loading")
            for name in ("p50_ms", "p99_ms", "max_ms")
        },
    }


if __name__ == "__main__":
    main()
