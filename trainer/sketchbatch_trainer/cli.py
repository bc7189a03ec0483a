"""The command `sketchbatch-train`: fetch or sketch drawings, explore, train, export, report.

Each command imports what it needs when it runs: TensorFlow takes seconds, and `--help` must not.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sketchbatch_client.atomic import unwind_on_signals
from sketchbatch_client.errors import SketchbatchError

from .errors import TrainerError
from .fetch.formats import FormatName
from .run import Run, Variant

if TYPE_CHECKING:
    from .dataset import Drawings, Wanted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns drawings into one ONNX file. In order: fetch (or sketch), explore, train, export, report; then serve "
    "it with `sketchbatch-serve`, and score drawings with `sketchbatch`.",
)

Classes = Annotated[str, typer.Option(help="Class names, separated by commas; their order becomes the model's.")]
RunFolder = Annotated[Path, typer.Option("--run", help="The run's folder; each step leaves its files there.")]

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Drawings in Google's layout (numpy_bitmap/, simplified/, raw/, any of them), or any NAME.npy.",
        show_default="where fetch keeps them",
    ),
]

BEAR_CAT_DOG = "bear,cat,dog"


@app.command()
def fetch(
    classes: Annotated[str, typer.Option(help="Class names, separated by commas; all = all 345.")] = BEAR_CAT_DOG,
    form: Annotated[FormatName, typer.Option("--format", help="Bitmaps (npy) or strokes.")] = FormatName.NPY,
    rows: Annotated[
        str, typer.Option(metavar="N|all", help="How many drawings of each class, from the first; all = whole files.")
    ] = "4000",
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where to keep them, in Google's layout: numpy_bitmap/NAME.npy and so on.",
            show_default="$SKETCHBATCH_DATA, or sketchbatch/quickdraw in your cache",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="How many files at a time.")] = 4,
    base_url: Annotated[str, typer.Option(help="Another copy of the bucket.", show_default="Google's")] = "",
) -> None:
    """Fetches Quick, Draw! drawings from Google's bucket (CC BY 4.0).

    What is there already is not fetched again; stopped or killed, the same command goes on where it was.
    Whole .npy files are checked against their known SHA-256; one is about 115 MB, all 345 are 40 GB.
    """
    from .fetch.bucket import BUCKET, cache_folder, known_classes, read_catalogue
    from .fetch.fetch_request import Fetched, Order
    from .fetch.fetching import fetch as fetch_all
    from .fetch.formats import FORMATS
    from .progress import console, download_bar

    order = Order(
        labels=known_classes(classes, read_catalogue()),
        folder=folder or cache_folder(),
        rows=_rows_or_all(rows),
        form=FORMATS[form],
        base_url=base_url.rstrip("/") or BUCKET,
        jobs=jobs,
    )
    with download_bar() as shown:
        total = order.size_bytes
        task = shown.add_task("fetching", total=total)

        def report_class(fetched: Fetched) -> None:
            nonlocal total
            total += fetched.received_bytes - order.size_bytes_of(fetched.label)
            shown.update(task, total=total)
            received = f"{fetched.received_bytes / 1e6:.1f} MB came" if fetched.received_bytes else "was there"
            console.print(f"{fetched.label}: {fetched.rows:,} drawings ({received})", markup=False)

        fetch_all(order, on_bytes=lambda size: shown.advance(task, size), on_class=report_class)
    console.print(f"{_listed(order.labels)} -> {order.folder}", markup=False)


@app.command()
def sketch(
    folder: Annotated[Path, typer.Option(help="Where to write bear.npy, cat.npy and dog.npy.")],
    rows: Annotated[int, typer.Option(min=1, help="How many drawings of each class.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws others.")] = 0,
) -> None:
    """Draws synthetic bears, cats and dogs, for a machine without drawings and without a network."""
    from .dataset import write_bitmaps, write_source
    from .progress import bar, console
    from .synthetic import LABELS, SOURCE, draw

    write_source(folder, SOURCE)
    with bar() as shown:
        task = shown.add_task("sketching", total=rows * len(LABELS))
        for label in LABELS:
            write_bitmaps(folder / f"{label}.npy", draw(label, rows, seed, lambda done: shown.advance(task, done)))
    console.print(f"{', '.join(LABELS)}: {rows:,} synthetic sketches of each -> {folder}")


@app.command()
def explore(
    output: Annotated[Path, typer.Option(help="The HTML page to write; nothing else is needed to show it.")],
    data: Data = None,
    classes: Annotated[
        str, typer.Option(help="Class names, separated by commas; all = every class there.")
    ] = BEAR_CAT_DOG,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Most drawings of each file to read.", show_default="all")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures here.", show_default="nowhere")] = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave out malformed lines, and say how many; else refuse them.")
    ] = False,
) -> None:
    """Shows what drawings are like, before any training: an HTML page of counts, countries, times, look-alikes."""
    from .explore.explore_json import write_json
    from .explore.explore_page import write_page
    from .explore.exploring import find_files, gather
    from .fetch.bucket import cache_folder
    from .progress import bar, console, watching

    data = data or cache_folder()
    files = find_files(data, None if classes == "all" else _labels(classes))
    with bar() as shown:
        figures = gather(data, files, rows=rows, skip_malformed=skip_malformed, progress=watching(shown))
        shown.add_task("drawing the page", total=None)
        write_page(figures, output)
    if json:
        write_json(figures, json)
    console.print(f"{_listed(tuple(files))}: {figures.drawings:,} drawings -> {output}", markup=False)


@app.command()
def train(
    run: RunFolder,
    data: Data = None,
    classes: Annotated[
        str, typer.Option(help="Class names, separated by commas; all = every class there.")
    ] = BEAR_CAT_DOG,
    recipe: Annotated[str, typer.Option(help="Recipe to follow: article, compact, again or finetune.")] = "compact",
    network: Annotated[
        str,
        typer.Option(help="Network of any recipe but article: compact, or light, for few classes and more rows/s."),
    ] = "compact",
    start_from: Annotated[
        Path | None, typer.Option(help="Begin with the weights of this run, of the same network.", show_default="none")
    ] = None,
    teacher: Annotated[
        list[Path] | None, typer.Option(help="Learn from this run's scores, too; may be repeated.", show_default="none")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Drawings of each class.", show_default="all")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs.", show_default="the recipe's")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**30, help="Same seed, drawings and versions: same weights on CPU.")
    ] = 0,
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="from its classes")] = "",
    source: Annotated[
        str, typer.Option(help="Where the drawings come from, to be kept with the model.", show_default="the folder's")
    ] = "",
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave out lines and pictures that are no drawing.")
    ] = False,
) -> None:
    """Trains a CNN on drawings, and keeps a tenth of them out of it to test on.

    A training that was cut off goes on where it was when the same command is given again. `tensorboard --logdir RUN`
    shows its curves while it runs.
    """
    from dataclasses import replace

    from sketchbatch_client.drawings.readers import labelled_files

    from .dataset import Wanted
    from .fetch.bucket import cache_folder
    from .progress import bar, console
    from .train.recipes import ARTICLE, NETWORKS, RECIPES, with_network

    for given, known, flag in ((recipe, RECIPES, "--recipe"), (network, NETWORKS, "--network")):
        if given not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}, got {given}", param_hint=flag)
    chosen = RECIPES[recipe] if RECIPES[recipe] is ARTICLE else with_network(RECIPES[recipe], network)
    chosen = chosen if epochs is None else replace(chosen, max_epochs=epochs)
    data = data or cache_folder()
    labels = tuple(labelled_files(data)) if classes == "all" else _labels(classes)
    drawings = _read_drawings(
        Wanted(
            folder=data,
            labels=labels,
            rows_per_class=rows,
            source=source,
            drawn=Run(run).drawn,
            skip_malformed=skip_malformed,
        )
    )
    console.print(
        f"{_listed(drawings.labels)}: {len(drawings.train):,} drawings to train on, "
        f"{len(drawings.validation):,} to validate, {len(drawings.test):,} held out"
    )
    with _quiet_import():
        from .train.epoch_lines import EpochLines
        from .train.training import Job, train

    job = Job(
        drawings=drawings,
        recipe=chosen,
        seed=seed,
        name=name,
        start_from=Run(start_from) if start_from else None,
        teachers=tuple(map(Run, teacher or ())),
    )
    with bar() as shown:
        train(job, Run(run), EpochLines(shown, chosen.max_epochs))
    console.print(f"Keras model -> {Run(run).keras}")


@app.command()
def average(
    run: RunFolder,
    of: Annotated[list[Path], typer.Option(help="A trained run's folder; given again for each to average.")],
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="that of the first")] = "",
) -> None:
    """Averages the weights of runs that started from the same run and differ by --seed; leaves a run to export."""
    from .progress import console

    with _quiet_import():
        from .train.averaging import average as average_runs

    average_runs([Run(folder) for folder in of], Run(run), name=name)
    console.print(f"Keras model -> {Run(run).keras}")


@app.command()
def export(
    run: RunFolder,
    version: Annotated[int, typer.Option(min=1, help="Version to write into the file.")] = 1,
    licence: Annotated[str, typer.Option(help="Licence to write into the file.", show_default="not stated")] = "",
    variant: Annotated[
        list[Variant] | None,
        typer.Option(help="Also write this one beside float32: float16 for CUDA, int8 for the CPU. May be repeated."),
    ] = None,
) -> None:
    """Exports a trained run as model.onnx; refuses if ONNX and Keras differ on the held-out drawings."""
    from .progress import console

    with _quiet_import():
        from .export.exporting import export as export_model
        from .export.variants import export_variant

    def report_file(path: Path) -> None:
        console.print(f"ONNX model -> {path} ({path.stat().st_size / 1e6:.1f} MB)")

    console.print(f"parity: {export_model(Run(run), version=version, licence=licence)}")
    report_file(Run(run).onnx)
    for each in sorted(set(variant or ()) - {Variant.FLOAT32}):
        console.print(f"parity: {export_variant(Run(run), each)}")
        report_file(Run(run).exported(each))


@app.command()
def report(
    run: Annotated[list[Path], typer.Option(help="A run's folder; given again, further runs to stand beside it.")],
    output: Annotated[
        Path | None, typer.Option(help="The page to write.", show_default="report.html in the first run")
    ] = None,
) -> None:
    """Writes one page on exported runs: metrics, curves, calibration, confusion, mistakes, cost, side by side.

    The first run is shown in full, the others and all int8 and float16 variants in the table beside it.
    """
    from .progress import console
    from .report.reporting import write_report

    page = output or Run(run[0]).report
    write_report([Run(folder) for folder in run], page)
    console.print(f"report -> {page}")


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
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels report to Microsoft unless told not to
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _read_drawings(wanted: "Wanted") -> "Drawings":
    """Opens and splits them, behind a bar: hashing tens of millions takes minutes."""
    from .dataset import count_rows, read_drawings
    from .progress import bar

    with bar() as shown:
        task = shown.add_task("reading drawings", total=count_rows(wanted))
        return read_drawings(wanted, lambda done: shown.advance(task, done))


def _listed(labels: tuple[str, ...]) -> str:
    """Such as: bear, cat, dog; or 345 classes."""
    return ", ".join(labels) if len(labels) <= 12 else f"{len(labels)} classes"


def _rows_or_all(text: str) -> int | None:
    """None = all."""
    if text == "all":
        return None
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(f"expected a number from 1, or all, got {text!r}", param_hint="--rows")
    return int(text)


def _labels(classes: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in classes.split(",") if label.strip())
    if not labels:
        raise typer.BadParameter(f"expected class names separated by commas, got {classes!r}", param_hint="--classes")
    return labels
