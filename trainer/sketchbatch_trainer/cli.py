"""The command `sketchbatch-train`: fetch or sketch drawings, explore, train, average, export, report, adapt.

Each command imports its slow modules only when it runs, because importing TensorFlow for `--help` would take seconds.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from sketchbatch_client.atomic import unwind_on_signals
from sketchbatch_client.errors import SketchbatchError
from sketchbatch_client.output_file import HTML_MARK, check_reports, local_path

from .adapt.command import adapt
from .errors import TrainerError
from .extras import importing
from .fetch.bucket import BUCKET, cache_folder, known_classes, read_catalogue
from .fetch.formats import FORMATS, FormatName
from .progress import byte_bar, console, row_bar, show_files
from .run import Run, Variant

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a model on drawings and export it as one ONNX file. The order of the commands is: fetch (or sketch), "
    "explore, train, export, report. `adapt` makes such a file of a model that was made with another tool. Then serve "
    "the file with `sketchbatch-serve`, and score drawings with `sketchbatch`.",
)

RunFolder = Annotated[
    Path, typer.Option("--run", parser=local_path, help="Folder of the run. Each command writes its files there.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=local_path,
        help="Folder of drawings in Google's layout (numpy_bitmap/, simplified/, raw/), or of NAME.npy files.",
        show_default="the folder of fetch",
    ),
]
SkipMalformed = Annotated[
    bool, typer.Option("--skip-malformed", help="Skip malformed lines and pictures; otherwise their file is refused.")
]
Classes = Annotated[str, typer.Option(help="Class names, separated by commas; all = every class in the folder.")]

app.command()(adapt)

BEAR_CAT_DOG = "bear,cat,dog"
_EXPLORED = b'\n  "classes": {'  # near the beginning of a JSON file of `explore`


@app.command()
def fetch(
    classes: Annotated[str, typer.Option(help="Class names, separated by commas; all = all 345.")] = BEAR_CAT_DOG,
    form: Annotated[FormatName, typer.Option("--format", help="Bitmaps (npy) or strokes.")] = FormatName.NPY,
    rows: Annotated[
        str, typer.Option(metavar="N|all", help="Number of drawings of each class, from the first; all = whole files.")
    ] = "4000",
    folder: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Target folder, in Google's layout: numpy_bitmap/NAME.npy and so on.",
            show_default="$SKETCHBATCH_DATA, or sketchbatch/quickdraw in your cache",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="Number of files to download concurrently.")] = 4,
    base_url: Annotated[str, typer.Option(help="Address of a copy of the bucket.", show_default="Google's")] = "",
) -> None:
    """Download Quick, Draw! drawings from Google's storage bucket (CC BY 4.0).

    Existing drawings are not downloaded again. After an interruption, the same command resumes.
    Whole .npy files are verified against their known SHA-256. One file is about 115 MB, all 345 are 40 GB.
    """
    from .fetch.fetch_request import FetchRequest, FetchResult
    from .fetch.fetching import fetch as fetch_all

    request = FetchRequest(
        labels=known_classes(classes, read_catalogue()),
        folder=folder or cache_folder(),
        rows=_parse_rows(rows),
        form=FORMATS[form],
        base_url=base_url.rstrip("/") or BUCKET,
        jobs=jobs,
    )
    with byte_bar() as progress:
        task = progress.add_task("fetching", total=sum(map(request.size_bytes_of, request.labels)))

        def report_class(result: FetchResult) -> None:
            excess_bytes = result.received_bytes - request.size_bytes_of(result.label)
            progress.update(task, total=(progress.tasks[0].total or 0) + excess_bytes)
            received = f"{result.received_bytes / 1e6:.1f} MB received" if result.received_bytes else "already complete"
            console.print(f"{result.label}: {result.rows:,} drawings ({received})", markup=False)

        fetch_all(request, on_bytes=lambda size: progress.advance(task, size), on_class=report_class)
    console.print(f"{_join(request.labels)} -> {request.folder}", markup=False)


@app.command()
def sketch(
    folder: Annotated[Path, typer.Option(parser=local_path, help="Target folder of bear.npy, cat.npy and dog.npy.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of drawings of each class.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random drawings.")] = 0,
) -> None:
    """Draw synthetic bears, cats and dogs, for a machine without real drawings and without internet access."""
    from .dataset import write_bitmaps, write_source
    from .synthetic import LABELS, SOURCE, draw

    write_source(folder, SOURCE)
    with row_bar() as progress:
        task = progress.add_task("sketching", total=rows * len(LABELS))
        for label in LABELS:
            bitmaps = draw(label, rows, seed, lambda done: progress.advance(task, done))
            write_bitmaps(folder / f"{label}.npy", bitmaps)
    console.print(f"{', '.join(LABELS)}: {rows:,} synthetic sketches of each -> {folder}")


@app.command()
def explore(
    output: Annotated[Path, typer.Option(parser=local_path, help="HTML page to write; it needs no other file.")],
    data: Data = None,
    classes: Classes = BEAR_CAT_DOG,
    rows: Annotated[int | None, typer.Option(min=1, help="Drawings of each file.", show_default="all")] = None,
    json: Annotated[
        Path | None, typer.Option(parser=local_path, help="JSON file for the same figures.", show_default="none")
    ] = None,
    skip_malformed: SkipMalformed = False,
) -> None:
    """Describe drawings on an HTML page, before any training: counts, countries, times, similar classes."""
    from .explore.explore_json import write_json
    from .explore.explore_page import write_page
    from .explore.exploring import find_files, gather

    data = data or cache_folder()
    files = find_files(data, None if classes == "all" else _parse_labels(classes))
    check_reports([(output, HTML_MARK), (json, _EXPLORED)], [path for own in files.values() for path in own.values()])
    with row_bar() as progress:
        figures = gather(data, files, rows=rows, skip_malformed=skip_malformed, progress=show_files(progress))
        progress.add_task("drawing the page", total=None)
        write_page(figures, output)
    if json:
        write_json(figures, json)
    console.print(f"{_join(tuple(files))}: {figures.drawings:,} drawings -> {output}", markup=False)


@app.command()
def train(
    run: RunFolder,
    data: Data = None,
    classes: Classes = BEAR_CAT_DOG,
    recipe: Annotated[str, typer.Option(help="Recipe: article, compact, again or finetune.")] = "compact",
    network: Annotated[
        str | None,
        typer.Option(
            help="Network of every recipe except article: compact, or light (faster, for few classes).",
            show_default="that of --start-from, or compact",
        ),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Model with the initial weights: a run, a model.onnx, or a folder such as models/quickdraw-345.",
            show_default="none",
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(parser=local_path, help="Run whose scores replace part of each label.", show_default="none"),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Drawings of each class.", show_default="all")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epoch limit.", show_default="the recipe's; more for few drawings")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**30, help="Seed of all random numbers.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="from its classes")] = "",
    source: Annotated[str, typer.Option(help="Origin to store in the model.", show_default="the folder's")] = "",
    skip_malformed: SkipMalformed = False,
) -> None:
    """Train a CNN on drawings. A tenth of the drawings is held out for the test.

    After an interruption, the same command resumes. `tensorboard --logdir RUN` shows the curves during the training.
    On a CPU, equal drawings, options, seed and package versions give equal weights. --teacher may be repeated.
    """
    from dataclasses import replace

    from sketchbatch_client.drawings.readers import labelled_files

    from .dataset import DatasetRequest, count_rows, read_dataset
    from .train.recipes import NETWORKS, RECIPES, fit_rows
    from .train.starting_point import check_start, find_start, fit_recipe

    for value, known, flag in ((recipe, RECIPES, "--recipe"), (network or "compact", NETWORKS, "--network")):
        if value not in known:
            raise typer.BadParameter(f"must be one of {', '.join(known)}, got {value}", param_hint=flag)
    start = find_start(start_from) if start_from else None
    check_start(RECIPES[recipe], start)
    chosen = fit_recipe(RECIPES[recipe], network, start)
    data = data or cache_folder()
    drawings = DatasetRequest(
        folder=data,
        labels=tuple(labelled_files(data)) if classes == "all" else _parse_labels(classes),
        rows_per_class=rows,
        source=source,
        rasterized=Run(run).rasterized,
        skip_malformed=skip_malformed,
    )
    with row_bar() as progress:  # hashing tens of millions of drawings takes minutes
        task = progress.add_task("reading drawings", total=count_rows(drawings))
        dataset = read_dataset(drawings, lambda done: progress.advance(task, done))
    console.print(
        f"{_join(dataset.labels)}: {len(dataset.train):,} drawings for training, "
        f"{len(dataset.validation):,} for validation, {len(dataset.test):,} held out"
    )
    chosen = fit_rows(chosen, len(dataset.train))
    chosen = chosen if epochs is None else replace(chosen, max_epochs=epochs)
    with importing("train"):
        from .train.epoch_printer import EpochPrinter
        from .train.training import TrainingRequest
        from .train.training import train as train_model

    request = TrainingRequest(
        dataset=dataset,
        recipe=chosen,
        seed=seed,
        name=name,
        start_from=start,
        teachers=tuple(map(Run, teacher or ())),
    )
    with row_bar() as progress:
        train_model(request, Run(run), EpochPrinter(progress, chosen.max_epochs))
    console.print(f"Keras model -> {Run(run).keras}")


@app.command()
def average(
    run: RunFolder,
    of: Annotated[
        list[Path], typer.Option(parser=local_path, help="Folder of a trained run. Repeat the option for each run.")
    ],
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="that of the first run")] = "",
) -> None:
    """Average the weights of runs that started from the same run with different seeds. Then export the new run."""
    with importing("train"):
        from .train.averaging import average as average_runs

    average_runs([Run(folder) for folder in of], Run(run), name=name)
    console.print(f"Keras model -> {Run(run).keras}")


@app.command()
def export(
    run: RunFolder,
    version: Annotated[int, typer.Option(min=1, help="Version to store in the file.")] = 1,
    licence: Annotated[str, typer.Option(help="Licence to store in the file.", show_default="not stated")] = "",
    variant: Annotated[
        list[Variant] | None, typer.Option(help="Also export this variant: float16 for CUDA, int8 for the CPU.")
    ] = None,
) -> None:
    """Export a trained run as model.onnx, unless ONNX and Keras scores of the held-out drawings differ too much.

    --variant may be repeated.
    """
    with importing("train"):
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
    run: Annotated[
        list[Path],
        typer.Option(parser=local_path, help="Folder of an exported run. Repeat the option to compare runs."),
    ],
    output: Annotated[
        Path | None, typer.Option(parser=local_path, help="HTML page.", show_default="report.html in the first run")
    ] = None,
) -> None:
    """Compare exported runs on one HTML page: metrics, curves, calibration, confusion, mistakes, cost.

    The page shows the first run in full. A table compares it with the other runs and all int8 and float16 variants.
    """
    with importing("train"):
        from .report.reporting import write_report

    page = output or Run(run[0]).report
    check_reports([(page, HTML_MARK)], ())
    write_report([Run(folder) for folder in run], page)
    console.print(f"report -> {page}")


def main() -> None:
    """Run the command; print an expected error as one line on stderr and exit with code 1."""
    unwind_on_signals()
    try:
        app()
    except (TrainerError, SketchbatchError, OSError) as exc:
        sys.exit(f"sketchbatch-train: {exc}")


def _join(labels: tuple[str, ...]) -> str:
    """Return the labels as text, such as "bear, cat, dog", or their number if there are more than twelve labels."""
    return ", ".join(labels) if len(labels) <= 12 else f"{len(labels)} classes"


def _parse_rows(text: str) -> int | None:
    """Return the number of rows that `--rows` states; None = all rows."""
    if text != "all" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"must be a number from 1 or all, got {text!r}", param_hint="--rows")
    return None if text == "all" else int(text)


def _parse_labels(classes: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in classes.split(",") if label.strip())
    if not labels:
        raise typer.BadParameter(f"must be class names separated by commas, got {classes!r}", param_hint="--classes")
    return labels
