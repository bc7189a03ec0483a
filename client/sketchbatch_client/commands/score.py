"""The verb `score`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ..scoring.files import ScoreOptions, find_inputs, score_files
from .options import Connection, ModelName, ModelVersion, Quiet, TimeoutS, connecting, err
from .progress import showing


@connecting
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
    connection: Connection,
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
    with (
        connection.open(timeout_s=timeout_s) as client,
        showing("scoring", bitmaps.values(), is_quiet=quiet) as advance,
    ):
        rows = score_files(client, bitmaps, output, options, advance)
    if not quiet:
        took_s = time.monotonic() - started_at
        err.print(
            f"{rows:,} rows from {len(bitmaps)} files in {took_s:.1f} s ({rows / took_s:,.0f} rows/s) -> {output}"
        )
