"""Run `make demo`, the main use of the project, with few epochs."""

import json
import re

import pytest

FIVE = ["accuracy", "balanced_accuracy", "specificity", "matthews_corrcoef", "jaccard"]


def demo(run_command, root, *flags: object) -> list[str]:
    """Run the demo; return the lines that the demo prints."""
    finished = run_command("python", root / "demo" / "demo.py", *flags, cwd=root)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.splitlines()


@pytest.mark.timeout(300)
def test_offline_the_demo_uses_synthetic_sketches(run_command, root, tmp_path, monkeypatch):
    """Without a network, the demo uses synthetic sketches instead of real drawings, and all its outputs say so.

    These outputs are the first line, the metrics, the name of the model and the report. The report loads no other file.
    """
    # no program listens on this port, so every download fails, even on a machine with a network
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    lines = demo(run_command, root, "--run", tmp_path, "--epochs", 1)
    assert "synthetic sketches" in lines[0]
    assert any(
        re.match(r"parity: Keras and ONNX differ by at most \S+ on \d+ held-out drawings", line) for line in lines
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(FIVE) | {"rows", "labels", "source"} <= set(metrics)
    assert metrics["source"].startswith("synthetic sketches")
    assert metrics["model"]["name"] == "synthetic-bear-cat-dog"
    report = (tmp_path / "report.html").read_text()
    assert "Synthetic sketches." in report
    assert f"{metrics['accuracy']:.3f}" in report
    assert report.count('src="data:image/svg+xml;base64,') >= 3
    assert not re.findall(r'(?:src|href)="(?!data:)', report)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.real_drawings
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_runs_on_given_drawings(run_command, root, quickdraw, tmp_path):
    """The demo's first line names the folder of the given drawings, and the service scores the held-out drawings."""
    lines = demo(run_command, root, "--run", tmp_path, "--epochs", 2, "--data", quickdraw)
    assert str(quickdraw) in lines[0]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["rows"], metrics["labels"]) == (913, ["bear", "cat", "dog"])
    assert metrics["source"] == "drawings in the folder quickdraw, held out of the training"
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["against"]["model"]["name"] == "bear-cat-dog"
    assert comparison["against"]["trained_on"]["matches"] > 0
    stored = comparison["against"]["drift"]["metrics"]["accuracy"]["stored"]
    assert f"{stored:.3f} in a cross-validation of bear-cat-dog" in next(x for x in lines if x.startswith("accuracy: "))
    assert metrics["accuracy"] > 0.6  # this test trains for two epochs; the full demo reaches 0.8


def test_a_failed_step_ends_the_demo(run_command, root, tmp_path):
    """If a step fails, the demo prints the message of that step and ends with the exit code of that step."""
    finished = run_command("python", root / "demo" / "demo.py", "--run", tmp_path / "r", "--data", tmp_path)
    assert finished.returncode == 1
    assert "expected a NAME.npy for each label, got none" in finished.stderr
    assert "report" not in finished.stdout
