"""Score a .npy file of any size with constant memory, and write one line per drawing.

Usage: bulk.py DRAWINGS.npy LABELS.csv. The command `sketchbatch score` does the same and also resumes after a crash.
"""

import csv
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sketchbatch_client import Client, SketchbatchError

SERVER = os.environ.get("SKETCHBATCH_SERVER", "localhost:50051")


def batches(drawings: np.ndarray, rows: int = 8192) -> Iterator[np.ndarray]:
    """Yield parts of the file; the client splits them into requests that the service accepts."""
    for start in range(0, len(drawings), rows):
        yield drawings[start : start + rows]


def score(source: Path, target: Path) -> int:
    """Write the label, its score and the margin to the second class of each drawing; return the number of rows."""
    drawings = np.load(source, mmap_mode="r")  # uint8, (rows, 28, 28) or (rows, 784), 0 = paper, 255 = ink
    row = 0
    # Four requests of each connection are in flight, results arrive in order, and a restart of the service that takes
    # less than timeout_s is survived. Without top_k, a result has the scores of all classes: 4 bytes per class.
    with Client(SERVER, timeout_s=60) as client, target.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["row", "label", "score", "margin"])
        for part in client.score(batches(drawings)):
            second = np.partition(part.scores, -2, axis=1)[:, -2]
            for label, best, other in zip(part.label, part.score[:, 0], second, strict=True):
                lines.writerow([row, label, f"{best:.4f}", f"{best - other:.4f}"])
                row += 1
    return row


def main() -> int:
    """Return 0, 1 after an error, or 2 after a wrong command line."""
    if len(sys.argv) != 3:
        print("usage: bulk.py DRAWINGS.npy LABELS.csv", file=sys.stderr)
        return 2
    source, target = map(Path, sys.argv[1:])
    partial = target.with_name(target.name + ".partial")
    began = time.monotonic()
    try:
        rows = score(source, partial)
        partial.replace(target)
    except (SketchbatchError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{rows} rows in {time.monotonic() - began:.1f} s -> {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
