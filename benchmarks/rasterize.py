"""Measure the speed of rasterising strokes and the difference from Google's bitmaps.

Compares the client's two rasterisers, NumPy and cairo. If cairocffi is installed (no lock file has it), also compares
two ways to use cairocffi. Draws every drawing of DATA/simplified in one thread. The rasterisers run in turn, several
times; the result is the median. CPU seconds are reported in addition to wall seconds, because other work may share the
cores. Writes benchmarks/results/DATE-rasterize.json and prints a table.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.rasterize import backend
from sketchbatch_client.drawings.rendering import cairo, coverage
from sketchbatch_client.drawings.rendering.geometry import MARGIN, PEN, SCALE, SIDE, SQUARE, Strokes, lay_out
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import open_strokes
from variants import cpu_name

HERE = Path(__file__).resolve().parent
NUMPY_EVERY = 10  # the NumPy backend draws every 10th drawing only

Draw = Callable[[Strokes], NDArray[np.uint8]]
Figures = dict[str, float]


def main() -> None:
    """Measure every backend `--repeats` times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="A folder with simplified/ and numpy_bitmap/.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    strokes, bitmaps = published(arguments.data)
    works: dict[str, Callable[[], Figures]] = {
        name: partial(measure, draw, strokes[::every], bitmaps[::every]) for name, (draw, every) in backends().items()
    }
    works["reading a simplified line"] = partial(reading, arguments.data / "simplified")
    works["simplifying a raw drawing"] = partial(simplifying, arguments.data / "raw")
    repeats = [{name: work() for name, work in works.items()} for _ in range(arguments.repeats)]
    results = {name: medians([repeat[name] for repeat in repeats]) for name in works}
    write(results, arguments.repeats)


def backends() -> dict[str, tuple[Draw, int]]:
    """Return the drawing function of each backend, and a step N: the function draws every Nth drawing."""
    found: dict[str, tuple[Draw, int]] = {"numpy": (lambda strokes: coverage.draw(lay_out(strokes)), NUMPY_EVERY)}
    if cairo.library():
        found["cairo through ctypes"] = (lambda strokes: cairo.draw(lay_out(strokes)), 1)
    try:
        found |= {name: (draw, 1) for name, draw in cairocffi_backends().items()}
    except ImportError:
        print("cairocffi is not installed here")
    return found


def published(data: Path) -> tuple[list[Strokes], NDArray[np.uint8]]:
    """Return drawings and Google's bitmaps of them: line i of the strokes is row i of the bitmaps."""
    strokes: list[Strokes] = []
    bitmaps = []
    for path in sorted((data / "simplified").glob("*.ndjson")):
        drawings = [drawing.strokes for drawing in open_strokes(path)]
        strokes += drawings
        bitmaps.append(np.load(data / "numpy_bitmap" / f"{path.stem}.npy", mmap_mode="r")[: len(drawings)])
    return strokes, np.concatenate(bitmaps).reshape(-1, SIDE, SIDE)


def measure(draw: Draw, strokes: list[Strokes], bitmaps: NDArray[np.uint8]) -> Figures:
    """Return the drawings per second of `draw`, and the difference of its bitmaps from `bitmaps`."""
    ours: list[NDArray[np.uint8]] = []
    timing = timed(lambda: ours.extend(map(draw, strokes)), len(strokes))
    differences = np.abs(np.stack(ours).astype(int) - bitmaps)
    return timing | {
        "byte_exact": int((~differences.any(axis=(1, 2))).sum()),
        "drawings": len(strokes),
        "mean_difference": round(float(differences.mean()), 3),
        "largest_difference": int(differences.max()),
    }


def timed(work: Callable[[], object], count: int) -> Figures:
    """Run `work`, which processes `count` items; return the items per CPU second and per wall second."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {"per_cpu_s": round(count / cpu_s), "per_wall_s": round(count / wall_s)}


def reading(folder: Path) -> Figures:
    """Return how many lines of drawings are read and checked per second."""
    files = [open_strokes(path) for path in folder.glob("*.ndjson")]
    return timed(lambda: [drawing for file in files for drawing in file], sum(map(len, files)))


def simplifying(folder: Path) -> Figures:
    """Return how many raw drawings are simplified per second."""
    strokes = [drawing.strokes for path in folder.glob("*.ndjson") for drawing in open_strokes(path)]
    return timed(lambda: list(map(simplify, strokes)), len(strokes))


def medians(repeats: list[Figures]) -> Figures:
    """Return the median of each figure over the repeats."""
    return {name: statistics.median(repeat[name] for repeat in repeats) for name in repeats[0]}


def cairocffi_backends() -> dict[str, Draw]:
    """Return two drawing functions: one calls cairocffi's Python objects for each point of a stroke.

    The other calls two C functions through cairocffi for each stroke.
    """
    import cairocffi

    ffi, low = cairocffi.ffi, cairocffi.cairo
    surface = cairocffi.ImageSurface(cairocffi.FORMAT_ARGB32, SIDE, SIDE)
    pixels = np.frombuffer(surface.get_data(), np.uint32).reshape(SIDE, SIDE)
    context = cairocffi.Context(surface)
    context.set_antialias(cairocffi.ANTIALIAS_BEST)
    context.set_line_cap(cairocffi.LINE_CAP_ROUND)
    context.set_line_join(cairocffi.LINE_JOIN_ROUND)
    context.set_line_width(PEN)
    context.scale(SCALE, SCALE)
    context.translate(MARGIN, MARGIN)
    path = ffi.new("cairo_path_t *")

    def by_objects(strokes: Strokes) -> NDArray[np.uint8]:
        right, down = ((SQUARE - max(max(stroke[axis]) for stroke in strokes)) / 2 for axis in (0, 1))
        context.set_source_rgb(0, 0, 0)
        context.paint()
        context.set_source_rgb(1, 1, 1)
        for xs, ys in strokes:
            context.move_to(xs[0] + right, ys[0] + down)
            for x, y in zip(xs, ys, strict=True):
                context.line_to(x + right, y + down)
            context.stroke()
        return pixels.astype(np.uint8)

    def by_functions(strokes: Strokes) -> NDArray[np.uint8]:
        layout = lay_out(strokes)
        data = cairo._path_data(layout)
        pixels[:] = cairo._BLACK
        place = data.ctypes.data
        for length in layout.lengths:
            path.data, path.num_data = ffi.cast("cairo_path_data_t *", place), 2 * length
            low.cairo_append_path(context._pointer, path)
            low.cairo_stroke(context._pointer)
            place += length * 32
        return pixels.astype(np.uint8)

    return {"cairocffi's objects": by_objects, "cairocffi's functions": by_functions}


def write(results: dict[str, Figures], repeats: int) -> None:
    """Print the table and write the results file."""
    for name, figures in results.items():
        print(name.ljust(26), *(f"{figure} {value:g}".ljust(24) for figure, value in figures.items()))
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "command": "python -m benchmarks rasterize --data ../shared/data/quickdraw",
        "machine": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "backend": backend()}
        | cairocffi_version(),
        "repeats": repeats,
        "results": results,
    }
    path = HERE / "results" / f"{now:%Y-%m-%d}-rasterize.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"-> {path.relative_to(HERE.parent)}")


def cairocffi_version() -> dict[str, str]:
    """Return the version of cairocffi, if cairocffi is installed."""
    try:
        return {"cairocffi": version("cairocffi")}
    except PackageNotFoundError:
        return {}


if __name__ == "__main__":
    main()
