"""The verb `evaluate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from ..evaluation.evaluating import Evaluation, open_labelled
from ..evaluation.evaluating import evaluate as evaluate_model
from .options import Connection, ModelName, ModelVersion, Quiet, TimeoutS, connecting, err, out
from .progress import showing


@connecting
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder with a NAME.npy for each label, or a folder of pictures.")],
    connection: Connection,
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
    with connection.open(timeout_s=timeout_s) as client:
        served = client.model(model, model_version)
        drawings = open_labelled(folder, served.labels)
        with showing("evaluating", drawings.bitmaps.values(), is_quiet=quiet) as advance:
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


def _confusion_table(evaluation: Evaluation) -> Table:
    """One line a class: its own figures, then how its rows were predicted; at most 12 classes' columns."""
    labels = evaluation.model.labels
    has_columns = len(labels) <= 12
    table = Table("true \\ predicted", *(labels if has_columns else ()), "rows", "recall", "precision", box=SIMPLE)
    for index, (label, own) in enumerate(evaluation.per_class.items()):
        counts = [str(count) for count in evaluation.confusion[index]] if has_columns else []
        table.add_row(label, *counts, f"{own['rows']}", f"{own['recall']:.3f}", f"{own['precision']:.3f}")
    return table
