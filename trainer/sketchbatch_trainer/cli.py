"""The command `sketchbatch-train`: fetch or sketch drawings, train, export, report.

Each command imports what it needs when it runs: TensorFlow takes seconds, and `--help` must not.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sketchbatch_client.atomic import unwind_on_signals
from sketchbatch_client.errors import SketchbatchError

from .errors import TrainerError
from .run import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns drawings into one ONNX file. In order: fetch (or sketch), train, export; then serve it, score and "
    "evaluate its held-out drawings with `sketchbatch`, and report.",
)

Classes = Annotated[str, typer.Option(help="Class names, separated by commas; their order becomes the model's.")]
RunFolder = Annotated[Path, typer.Option("--run", help="The run's folder; each step leaves its files there.")]

BEAR_CAT_DOG = "bear,cat,dog"


@app.command()
def fetch(
    folder: Annotated[Path, typer.Option(help="Where to write NAME.npy for each class.")],
    classes: Classes = BEAR_CAT_DOG,
    rows: Annotated[int, typer.Option(min=1, help="How many drawings of each class, from the first.")] = 4000,
    base_url: Annotated[str, typer.Option(help="Another copy of the bucket.", show_default="Google's")] = "",
) -> None:
    """Fetches Quick, Draw! bitmaps from Google's bucket (CC BY 4.0)."""
    from .drawings import write_source
    from .fetch import BUCKET, SOURCE, fetch_bitmaps
    from .progress import bar, console

    labels = _labels(classes)
    write_source(folder, SOURCE.format(rows=rows))
    with bar() as shown:
        for label in shown.track(labels, description="fetching"):
            fetch_bitmaps(label, rows, folder, base_url or BUCKET)
    console.print(f"{', '.join(labels)}: the first {rows:,} drawings of each -> {folder}")


@app.command()
def sketch(
    folder: Annotated[Path, typer.Option(help="Where to write bear.npy, cat.npy and dog.npy.")],
    rows: Annotated[int, typer.Option(min=1, help="How many drawings of each class.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws others.")] = 0,
) -> None:
    """Draws synthetic bears, cats and dogs, for a machine without drawings and without a network."""
    from .drawings import write_bitmaps, write_source
    from .progress import bar, console
    from .sketches import LABELS, SOURCE, draw

    write_source(folder, SOURCE)
    with bar() as shown:
        task = shown.add_task("sketching", total=rows * len(LABELS))
        for label in LABELS:
            write_bitmaps(folder / f"{label}.npy", draw(label, rows, seed, lambda done: shown.advance(task, done)))
    console.print(f"{', '.join(LABELS)}: {rows:,} synthetic sketches of each -> {folder}")


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Drawings in Google's layout: NAME.npy, or numpy_bitmap/NAME.npy.")],
    run: RunFolder,
    classes: Classes = BEAR_CAT_DOG,
    recipe: Annotated[str, typer.Option(help="Recipe to follow.")] = "article",
    rows: Annotated[int | None, typer.Option(min=1, help="Drawings of each class.", show_default="all")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs.", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, drawings and versions: same weights on CPU.")] = 0,
    source: Annotated[
        str, typer.Option(help="Where the drawings come from, to be kept with the model.", show_default="the folder's")
    ] = "",
) -> None:
    """Trains a CNN on drawings, and keeps a tenth of them out of it to test on."""
    from dataclasses import replace

    from .drawings import read_drawings
    from .progress import bar, console
    from .recipes import RECIPES

    if recipe not in RECIPES:
        raise typer.BadParameter(f"expected one of {', '.join(RECIPES)}, got {recipe}", param_hint="--recipe")
    chosen = RECIPES[recipe] if epochs is None else replace(RECIPES[recipe], max_epochs=epochs)
    drawings = read_drawings(data, _labels(classes), rows, source)
    console.print(
        f"{', '.join(drawings.labels)}: {len(drawings.train):,} drawings to train on, "
        f"{len(drawings.validation):,} to stop by, {len(drawings.test):,} held out"
    )
    with _quiet_import():
        from .epochs import EpochLines
        from .training import train as train_network

    with bar() as shown:
        train_network(drawings, chosen, Run(run), seed=seed, callbacks=[EpochLines(shown)])
    console.print(f"Keras model -> {Run(run).keras}")


@app.command()
def export(
    run: RunFolder,
    version: Annotated[int, typer.Option(min=1, help="Version to write into the file.")] = 1,
    licence: Annotated[str, typer.Option(help="Licence to write into the file.", show_default="not stated")] = "",
) -> None:
    """Exports a trained run as model.onnx; refuses if ONNX and Keras differ on the held-out drawings."""
    from .progress import console

    with _quiet_import():
        from .export import export as export_model

    parity = export_model(Run(run), version=version, licence=licence)
    console.print(f"parity: {parity}")
    console.print(f"ONNX model -> {Run(run).onnx} ({Run(run).onnx.stat().st_size / 1e6:.1f} MB)")


@app.command()
def report(run: RunFolder) -> None:
    """Writes report.html of a run that was scored and evaluated: metrics, curves, confusion, drawings."""
    from .progress import console
    from .report import write_report

    console.print(f"report -> {write_report(Run(run))}")


def main() -> None:
    """Runs the command; what a person can put right ends as one line on stderr and exit code 1."""
    unwind_on_signals()
    try:
        app()
    except (TrainerError, SketchbatchError, OSError) as exc:
        sys.exit(f"sketchbatch-train: {exc}")


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps TensorFlow's start-up lines off stderr: its C++ writes them before any setting of its own can stop it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # and its later ones, about GPUs that are not there
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _labels(classes: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in classes.split(",") if label.strip())
    if not labels:
        raise typer.BadParameter(f"expected class names separated by commas, got {classes!r}", param_hint="--classes")
    return labels
