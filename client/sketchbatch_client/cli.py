"""The command `sketchbatch`: score, evaluate, model, health."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .atomic import unwind_on_signals
from .client import Client
from .errors import SketchbatchError, Unavailable
from .evaluation import Evaluation, open_labelled
from .evaluation import evaluate as evaluate_model
from .retry import RetryPolicy
from .scoring import ScoreOptions, find_inputs, score_files

out = Console(soft_wrap=True, markup=False)
err = Console(stderr=True, soft_wrap=True, markup=False)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Classifies drawings in bulk through a Sketchbatch service, and says how good its model is.",
)

Server = Annotated[
    str, typer.Option(envvar="SKETCHBATCH_SERVER", help="Where the service listens.", metavar="HOST:PORT")
]
ModelName = Annotated[str, typer.Option("--model", help="Model to ask for.", show_default="the service's default")]
ModelVersion = Annotated[str, typer.Option("--model-version", help="Its version.", show_default="the newest")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Longest one request may take, retries included, in seconds.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Write errors only.")]

LOCAL = "localhost:50051"


@app.command()
def score(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Drawings: .npy of uint8 (rows, 28, 28) or (rows, 784), .ndjson or .bin strokes, PNG or JPEG, or "
            "folders of them.",
            metavar="INPUT",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="File to write, one line a row; its ending says how: .parquet, .csv or .jsonl.")
    ],
    server: Server = LOCAL,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the best classes to write for each row.")] = 1,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Write the score of every class, too.")] = False,
    model: ModelName = "",
    model_version: ModelVersion = "",
    timeout_s: TimeoutS = 60.0,
    quiet: Quiet = False,
) -> None:
    """Classifies every drawing of some files.

    Writes one line for each: source file, row number in it, label, score. Order is kept, one version of the model
    answers for the whole file, and OUTPUT appears only when it is whole.
    """
    if all_scores and top_k > 1:
        raise typer.BadParameter("choose one of --all-scores and --top-k", param_hint="--all-scores")
    options = ScoreOptions(top_k=top_k, with_all_scores=all_scores, model_name=model, model_version=model_version)
    bitmaps = find_inputs(inputs)
    started_at = time.monotonic()
    with Client(server, timeout_s=timeout_s) as client, _progress("scoring", bitmaps.values(), quiet) as advance:
        rows = score_files(client, bitmaps, output, options, advance)
    if not quiet:
        took_s = time.monotonic() - started_at
        err.print(
            f"{rows:,} rows from {len(bitmaps)} files in {took_s:.1f} s ({rows / took_s:,.0f} rows/s) -> {output}"
        )


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder with a NAME.npy for each label, or a folder of pictures.")],
    server: Server = LOCAL,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
    model: ModelName = "",
    model_version: ModelVersion = "",
    timeout_s: TimeoutS = 60.0,
    quiet: Quiet = False,
) -> None:
    """Says how good the served model is on labelled drawings.

    Accuracy, balanced accuracy, specificity, Matthews correlation and Jaccard (macro-averaged), precision and recall
    of each class, and the confusion matrix. Files named after a label that the model does not know are passed over.
    """
    with Client(server, timeout_s=timeout_s) as client:
        served = client.model(model, model_version)
        drawings = open_labelled(folder, served.labels)
        with _progress("evaluating", drawings.bitmaps.values(), quiet) as advance:
            evaluation = evaluate_model(client, served, drawings, advance)
    if json_file:
        evaluation.write(json_file)
    if quiet:
        return
    rows = int(evaluation.confusion.sum())
    out.print(f"{served.name} version {served.version} on {rows:,} drawings: {drawings.source}")
    for name, value in asdict(evaluation.metrics).items():
        out.print(f"  {name:<18} {value:.4f}")
    out.print(_confusion_table(evaluation))
    if drawings.passed_over:
        err.print(f"passed over {len(drawings.passed_over)} files whose label this model does not know")


@app.command()
def model(
    server: Server = LOCAL,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Describes the models being served: labels, versions, limits, provider, digest, metrics."""
    with Client(server, timeout_s=timeout_s) as client:
        models = client.models()
    if as_json:
        print(json.dumps([asdict(each) for each in models], indent=2, ensure_ascii=False))
        return
    for each in models:
        title = f"{each.name} version {each.version}{' (default)' if each.is_default else ''}"
        table = Table("", Column(overflow="fold"), title=title, title_justify="left", show_header=False, box=None)
        labels = ", ".join(each.labels[:12]) + (", ..." if len(each.labels) > 12 else "")
        table.add_row("labels", f"{len(each.labels)}: {labels}")
        table.add_row("runs on", each.provider)
        table.add_row("rows a request", f"at most {each.max_request_rows}")
        table.add_row("digest", each.digest)
        for name in ("created", "licence"):
            table.add_row(name, getattr(each, name) or "not said")
        for name, value in sorted(each.metrics.items()):
            if isinstance(value, (int, float)):
                table.add_row(name, f"{value:.4g}")
        out.print(table)


@app.command()
def health(
    server: Server = LOCAL,
    service: Annotated[
        str, typer.Option(help="Service to ask about, such as sketchbatch.v1.ClassifierService.", show_default="all")
    ] = "",
    timeout_s: TimeoutS = 5.0,
) -> None:
    """Asks whether the service is ready; exits with 0 only if it says SERVING."""
    with Client(server, timeout_s=timeout_s, retry=RetryPolicy(max_attempts=1)) as client:
        try:
            status = client.health(service)
        except Unavailable:
            status = "UNREACHABLE"
    print(status)
    raise typer.Exit(0 if status == "SERVING" else 1)


def main() -> None:
    """Runs the command; what a person can put right ends as one line on stderr and exit code 1."""
    unwind_on_signals()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is said once, by us
    try:
        app()
    except (SketchbatchError, OSError) as exc:
        sys.exit(f"sketchbatch: {exc}")


@contextmanager
def _progress(verb: str, arrays: Iterable[Sized], is_quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows rows done, rows/s and time left on a terminal; yields what to call with each number of rows done."""
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rows_per_s]:,.0f} rows/s"),
        TimeRemainingColumn(),
    )
    started_at = time.monotonic()
    with Progress(*columns, console=err, disable=is_quiet or not err.is_terminal, transient=True) as bar:
        task = bar.add_task(verb, total=sum(map(len, arrays)), rows_per_s=0.0)

        def advance(rows: int) -> None:
            done = bar.tasks[task].completed + rows
            bar.update(task, completed=done, rows_per_s=done / (time.monotonic() - started_at))

        yield advance


def _confusion_table(evaluation: Evaluation) -> Table:
    """One line a class: its own figures, then how its rows were predicted; at most 12 classes' columns."""
    labels = evaluation.model.labels
    has_columns = len(labels) <= 12
    table = Table("true \\ predicted", *(labels if has_columns else ()), "rows", "recall", "precision", box=SIMPLE)
    for index, (label, own) in enumerate(evaluation.per_class.items()):
        counts = [str(count) for count in evaluation.confusion[index]] if has_columns else []
        table.add_row(label, *counts, f"{own['rows']}", f"{own['recall']:.3f}", f"{own['precision']:.3f}")
    return table
