"""The subcommand `evaluate`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE
from rich.table import Table

from ..evaluation.evaluating import Comparison, Evaluation, common_labels, compare
from ..evaluation.evaluating import evaluate as evaluate_model
from ..evaluation.evaluation_json import write_json
from ..evaluation.evaluation_page import write_page
from ..evaluation.evaluation_plot import write_plot
from ..evaluation.labelled import LabelledDrawings, open_labelled
from ..evaluation.predictions import ServedModel
from ..evaluation.stats.drift import LIKELY_REASONS, stored_rows
from ..evaluation.stats.mcnemar import format_p_value
from ..label_names import listed, with_suggestions
from .options import ConnectionOptions, ModelName, ModelVersion, Quiet, TimeoutS, connecting, err, not_nan, out
from .progress import show_progress

_MALFORMED_SHOWN = 5
_MOST_COLUMNS = 12  # more columns of counts do not fit into a terminal


@connecting
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="Folder with a NAME.npy, .ndjson or .bin per label, or with pictures.")
    ],
    connection: ConnectionOptions,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Also write the figures to this JSON file.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", dir_okay=False, help="Also write an HTML page to this file.")
    ] = None,
    png_file: Annotated[
        Path | None,
        typer.Option("--png", dir_okay=False, help="Also write the metrics and the confusion matrix as a picture."),
    ] = None,
    svg_file: Annotated[
        Path | None, typer.Option("--svg", dir_okay=False, help="Also write the same picture as an SVG file.")
    ] = None,
    model: ModelName = "",
    model_version: ModelVersion = "",
    against_server: Annotated[
        str,
        typer.Option(help="Compare with a model of this service.", metavar="HOST:PORT", show_default="--server"),
    ] = "",
    against_model: Annotated[
        str, typer.Option(help="Compare with this model.", show_default="default of --against-server, or --model")
    ] = "",
    against_version: Annotated[str, typer.Option(help="Compare with this version.", show_default="the newest")] = "",
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Skip and count malformed drawings instead of stopping.")
    ] = False,
    min_accuracy: Annotated[
        float, typer.Option(min=0, max=1, callback=not_nan, help="Exit with 1 if the accuracy is lower.")
    ] = 0.0,
    timeout_s: TimeoutS = 60.0,
    quiet: Quiet = False,
) -> None:
    """Evaluate the served model on labelled drawings, alone or against a second model.

    Example: sketchbatch evaluate runs/demo/test --html evaluation.html

    Prints accuracy, balanced accuracy, specificity, Matthews correlation and Jaccard (macro-averaged) with 95 %
    intervals; recall and precision per class; the confusion matrix; calibration; and the drift from the metrics
    that the model file stores. An --against option adds a second model and McNemar's test. A file is skipped if the
    model does not know its label.

    Exit codes: 0 = evaluated, 1 = the accuracy is below --min-accuracy, or an error after which the same command may
    succeed, 2 = invalid options, 4 = an error that a retry cannot repair.
    """
    with ExitStack() as stack:
        client = stack.enter_context(connection.open(timeout_s=timeout_s))
        served = client.model(model, model_version, with_training_digests=True)
        first, second = ServedModel(client, served), None
        labels = first.model.labels
        if against_server or against_model or against_version:
            other = client
            if against_server:
                other = stack.enter_context(replace(connection, server=against_server).open(timeout_s=timeout_s))
            name = against_model or ("" if against_server else model)
            second = ServedModel(other, other.model(name, against_version, with_training_digests=True))
            labels = common_labels(first.model, second.model)
        drawings = open_labelled(folder, labels, skip_malformed=skip_malformed)
        result: Evaluation | Comparison
        with show_progress("evaluating", drawings.bitmaps.values(), is_quiet=quiet) as advance:
            if second:
                result = compare(first, second, drawings, advance)
            else:
                result = evaluate_model(client, first.model, drawings, advance)
    _write_files(result, json_file, html_file, png_file, svg_file)
    evaluation = result.first if isinstance(result, Comparison) else result
    for name, each in result.named if isinstance(result, Comparison) else [(result.name, result)]:
        if each.trained_on and each.trained_on.matches:
            err.print(f"{name}: {each.trained_on}; a model looks better on drawings that trained it")
    if not quiet:
        _print(evaluation)
        if isinstance(result, Comparison):
            _print_comparison(result)
        _print_skipped(drawings, labels, "not both models know" if second else "this model does not know")
    accuracy = evaluation.metrics.accuracy
    if accuracy < min_accuracy:
        err.print(f"accuracy must be at least {min_accuracy}, got {accuracy:.4f}")
        raise typer.Exit(1)


def _write_files(result: Evaluation | Comparison, *files: Path | None) -> None:
    """Write the files whose path is not None: JSON, HTML, PNG and SVG."""
    to_png, to_svg = partial(write_plot, file_format="png"), partial(write_plot, file_format="svg")
    writers: tuple[Callable[..., None], ...] = (write_json, write_page, to_png, to_svg)
    for file, write in zip(files, writers, strict=True):
        if file:
            write(result, file)


def _print(evaluation: Evaluation) -> None:
    drawings = evaluation.drawings
    out.print(f"{evaluation.name} on {evaluation.figures.rows:,} drawings: {drawings.source}")
    _print_figures(evaluation)
    out.print(_confusion_table(evaluation))
    _print_recognized(evaluation)
    _print_calibration(evaluation)
    _print_drift(evaluation)


def _print_figures(evaluation: Evaluation) -> None:
    for name, each in evaluation.figures.measured.items():
        out.print(f"  {name:<18} {each}")
    if without_drawings := len(evaluation.labels) - evaluation.tested_labels:
        out.print(
            f"  {without_drawings} of {len(evaluation.labels)} classes have no drawings here: "
            "the means over classes leave them out"
        )


def _print_skipped(drawings: LabelledDrawings, labels: Sequence[str], reason: str) -> None:
    if passed_over := drawings.passed_over:
        files = "1 file" if len(passed_over) == 1 else f"{len(passed_over)} files"
        err.print(f"skipped {files} whose label {reason}: {with_suggestions(passed_over, labels)}")
    if others := drawings.other_kinds:
        kind = next(iter(drawings.bitmaps)).suffix or "folders of pictures"
        names = listed([path.name for path in others])
        err.print(f"skipped {len(others)} files of another format than {kind}: {names}; move them to another folder")
    if drawings.malformed_count:
        err.print(f"skipped {drawings.malformed_count:,} malformed drawings, for example:")
        for file, malformed in drawings.malformed[:_MALFORMED_SHOWN]:
            err.print(f"  {file}:{malformed.number}: {malformed.reason}")


def _print_recognized(evaluation: Evaluation) -> None:
    if evaluation.recognized:
        for figures, kind in (
            (evaluation.recognized.known, "drawings with a known recognition by the game"),
            (evaluation.recognized.recognized, "drawings that the game recognised"),
        ):
            own = figures.measured["accuracy"]
            out.print(f"accuracy on the {figures.rows:,} {kind}: {own}")


def _print_calibration(evaluation: Evaluation) -> None:
    calibration = evaluation.calibration
    if not calibration:
        out.print("calibration unknown: the scores of a row do not sum to 1")
        return
    out.print(
        f"calibration: error (ECE) {calibration.expected_error:.4f}, mean score {calibration.mean_confidence:.4f}, "
        f"log loss {calibration.log_loss:.4f}, Brier {calibration.brier:.4f}"
    )


def _print_drift(evaluation: Evaluation) -> None:
    if not evaluation.drift:
        return
    rows = stored_rows(evaluation.model.metrics)
    out.print("figures stored in the model" + (f", of {rows:,} drawings:" if rows else ":"))
    for name, each in evaluation.drift.items():
        out.print(f"  {name:<18} {each.stored:.4f}   {each}")
    if any(each.is_chance is False for each in evaluation.drift.values()):
        out.print(f"  likely reasons for a difference beyond chance: {LIKELY_REASONS}")


def _print_comparison(comparison: Comparison) -> None:
    paired = comparison.paired
    first, second = (name for name, _ in comparison.named)
    out.print(f"\n{second} on the same drawings")
    _print_figures(comparison.second)
    out.print(
        f"both right {paired.table[1, 1]:,}, only {first} {paired.only_first:,}, only {second} {paired.only_second:,}, "
        f"both wrong {paired.table[0, 0]:,}"
    )
    out.print(f"accuracy {paired.difference.text('+.4f')}, McNemar p {format_p_value(paired.p_value)}")
    out.print(paired.verdict(first, second))


def _confusion_table(evaluation: Evaluation) -> Table:
    """Return one row per class that has drawings; if at most 12 classes occur, also one column per predicted class."""
    occurs = np.flatnonzero(evaluation.confusion.any(axis=0) | evaluation.confusion.any(axis=1))
    columns = occurs if len(occurs) <= _MOST_COLUMNS else occurs[:0]
    labels = [evaluation.labels[index] for index in columns]
    table = Table("true \\ predicted", *labels, "rows", "recall", "precision", box=SIMPLE)
    for label, own in evaluation.tested_classes.items():
        counts = evaluation.confusion[evaluation.labels.index(label), columns]
        shares = ("-" if own[name] is None else f"{own[name]:.3f}" for name in ("recall", "precision"))
        table.add_row(label, *map(str, counts), str(own["rows"]), *shares)
    return table
