"""`make bench-gpu` without a GPU: one call from the floors to the JSON; minutes on a GPU are not for typos."""

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(90)  # starts a dozen processes
def test_one_call_measures_everything_and_writes_it_down(root, tmp_path):
    """Every part answers, every bucket was compared with the CPU, and nothing is left out in silence."""
    path = tmp_path / "gpu.json"
    words = ["--provider", "cpu", "--variants", "float32", "--rows", "12", "--measure-s", "0.03", "--workers", "1"]
    command = [sys.executable, root / "benchmarks" / "gpu.py", *words, "--output", path]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("floor, card: 8.6 MFLOP per row")
    results = json.loads(path.read_text())
    assert results["not_measured"] == {}
    assert results["raw"]["float32"]["rows"] == [1, 2, 4, 8, 12]
    assert max(results["raw"]["float32"]["difference"]) < 1e-6
    assert all(milliseconds > 0 for milliseconds in results["raw"]["float32"]["ms_with_copies"])
    assert set(results["engine"]) == {"float32, 1 slots", "float32, 2 slots"}
    assert results["engine"]["float32, 2 slots"]["rows_per_s"] > 0
    assert results["service"]["float32, 1 workers"]["rows_per_s"] > 0
    assert results["one_row"]["float32"]["p50_ms"] > 0


def test_what_time_was_too_short_for_is_named(root, tmp_path):
    """It stops by itself, and a reader of the JSON sees what is missing."""
    path = tmp_path / "gpu.json"
    words = ["--provider", "cpu", "--budget-s", "0", "--output", path]
    finished = subprocess.run(
        [sys.executable, root / "benchmarks" / "gpu.py", *words], check=False, capture_output=True
    )
    assert finished.returncode == 0
    results = json.loads(path.read_text())
    assert not {"raw", "service", "engine"} & set(results)
    kinds = [what.partition(":")[0] for what, why in results["not_measured"].items() if why == "the time was up"]
    assert [kinds.count(kind) for kind in ("raw", "engine")] == [2, 4]
    assert "service: float32, 1 workers" in results["not_measured"]
