"""Run `make bench-gpu` on a CPU, so that a mistake in the benchmark costs no GPU time."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow  # starts a dozen processes, and matters only before the benchmark runs on a GPU
@pytest.mark.timeout(90)
def test_one_run_measures_every_part(root, tmp_path):
    """A run of the GPU benchmark makes all its measurements: raw ONNX Runtime, the engine, the service, single rows.

    The results file lists no missing measurement, and contains the difference from the CPU for every bucket.
    """
    path = tmp_path / "gpu.json"
    words = ["--provider", "cpu", "--variants", "float32", "--rows", "12", "--measure-s", "0.1", "--workers", "1"]
    command = [sys.executable, root / "benchmarks" / "gpu.py", *words, "--output", path]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("floor, card: 11.0 MFLOP per row")
    results = json.loads(path.read_text())
    assert results["not_measured"] == {}
    assert results["raw"]["float32"]["rows"] == [1, 2, 4, 8, 12]
    assert max(results["raw"]["float32"]["difference"]) < 1e-6
    assert all(milliseconds > 0 for milliseconds in results["raw"]["float32"]["ms_with_copies"])
    assert set(results["engine"]) == {"float32, 1 slots", "float32, 2 slots"}
    assert results["engine"]["float32, 2 slots"]["rows_per_s"] > 0
    assert results["service"]["float32, 1 workers"]["rows_per_s"] > 0
    assert results["one_row"]["float32"]["p50_ms"] > 0


def test_parts_beyond_the_time_budget_are_listed(root, tmp_path):
    """If its time budget is used up, the benchmark ends with exit code 0 and lists the missing measurements."""
    path = tmp_path / "gpu.json"
    words = ["--provider", "cpu", "--budget-s", "0", "--output", path]
    finished = subprocess.run(
        [sys.executable, root / "benchmarks" / "gpu.py", *words], check=False, capture_output=True
    )
    assert finished.returncode == 0
    results = json.loads(path.read_text())
    assert not {"raw", "service", "engine"} & set(results)
    kinds = [part.partition(":")[0] for part, cause in results["not_measured"].items() if cause == "the time was up"]
    assert [kinds.count(kind) for kind in ("raw", "engine")] == [2, 4]
    assert "service: float32, 1 workers" in results["not_measured"]
