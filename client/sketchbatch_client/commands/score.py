"""The verb `score`."""

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from ..atomic import room_for
from ..rpc.client import Client
from ..scoring.job import Outcome, ScoreJob, rejects_path, stream_scores, write_scores
from ..scoring.merge import path_of_shard
from ..scoring.outputs import KINDS, kind_of
from ..scoring.plan import ScoreOptions, Shard
from .options import Connection, ModelName, ModelVersion, Quiet, TimeoutS, connecting, err
from .progress import Shown

SOME_REJECTED = 3
"""Exit code of a job that is done, but for rows that are no drawing."""

_STDOUT = "-"
_SHOWN = 5  # rejects that are written to stderr where there is no file for them


@connecting
def score(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Drawings: .npy or .npz of uint8 (rows, 28, 28) or (rows, 784), .ndjson or .bin strokes, .parquet, "
            "PNG or JPEG; folders of them; globs in quotes; - for standard input.",
            metavar="INPUT...",
        ),
    ],
    connection: Connection,
    output: Annotated[
        str,
        typer.Option(
            help="File to write, one line a row; its ending says how: .parquet, .csv, .jsonl, or .npy for bare scores. "
            "- writes to standard output, as CSV unless --format says otherwise.",
            metavar="FILE",
        ),
    ] = "scores.parquet",
    output_format: Annotated[
        str, typer.Option("--format", help=f"{', '.join(KINDS)}, whatever the ending.", show_default="as OUTPUT ends")
    ] = "",
    top_k: Annotated[int, typer.Option(min=1, help="How many of the best classes to write for each row.")] = 1,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Write the score of every class, too.")] = False,
    shard: Annotated[
        str,
        typer.Option(
            help="Score the I-th of N shares of all rows, I from 0, into a file of its own; /N takes I from "
            "JOB_COMPLETION_INDEX, as Kubernetes sets it. `sketchbatch merge` joins them.",
            metavar="I/N",
        ),
    ] = "0/1",
    readers: Annotated[
        int, typer.Option(min=0, help="Processes that draw strokes and pictures.", show_default="one a core, less one")
    ] = max(1, (os.cpu_count() or 2) - 1),
    part_rows: Annotated[
        int,
        typer.Option(min=0, help="Rows that are kept at once: what is lost at most.", show_default="as fits in memory"),
    ] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever was done before.")] = False,
    model: ModelName = "",
    model_version: ModelVersion = "",
    timeout_s: TimeoutS = 60.0,
    quiet: Quiet = False,
) -> None:
    """Classifies every drawing of some files.

    Writes one line for each: source file, row number in it, label, score. Order is kept, one version of the model
    answers for all, and OUTPUT appears only when it is whole. Stopped at any moment, by whatever, the same command goes
    on where it was, and ends in the same bytes; what is done is kept in OUTPUT.parts meanwhile.

    Rows that are no drawing go to OUTPUT.rejects.jsonl, each with its reason. Exit code: 0 = every row was scored, 3 =
    all but those, 1 = it could not be finished, and a line says why.
    """
    if all_scores and top_k > 1:
        raise typer.BadParameter("choose one of --all-scores and --top-k", param_hint="--all-scores")
    kind = _kind(output, output_format)
    options = ScoreOptions(
        top_k=top_k, with_all_scores=all_scores or kind == "npy", model_name=model, model_version=model_version
    )
    job = ScoreJob(inputs=inputs, kind=kind, options=options, shard=_shard(shard), part_rows=part_rows, readers=readers)
    began_at = time.monotonic()
    with connection.open(timeout_s=timeout_s) as client, Shown("scoring", is_quiet=quiet) as shown:
        if output == _STDOUT:
            rejected = _to_stdout(client, job, shown)
            raise typer.Exit(SOME_REJECTED if rejected else 0)
        path = path_of_shard(Path(output), job.shard)
        outcome = write_scores(client, job, path, shown, restart=restart)
    if not quiet:
        _say(outcome, path, shown.sources, time.monotonic() - began_at)
    if outcome.rejected:
        err.print(f"{outcome.rejected:,} rows are no drawing; {rejects_path(path)} says why")
        raise typer.Exit(SOME_REJECTED)


def _kind(output: str, wanted: str) -> str:
    if wanted:
        if wanted not in KINDS:
            raise typer.BadParameter(f"expected one of {', '.join(KINDS)}, got {wanted!r}", param_hint="--format")
    elif output != _STDOUT:
        return kind_of(Path(output))
    kind = wanted or "csv"
    if output == _STDOUT and kind in ("parquet", "npy") and sys.stdout.isatty():
        raise typer.BadParameter(f"{kind} is nothing for a terminal: redirect it", param_hint="--format")
    return kind


def _shard(text: str) -> Shard:
    match = re.fullmatch(r"(\d*)/(\d+)", text)
    if not match:
        raise typer.BadParameter(f"expected I/N, got {text!r}", param_hint="--shard")
    index = match[1] or os.environ.get("JOB_COMPLETION_INDEX", "")
    if not index.isdecimal():
        raise typer.BadParameter("expected I/N, or /N with JOB_COMPLETION_INDEX set", param_hint="--shard")
    shard = Shard(int(index), int(match[2]))
    if shard.number >= shard.shards:
        raise typer.BadParameter(f"I must be 0 to {shard.shards - 1}, got {shard.number}", param_hint="--shard")
    return shard


def _to_stdout(client: Client, job: ScoreJob, shown: Shown) -> int:
    rejected = 0
    with room_for(Path("standard output")), tempfile.TemporaryDirectory() as spool:
        for line in stream_scores(client, job, sys.stdout.buffer, Path(spool), shown):
            rejected += 1
            if rejected <= _SHOWN:
                err.print(f"rejected: {line.strip()}")
        sys.stdout.buffer.flush()
    if rejected:
        err.print(f"{rejected:,} rows are no drawing; an output file would have them all listed beside it")
    return rejected


def _say(outcome: Outcome, path: Path, files: int, took_s: float) -> None:
    rows = f"{outcome.rows:,} rows from {files} files"
    if outcome.was_finished:
        err.print(f"{path} is finished already: {rows}; --restart scores them anew")
    else:
        err.print(f"{rows} in {took_s:.1f} s ({outcome.rows / took_s:,.0f} rows/s) -> {path}")
