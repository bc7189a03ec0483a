"""Compare `sketchbatch score` on a million drawings with the bulk workload of `make bench`.

Measures in turn, several times: 1024-row requests by plain stubs, four in flight; then `sketchbatch score` from a file
of real drawings to a new Parquet file. Both use one service with the small model: the faster the model, the more the
client limits the rate. At the end it compares every row with ONNX Runtime in process. Writes
benchmarks/results/DATE-scoring.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from bench import HERE, MODELS, describe_machine, describe_model, drawings_file
from contest import Contestant, Load
from networks import LABELS
from peers import find_peer
from processes import cpu_s, memory
from pyarrow import parquet
from sketchbatch_client.atomic import replacing, unwind_on_signals
from sketchbatch_client.drawings.readers import BitmapFile, Bitmaps, read_bitmaps

BULK = Load(1024, 4)


def main() -> None:
    """Measure, check and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    asked = parser.parse_args()
    unwind_on_signals()
    model = MODELS["small"]()
    with tempfile.TemporaryDirectory() as folder, drawings_file(None) as (drawings, source):
        million = Path(folder) / "drawings.npy"
        sample(read_bitmaps(drawings), asked.rows, million)
        output = Path(folder) / "scores.parquet"
        with Contestant(find_peer("ours"), model=model, drawings=drawings, generators=1) as ours:
            assert ours.server
            rounds = []
            for _ in range(asked.repeats):
                (bulk,) = ours.measure([BULK], 6.0)
                rounds.append(
                    {"bulk_rows_per_s": bulk["rows"] / bulk["took_s"], **score(million, output, ours.server.address)}
                )
                print(json.dumps(rounds[-1]))
        check(output, model, read_bitmaps(million)[:])
    record = {
        **describe_machine(),
        "command": "python -m benchmarks scoring",
        "model": describe_model(model),
        "drawings": source,
        "bulk": f"{BULK.rows} rows x {BULK.in_flight} in flight, plain stubs",
        "rows": asked.rows,
        "rounds": rounds,
        "medians": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
        "ratio": statistics.median(each["rows_per_s"] / each["bulk_rows_per_s"] for each in rounds),
        "ratio_with_start": statistics.median(
            each["rows_per_s_with_start"] / each["bulk_rows_per_s"] for each in rounds
        ),
        "checked": "every label, row number and score (1e-5) against ONNX Runtime in process",
    }
    print(json.dumps({name: record[name] for name in ("medians", "ratio", "ratio_with_start")}, indent=1))
    path = HERE / "results" / f"{record['date'][:10]}-scoring.json"
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    print(f"-> {path}")


def sample(drawings: BitmapFile, rows: int, path: Path) -> None:
    """Write `rows` rows, drawn from `drawings` at random and with repetition, to `path`."""
    chance = np.random.default_rng(1)
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, 784))
    for start in range(0, rows, 65536):
        block = out[start : start + 65536]
        block[:] = drawings[chance.integers(0, len(drawings), len(block))].reshape(-1, 784)
    out.flush()


def score(drawings: Path, output: Path, address: str) -> dict[str, float]:
    """Run `sketchbatch score`; return rows per second with and without start-up, peak memory and CPU seconds."""
    command = [Path(sys.executable).parent / "sketchbatch", "score", drawings, "--output", output, "--server", address]
    started_at = time.perf_counter()
    process = subprocess.Popen([*command, "--restart"], stderr=subprocess.PIPE, text=True)
    peak_mib = cpu = 0.0
    while process.poll() is None:
        with suppress(OSError, KeyError):  # the process ended during the read
            peak_mib, cpu = memory([process.pid]).peak_mib, cpu_s([process.pid])
        time.sleep(0.02)
    took_s = time.perf_counter() - started_at
    errors = process.communicate()[1]
    assert not process.returncode, errors
    rows, _, seconds = errors.splitlines()[-1].partition(" rows from 1 input in ")
    return {
        "rows_per_s": int(rows.replace(",", "")) / float(seconds.partition(" s ")[0]),
        "rows_per_s_with_start": int(rows.replace(",", "")) / took_s,
        "peak_mib": peak_mib,
        "cpu_s": cpu,
    }


def check(output: Path, model: Path, drawings: Bitmaps) -> None:
    """Check that every row is present once, in order, with the label and score of ONNX Runtime in process."""
    session = ort.InferenceSession(model)
    with parquet.ParquetFile(output) as scores:
        assert scores.metadata.num_rows == len(drawings)
        first = 0
        for lines in scores.iter_batches(65536):
            wanted: Any = session.run(None, {"bitmaps": drawings[first : first + len(lines)]})[0]
            assert np.array_equal(lines["row"], np.arange(first, first + len(lines)))
            assert np.array_equal(lines["label"], np.array(LABELS)[wanted.argmax(axis=1)])
            assert np.allclose(lines["score"], wanted.max(axis=1), atol=1e-5)
            first += len(lines)


if __name__ == "__main__":
    main()
