"""The command `sketchbatch-train`: fetch or sketch drawings, explore, train, average, export, report, adapt.

Each command imports its slow modules only when it runs, because importing TensorFlow for `--help` would take seconds.
"""

import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from sketchbatch import versions
from sketchbatch_client.atomic import unwind_on_signals
from sketchbatch_client.errors import SketchbatchError, message_of, naming_skip_malformed
from sketchbatch_client.output_file import HTML_MARK, check_reports, local_path

from .adapt.command import adapt
from .errors import TrainerError
from .explore.command import explore
from .extras import importing
from .fetch.command import fetch
from .hold_out import HoldOut
from .progress import console, joined, row_bar, warn
from .run import Run, Variant, exported_properties
from .selection import (
    Classes,
    Data,
    IgnoreOthers,
    SkipMalformed,
    account,
    choose,
    drawings_folder,
    warn_of_ink,
)

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
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Discard the training in the run folder and begin a new one. model.onnx stays until the next export.",
    ),
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        libraries = ("tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy")
        typer.echo(versions.describe("sketchbatch-train", "sketchbatch-trainer", *libraries))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the versions of the trainer, its libraries and Python, and exit.",
        ),
    ] = False,
) -> None:
    """Take the options that stand before a subcommand."""


app.command()(fetch)


@app.command()
def sketch(
    folder: Annotated[Path, typer.Option(parser=local_path, help="Target folder of bear.npy, cat.npy and dog.npy.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of drawings of each class.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random drawings.")] = 0,
) -> None:
    """Draw synthetic bears, cats and dogs, for a machine without real drawings and without internet access."""
    from .dataset import write_bitmaps, write_source
    from .folder_contents import check_only_synthetic
    from .synthetic import LABELS, SOURCE, draw

    check_only_synthetic(folder)
    write_source(folder, SOURCE)
    with row_bar() as progress:
        task = progress.add_task("sketching", total=rows * len(LABELS))
        for label in LABELS:
            bitmaps = draw(label, rows, seed, lambda done: progress.advance(task, done))
            write_bitmaps(folder / f"{label}.npy", bitmaps)
    console.print(f"{', '.join(LABELS)}: {rows:,} synthetic sketches of each -> {folder}")


app.command()(explore)


@app.command()
def train(
    run: RunFolder,
    data: Data = None,
    classes: Classes = "",
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
    hold_out: Annotated[
        str,
        typer.Option(
            help="Drawings that do not train: test = a tenth for the test and a tenth for validation; K/N = fold K of "
            "N for the test; none = all drawings train.",
        ),
    ] = "test",
    rows: Annotated[int | None, typer.Option(min=1, help="Drawings of each class.", show_default="all")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epoch limit.", show_default="the recipe's; more for few drawings")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**30, help="Seed of all random numbers.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="from its classes")] = "",
    source: Annotated[str, typer.Option(help="Origin to store in the model.", show_default="the folder's")] = "",
    skip_malformed: SkipMalformed = False,
    ignore_others: IgnoreOthers = False,
    restart: Restart = False,
) -> None:
    """Train a CNN on drawings. A tenth of the drawings is held out for the test, unless --hold-out says otherwise.

    After an interruption, the same command resumes. A run folder with another training is refused without --restart.
    `tensorboard --logdir RUN` shows the curves during the training.
    On a CPU, equal drawings, options, seed and package versions give equal weights. --teacher may be repeated.
    """
    from sketchbatch_client.drawings.readers import labelled_files
    from sketchbatch_client.drawings.strokes import STROKE_SUFFIXES

    from .dataset import DatasetRequest, count_rows, read_dataset
    from .train.recipes import NETWORKS, RECIPES, fit_rows

    with importing("train"):
        from .train.starting_point import check_start, find_start, fit_recipe

    for value, known, flag in ((recipe, RECIPES, "--recipe"), (network or "compact", NETWORKS, "--network")):
        if value not in known:
            raise typer.BadParameter(f"must be one of {', '.join(known)}, got {value}", param_hint=flag)
    try:
        division = HoldOut.parse(hold_out)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--hold-out") from exc
    if division.is_nothing and RECIPES[recipe].patience is not None:
        raise typer.BadParameter(
            f"recipe {recipe} stops early, which needs drawings for validation; choose another recipe",
            param_hint="--hold-out",
        )
    start = find_start(start_from) if start_from else None
    check_start(RECIPES[recipe], start)
    chosen = fit_recipe(RECIPES[recipe], network, start)
    folder, target = drawings_folder(data), Run(run)
    found = labelled_files(folder)
    target.check_folder((folder, *found.values()))
    labels = choose(folder, list(found), classes, is_default=data is None)
    if target.config.exists():  # refuses another training before it reads the drawings
        target.state_for(target.read_config() | {"labels": labels, "seed": seed}, restart=restart)
    drawings = DatasetRequest(
        folder=folder,
        labels=labels,
        hold_out=division,
        needs_validation=chosen.patience is not None,
        rows_per_class=rows,
        source=source,
        rasterized=target.rasterized,
        skip_malformed=skip_malformed,
        passed_over=account(folder, found.values(), labels, ignore_others, excluded=run),
    )
    with (
        row_bar() as progress,
        naming_skip_malformed(skip_malformed),
    ):  # hashing tens of millions of drawings takes minutes
        task = progress.add_task("reading drawings", total=count_rows(drawings))
        dataset = read_dataset(drawings, lambda done: progress.advance(task, done))
    console.print(
        f"{joined(dataset.labels)}: {len(dataset.train):,} drawings for training, "
        f"{len(dataset.validation):,} for validation, {len(dataset.test):,} held out"
    )
    if dataset.malformed:
        warn(f"malformed drawings skipped: {', '.join(f'{each}: {n:,}' for each, n in dataset.malformed.items())}")
    for label, bitmaps in zip(dataset.labels, dataset.train.files, strict=True):
        if found[label].suffix.lower() not in STROKE_SUFFIXES:
            warn_of_ink(folder, found[label], bitmaps)
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
        try:
            is_new = train_model(request, target, EpochPrinter(progress, chosen.max_epochs), restart=restart)
        except (KeyboardInterrupt, SystemExit):
            warn("interrupted; the same command resumes after the last finished epoch")
            raise
    _print_trained(target, is_new)


@app.command()
def average(
    run: RunFolder,
    of: Annotated[
        list[Path], typer.Option(parser=local_path, help="Folder of a trained run. Repeat the option for each run.")
    ],
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="that of the first run")] = "",
    restart: Restart = False,
) -> None:
    """Average the weights of runs that started from the same run with different seeds. Then export the new run."""
    with importing("train"):
        from .train.averaging import average as average_runs

    is_new = average_runs([Run(folder) for folder in of], Run(run), name=name, restart=restart)
    _print_trained(Run(run), is_new)


@app.command()
def restrict(
    run: RunFolder,
    of: Annotated[Path, typer.Option(parser=local_path, help="Folder of the trained run.")],
    classes: Annotated[str, typer.Option(help="Names of the classes that stay, separated by commas.")],
    name: Annotated[str, typer.Option(help="Name of the model.", show_default="from its classes")] = "",
    restart: Restart = False,
) -> None:
    """Keep some classes of a trained run, and drop the outputs of the others. Then export the new run.

    A network that learned similar classes, too, tells the remaining ones apart better. A cross-validation of the
    trained run stays valid for the new run.
    """
    with importing("train"):
        from .export.restricting import restrict as restrict_run

    labels = [label.strip() for label in classes.split(",") if label.strip()]
    _print_trained(Run(run), restrict_run(Run(of), Run(run), labels, name=name, restart=restart))


@app.command("cross-validate")
def cross_validate(
    run: RunFolder,
    of: Annotated[
        list[Path],
        typer.Option(parser=local_path, help="Folder of a fold's run. Repeat the option for each fold."),
    ],
    unknown: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Folder of drawings. Those of other classes are scored, too, to choose when `sketchbatch score "
            "--reject` leaves a drawing without a label.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Judge a training on all drawings (--hold-out none) by trainings that each held out one fold (--hold-out K/N).

    Each drawing is scored by the fold that did not train on it. Then export the run: its file states the metrics of
    these scores.
    """
    with importing("train"):
        from .export.out_of_fold import cross_validate as judge

    with row_bar() as progress:
        task = progress.add_task("scoring drawings", total=None)
        result = judge([Run(folder) for folder in of], Run(run), unknown, lambda rows: progress.advance(task, rows))
    others = f", and {len(result.unknown):,} of other classes" if len(result.unknown) else ""
    console.print(f"{len(result.logits):,} drawings scored by {result.folds} folds{others} -> {run}")
    console.print(result.summary())
    console.print(f"export it: sketchbatch-train export --run {quote(str(run))}", soft_wrap=True)


@app.command()
def export(
    run: RunFolder,
    version: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Version to store in the file.",
            show_default="1; for a new training or cross-validation the next one",
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence to store in the file.", show_default="not stated")] = "",
    variant: Annotated[
        list[Variant] | None, typer.Option(help="Also export this variant: float16 for CUDA, int8 for the CPU.")
    ] = None,
) -> None:
    """Export a trained run as model.onnx, unless ONNX and Keras scores of the held-out drawings differ too much.

    The file of an earlier export stays until it is replaced, so that a service can load it at any time.
    --variant may be repeated.
    """
    with importing("train"):
        from .export.exporting import export as export_model
        from .export.variants import export_variant

    def report_file(path: Path) -> None:
        number = exported_properties(path)["sketchbatch.version"]
        console.print(f"ONNX model -> {path} ({path.stat().st_size / 1e6:.1f} MB), version {number}")

    console.print(f"parity: {export_model(Run(run), version=version, licence=licence)}")
    report_file(Run(run).onnx)
    for each in sorted(set(variant or ()) - {Variant.FLOAT32}):
        console.print(f"parity: {export_variant(Run(run), each)}")
        report_file(Run(run).exported(each))
    for each in Variant:
        if Run(run).exported(each).exists() and not Run(run).has_export(each):
            warn(f"{Run(run).exported(each)} is of an earlier training or export; --variant {each} replaces it")
    console.print(
        f"serve it: sketchbatch-serve --model {quote(str(Run(run).onnx))} --address 127.0.0.1:50051", soft_wrap=True
    )
    console.print(f"metrics and plots: sketchbatch-train report --run {quote(str(run))}", soft_wrap=True)


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
    page = output or Run(run[0]).report
    check_reports([(page, HTML_MARK)], ())
    with importing("train"):
        from .report.reporting import write_report

    write_report([Run(folder) for folder in run], page)
    console.print(f"report -> {page}")


app.command()(adapt)


def main() -> None:
    """Run the command; print an expected error as one line on stderr and exit with code 1."""
    unwind_on_signals()
    try:
        app()
    except (TrainerError, SketchbatchError, OSError) as exc:
        sys.exit(f"sketchbatch-train: {message_of(exc)}")


def _print_trained(run: Run, is_new: bool) -> None:
    model = f"Keras model -> {run.keras}"
    console.print(model if is_new else f"already finished: {model}; --restart repeats the training")
