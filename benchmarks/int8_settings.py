"""Measure accuracy, agreement with float32 and speed of each int8 setting on one trained run.

Every setting differs from the chosen one (`Int8Settings`) in one point. Accuracy is measured on the run's held-out
drawings. Speed is relative to float32, in CPU time of one thread at 256 rows per call, each file in its own process.
Writes benchmarks/results/DATE-int8-settings.json and prints a table.
"""

import argparse
import json
import os
import platform
import statistics
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationMethod, QuantType
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_trainer.export.held_out import onnx_scores, read_held_out
from sketchbatch_trainer.export.int8 import Int8Settings, to_int8
from sketchbatch_trainer.run import Run
from variants import HERE, ROWS_PER_CALL, cpu_name, describe, has_vnni, run_apart

CHOSEN = Int8Settings()
SETTINGS = {
    "chosen": CHOSEN,
    "a range for each layer": replace(CHOSEN, per_channel=False),
    "weights in 8 bits": replace(CHOSEN, reduce_range=False),
    "signed activations": replace(CHOSEN, activations=QuantType.QInt8),
    "ranges by percentile": replace(CHOSEN, ranges=CalibrationMethod.Percentile),
    "softmax in int8 too": replace(CHOSEN, kept_float=()),
    "dense layers in float32": replace(CHOSEN, kept_float=("Softmax", "MatMul", "Gemm")),
    "residual adds in float32": replace(CHOSEN, kept_float=("Softmax", "Add")),
}


def main() -> None:
    """Measure every setting on the run's model.onnx."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="A run's folder, trained and exported.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    run = Run(arguments.run)
    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(SETTINGS)}
        measured = try_settings(run, files)
        for name, ratio in rows_per_cpu_s_ratios(run.onnx, files, arguments.repeats).items():
            measured[name]["rows_per_cpu_s_ratio"] = ratio
    write(run, measured, arguments.repeats)


def try_settings(run: Run, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Write the model file of each setting; return the setting's effect on the scores of the held-out drawings."""
    graph = onnx.load(run.onnx)
    held_out = read_held_out(run, run.read_config()["labels"])
    calibration = read_bitmaps(run.calibration)[:]
    expected = onnx_scores(graph, held_out.bitmaps)
    found = {}
    for name, path in files.items():
        onnx.save(to_int8(graph, calibration, SETTINGS[name]), path)
        scores = onnx_scores(onnx.load(path), held_out.bitmaps)
        lost = held_out.count_correct(expected) - held_out.count_correct(scores)
        found[name] = {
            "accuracy_change": round(-lost / len(scores), 5),
            "agreement": round(float((scores.argmax(axis=1) == expected.argmax(axis=1)).mean()), 5),
            "mean_difference": round(float(np.abs(scores - expected).mean()), 6),
            "max_difference": round(float(np.abs(scores - expected).max()), 4),
            "size_bytes": path.stat().st_size,
        }
    return found


def rows_per_cpu_s_ratios(first: Path, files: dict[str, Path], repeats: int) -> dict[str, float]:
    """Return the median ratio of each file's rows per CPU second to those of `first`: 256 rows per call, one thread."""
    place = ROWS_PER_CALL.index(256)
    ratios: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(repeats):
        for name, path in files.items():
            base, own = (run_apart(each, 1)["rows_per_cpu_s"][place] for each in (first, path))
            ratios[name].append(own / base)
    return {name: round(statistics.median(values), 2) for name, values in ratios.items()}


def write(run: Run, measured: dict[str, dict[str, Any]], repeats: int) -> None:
    """Print the table and write the results file."""
    now = datetime.now(UTC)
    results = {
        "date": now.isoformat(timespec="seconds"),
        "command": "python -m benchmarks int8-settings",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "vnni": has_vnni()},
        "versions": {"python": platform.python_version(), "onnxruntime": ort.__version__},
        "model": describe(run.onnx),
        "repeats": repeats,
        "settings": measured,
    }
    print("setting".ljust(26), "accuracy  agreement  rows per CPU second")
    for name, found in measured.items():
        cells = f"{found['accuracy_change']:+8.2%} {found['agreement']:10.2%} {found['rows_per_cpu_s_ratio']:6.2f}x"
        print(name.ljust(26), cells)
    path = HERE / "results" / f"{now:%Y-%m-%d}-int8-settings.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"-> {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
