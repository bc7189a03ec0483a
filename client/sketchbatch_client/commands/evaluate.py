"""The subcommand `evaluate`."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE
from rich.table import Table

from ..atomic import is_stream
from ..drawings.readers import describe_malformed
from ..errors import ExtraMissing, naming_skip_malformed
from ..evaluation.evaluating import Comparison, Evaluation, common_labels, compare
from ..evaluation.evaluating import evaluate as evaluate_model
from ..evaluation.evaluation_json import write_json
from ..evaluation.evaluation_page import write_page
from ..evaluation.evaluation_plot import write_plot
from ..evaluation.labelled import LabelledDrawings, open_labelled
from ..evaluation.predictions import ServedModel
from ..evaluation.stats.drift import LIKELY_REASONS, stored_rows
from ..evaluation.stats.mcnemar import format_p_value
from ..label_names import with_suggestions
from ..output_file import HTML_MARK, JSON_MARK, PLOT_MARK, check_reports, local_path
from .options import (
    INCOMPLETE,
    ConnectionOptions,
    IgnoreOthers,
    ModelName,
    ModelVersion,
    TimeoutS,
    connecting,
    counted,
    err,
    not_nan,
    out,
    report_passed_over,
)
from .progress import show_progress

_MOST_WIDTH = 1000  # characters of a table
_MALFORMED_SHOWN = 5
_COVERAGES = (0.95, 0.9, 0.8, 0.5)  # of the line with the accuracy against the coverage
_MOST_COLUMNS = 12  # more columns of counts do not fit into a terminal


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """The options that name files for the result; a field becomes an option."""

    json_file: Annotated[
        Path | None,
        typer.Option("--json", parser=local_path, metavar="FILE", help="Also write the figures to this JSON file."),
    ] = None
    html_file: Annotated[
        Path | None,
        typer.Option("--html", parser=local_path, metavar="FILE", help="Also write an HTML page to this file."),
    ] = None
    png_file: Annotated[
        Path | None,
        typer.Option(
            "--png",
            parser=local_path,
            metavar="FILE",
            help="Also write the metrics and the confusion matrix as a picture.",
        ),
    ] = None
    svg_file: Annotated[
        Path | None,
        typer.Option("--svg", parser=local_path, metavar="FILE", help="Also write the same picture as an SVG file."),
    ] = None

    def check(self, inputs: Collection[Path]) -> None:
        """Raise OutputRefused if a file is one of the inputs, cannot be written or is no earlier report.

        Raise ExtraMissing if a file needs charts, and matplotlib is not installed. Raise BadParameter if the ending of
        a picture names another format.
        """
        for picture, suffix in ((self.png_file, ".png"), (self.svg_file, ".svg")):
            if picture and not is_stream(picture) and picture.suffix.lower() not in ("", suffix):
                raise typer.BadParameter(f"must end with {suffix}, got {picture}", param_hint=f"--{suffix[1:]}")
        with_charts = {"--html": self.html_file, "--png": self.png_file, "--svg": self.svg_file}
        if (flag := next(filter(with_charts.get, with_charts), None)) and not find_spec("matplotlib"):
            raise ExtraMissing.of(flag, "charts", "matplotlib")
        plots = [(self.png_file, PLOT_MARK), (self.svg_file, PLOT_MARK)]
        check_reports([(self.json_file, JSON_MARK), (self.html_file, HTML_MARK), *plots], inputs)

    def write(self, result: Evaluation | Comparison) -> None:
        """Write the files that are named."""
        if self.json_file:
            write_json(result, self.json_file)
        if self.html_file:
            write_page(result, self.html_file)
        if self.png_file:
            write_plot(result, self.png_file, file_format="png")
        if self.svg_file:
            write_plot(result, self.svg_file, file_format="svg")


@connecting
def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="FOLDER",
            help="Folder with a NAME.npy, .ndjson, .bin or .parquet per label, or with pictures.",
        ),
    ],
    connection: ConnectionOptions,
    reports: ReportFlags,
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
        float,
        typer.Option(min=0, max=1, callback=not_nan, help="Exit with 1 if the (first) model has a lower accuracy."),
    ] = 0.0,
    ignore_others: IgnoreOthers = False,
    timeout_s: TimeoutS = 60.0,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Write no figures to stdout, and only errors and warnings to stderr."),
    ] = False,
) -> None:
    """Evaluate the served model on labelled drawings, alone or against a second model.

    Example: sketchbatch evaluate runs/demo/test --html evaluation.html

    Prints accuracy, balanced accuracy, specificity, Matthews correlation and Jaccard (macro-averaged) with 95 %
    intervals; recall and precision per class; the confusion matrix; calibration; accuracy against coverage; and the
    drift from the metrics that the model file stores. An --against option adds a second model and McNemar's test.
    A file is skipped if the model does not know its label.

    Exit codes: 0 = evaluated, 1 = the accuracy is below --min-accuracy, or an error after which the same command may
    succeed, 2 = invalid options, 3 = evaluated, but files that may have drawings, or files of unknown labels, were
    not read, 4 = an error that a retry cannot repair.
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
        owner = f"{served.name} of {connection.server}" if not second else ""
        with naming_skip_malformed(skip_malformed):
            drawings = open_labelled(folder, labels, skip_malformed=skip_malformed, owner=owner)
        reports.check(drawings.bitmaps)
        result: Evaluation | Comparison
        with (
            naming_skip_malformed(skip_malformed),
            show_progress("evaluating", drawings.bitmaps.values(), is_quiet=quiet) as advance,
        ):
            if second:
                result = compare(first, second, drawings, advance)
            else:
                result = evaluate_model(client, first.model, drawings, advance)
    reports.write(result)
    if not quiet:
        _print_result(result)
        _print_malformed(drawings)
        for file in filter(None, (reports.json_file, reports.html_file, reports.png_file, reports.svg_file)):
            err.print(f"-> {file}")
    _print_trained_on(result)
    if not quiet or not ignore_others:
        reason = "not both models know" if second else "this model does not know"
        _print_skipped(drawings, labels, reason, ignores_others=ignore_others)
    is_complete = report_passed_over(drawings.others, ignores_others=ignore_others)
    name, judged = result.named[0] if isinstance(result, Comparison) else (result.name, result)
    accuracy = judged.metrics.accuracy
    if max(accuracy, round(accuracy, 4)) < min_accuracy:  # the stored and the printed figure can both be the limit
        err.print(f"sketchbatch: accuracy of {name} must be at least {min_accuracy}, got {accuracy:.4f}")
        raise typer.Exit(1)
    if not is_complete or (drawings.passed_over and not ignore_others):
        raise typer.Exit(INCOMPLETE)


def _print_result(result: Evaluation | Comparison) -> None:
    if isinstance(result, Comparison):
        _print(result.first)
        _print_comparison(result)
    else:
        _print(result)


def _print_trained_on(result: Evaluation | Comparison) -> None:
    for name, each in result.named if isinstance(result, Comparison) else [(result.name, result)]:
        if each.trained_on and each.trained_on.matches:
            err.print(f"{name}: {each.trained_on}; metrics on training drawings are too high")


def _print(evaluation: Evaluation) -> None:
    drawings = evaluation.drawings
    out.print(f"{evaluation.name} on {evaluation.figures.rows:,} drawings: {drawings.source}")
    _print_figures(evaluation)
    _print_table(_confusion_table(evaluation))
    _print_recognized(evaluation)
    _print_calibration(evaluation)
    _print_coverage(evaluation)
    _print_drift(evaluation)


def _print_table(table: Table) -> None:
    """Print a table with all of its labels and figures, also in a narrow window, and in a file, which has no width."""
    width = out.width
    out.width = max(width, out.measure(table, options=out.options.update(max_width=_MOST_WIDTH)).maximum)
    try:
        out.print(table)
    finally:
        out.width = width


def _print_figures(evaluation: Evaluation) -> None:
    for name, each in evaluation.figures.measured.items():
        out.print(f"  {name:<18} {each}")
    if without_drawings := len(evaluation.labels) - evaluation.tested_labels:
        out.print(
            f"  {without_drawings} of {len(evaluation.labels)} classes have no drawings here: "
            "the means over classes leave them out"
        )


def _print_skipped(drawings: LabelledDrawings, labels: Sequence[str], reason: str, *, ignores_others: bool) -> None:
    if passed_over := drawings.passed_over:
        names = with_suggestions(passed_over, labels)
        way = "" if ignores_others else "; --ignore-others accepts this"
        err.print(f"skipped the drawings of {counted(len(passed_over), 'label')} that {reason}: {names}{way}")


def _print_malformed(drawings: LabelledDrawings) -> None:
    if drawings.malformed_count:
        err.print(f"skipped {counted(drawings.malformed_count, 'malformed drawing')}, for example:")
        for file, malformed in drawings.malformed[:_MALFORMED_SHOWN]:
            err.print(f"  {describe_malformed(file, malformed)}")


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


def _print_coverage(evaluation: Evaluation) -> None:
    curve = evaluation.risk_coverage
    points = dict.fromkeys(map(curve.index_at, _COVERAGES))  # a point twice, if many scores are equal
    shown = [f"coverage {curve.coverage[each]:.2f}: accuracy {curve.accuracy[each]:.4f}" for each in points]
    out.print("; ".join(shown))
    if evaluation.thresholds:
        kept = (f"{each.stored.coverage:.10g}: {each.coverage:.4f}" for each in evaluation.thresholds)
        out.print(f"coverage of the thresholds of the model here: {'; '.join(kept)}")


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
    for caution in comparison.cautions:
        out.print(caution)


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
