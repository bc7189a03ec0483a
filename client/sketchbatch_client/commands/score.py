"""The subcommand `score`."""

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from ..atomic import is_open_file, is_stream, open_stream, room_for
from ..drawings.bitmap_arrays import INK_WARNING, InkWarning
from ..output_file import local_text
from ..rpc.client import Client
from ..scoring.appending import append_scores
from ..scoring.inputs import InputOptions
from ..scoring.job import Outcome, ScoreJob, stream_scores, write_scores
from ..scoring.manifest import manifest_path, rejects_path
from ..scoring.outputs import KINDS, is_named_by_kind, kind_of
from ..scoring.parts import Parts, path_of_shard
from ..scoring.plan import ScoreOptions, Shard
from .options import (
    INCOMPLETE,
    ConnectionOptions,
    IgnoreOthers,
    ModelName,
    ModelVersion,
    Quiet,
    TimeoutS,
    connecting,
    counted,
    err,
    not_nan,
    report_passed_over,
)
from .progress import ProgressDisplay

_STDOUT = "-"
_MAX_TOP_K = 100_000  # more classes than any model of drawings has; the service checks the model's number
_MAX_READERS = 1024
_MAX_SCALE = 65535.0
_MAX_PART_ROWS = 1_000_000_000
_REJECTS_SHOWN = 5  # most rejects that are printed to stderr if the output is standard output


@dataclass(frozen=True, kw_only=True)
class InputFlags:
    """The options that tell what to read of the inputs; a field becomes an option of the same name."""

    column: Annotated[
        str,
        typer.Option(help="Column of Parquet files that has the drawings.", show_default="the one that can have them"),
    ] = ""
    scale: Annotated[
        float,
        typer.Option(
            min=0,
            max=_MAX_SCALE,
            callback=not_nan,
            help="Factor for the numbers of arrays, lists and bitmaps of bytes, of any type: 255 for numbers from 0 to "
            "1.",
            show_default="1, and arrays must be uint8",
        ),
    ] = 0
    ignore_others: IgnoreOthers = False


@dataclass(frozen=True, kw_only=True)
class RerunFlags:
    """The options that tell what to do with an OUTPUT that exists; a field becomes an option of the same name."""

    restart: Annotated[
        bool,
        typer.Option("--restart", help="Discard the results of earlier runs, or replace a file that no job wrote."),
    ] = False
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="Add rows of new files, and new rows of files that have grown, to a finished OUTPUT."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """The options that tell which labels and scores to write; a field becomes an option of the same name."""

    top_k: Annotated[int, typer.Option(min=1, max=_MAX_TOP_K, help="Number of best classes to write per row.")] = 1
    all_scores: Annotated[bool, typer.Option("--all-scores", help="Also write the score of every class.")] = False
    reject: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=not_nan,
            help="Leave the label of a row empty if its highest score is below the model's threshold for this "
            "coverage, such as 0.95: the row probably shows none of the classes. `sketchbatch model` lists the "
            "coverages.",
            metavar="COVERAGE",
            show_default="every row has a label",
        ),
    ] = None

    def options(self, kind: str, model: str, model_version: str) -> ScoreOptions:
        """Return the options of a job with an output of this kind. Raises BadParameter if they do not fit together."""
        if self.all_scores and self.top_k > 1:
            raise typer.BadParameter("choose one of --all-scores and --top-k", param_hint="--all-scores")
        if self.reject is not None and kind == "npy":
            raise typer.BadParameter(
                "needs an output with labels: .parquet, .csv or .jsonl, got .npy", param_hint="--reject"
            )
        return ScoreOptions(
            top_k=self.top_k,
            with_all_scores=self.all_scores or kind == "npy",
            reject=self.reject,
            model_name=model,
            model_version=model_version,
        )


@connecting
def score(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Drawings: .npy or .npz of uint8 (rows, 28, 28) or (rows, 784), .ndjson, .jsonl or .bin strokes, "
            ".parquet, pictures; the same packed as .gz, .bz2 or .zst; folders of these; globs in quotes; - = standard "
            "input.",
            metavar="INPUT...",
            parser=local_text,
        ),
    ],
    connection: ConnectionOptions,
    input_flags: InputFlags,
    rerun: RerunFlags,
    scores: ScoreFlags,
    output: Annotated[
        str,
        typer.Option(
            help="File to write, one line per row; its ending is the format: .parquet, .csv, .jsonl or .ndjson, "
            "or .npy (scores only). - = standard output; this, a pipe or a device is written as CSV unless --format is "
            "given.",
            metavar="FILE",
            parser=local_text,
        ),
    ] = "scores.parquet",
    output_format: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(KINDS)}.", show_default="ending of OUTPUT")
    ] = "",
    shard: Annotated[
        str,
        typer.Option(
            help="Score share I of N, counted from 0, into a file of its own; `sketchbatch merge` merges the files. "
            "/N takes I from JOB_COMPLETION_INDEX, which Kubernetes sets.",
            metavar="I/N",
        ),
    ] = "0/1",
    readers: Annotated[
        int,
        typer.Option(
            min=0, max=_MAX_READERS, help="Processes that render strokes and pictures.", show_default="cores - 1"
        ),
    ] = min(_MAX_READERS, max(1, (os.cpu_count() or 2) - 1)),
    part_rows: Annotated[
        int,
        typer.Option(
            min=0,
            max=_MAX_PART_ROWS,
            help="Rows per part; an interrupted job repeats one part.",
            show_default="by memory",
        ),
    ] = 0,
    model: ModelName = "",
    model_version: ModelVersion = "",
    timeout_s: TimeoutS = 60.0,
    quiet: Quiet = False,
) -> None:
    """Classify every drawing in the inputs and write one line per drawing: source, row number, label, score.

    Example: sketchbatch score drawings.npy --output scores.parquet

    The rows keep their order, and one model version scores all of them. OUTPUT appears when it is complete. After an
    interruption the same command resumes from OUTPUT.parts and produces byte-identical output.

    Rows that cannot be read as drawings are written to OUTPUT.rejects.jsonl with the reason. Files that are not
    read are listed in OUTPUT.manifest.json.

    Exit codes: 0 = every row was scored, 1 = an error after which the same command may succeed, 2 = invalid options,
    3 = finished, but some rows were rejected, or files that may have drawings were not read, 4 = an error that a retry
    cannot repair, such as an unreadable input or changed inputs.
    """
    if rerun.append and (rerun.restart or _is_stream(output) or shard != "0/1"):
        raise typer.BadParameter("needs a file as OUTPUT, without --restart and --shard", param_hint="--append")
    kind = _kind(output, output_format, is_shard=shard != "0/1")
    job = ScoreJob(
        inputs=inputs,
        kind=kind,
        options=scores.options(kind, model, model_version),
        shard=_shard(shard),
        part_rows=part_rows,
        readers=readers,
        input_options=InputOptions(column=input_flags.column, scale=input_flags.scale),
        ignores_others=input_flags.ignore_others,
    )
    warnings.filterwarnings("ignore", INK_WARNING, InkWarning)  # of the client; the job names the input in its own
    with connection.open(timeout_s=timeout_s) as client, ProgressDisplay("scoring", is_quiet=quiet) as progress:
        if _is_stream(output):
            with room_for(Path(_name(output))), _open_stream(output, quiet) as file:
                rejected = _to_stream(client, job, file, progress)
            if not quiet:
                _report_unlabelled(job, progress)
            is_complete = report_passed_over(progress.passed_over, ignores_others=input_flags.ignore_others)
            raise typer.Exit(INCOMPLETE if rejected or not is_complete else 0)
        path = path_of_shard(Path(output), job.shard)
        with _telling_how_to_resume(path, quiet):
            if rerun.append:
                outcome = append_scores(client, job, path, progress)
            else:
                outcome = write_scores(client, job, path, progress, restart=rerun.restart)
    if not quiet:
        _report(outcome, path, progress)
        if not outcome.was_finished:
            _report_unlabelled(job, progress)
    is_complete = report_passed_over(progress.passed_over, ignores_others=input_flags.ignore_others)
    rejected = outcome.rejected if outcome.added_rejected is None else outcome.added_rejected
    if rejected:
        err.print(f"rejected: {counted(rejected, 'row')}; {rejects_path(path)} lists the reasons")
    if rejected or not is_complete:
        raise typer.Exit(INCOMPLETE)


def _kind(output: str, wanted: str, *, is_shard: bool) -> str:
    if wanted:
        if wanted not in KINDS:
            raise typer.BadParameter(f"must be one of {', '.join(KINDS)}, got {wanted!r}", param_hint="--format")
        if is_shard and not _is_stream(output) and not is_named_by_kind(Path(output), wanted):
            message = f"must end in .{wanted}, because merge reads the format from the names of shards; got {output}"
            raise typer.BadParameter(message, param_hint="--output")
    elif not _is_stream(output) or Path(output).suffix.removeprefix(".").lower() in KINDS:
        return kind_of(Path(output))
    kind = wanted or "csv"
    if output == _STDOUT and kind in ("parquet", "npy") and sys.stdout.isatty():
        name = "Parquet" if kind == "parquet" else "NumPy arrays"
        raise typer.BadParameter(f"cannot write {name} to a terminal: use --output FILE or --format csv")
    return kind


def _shard(text: str) -> Shard:
    match = re.fullmatch(r"(\d*)/(\d+)", text)
    if not match:
        raise typer.BadParameter(f"must be I/N, got {text!r}", param_hint="--shard")
    index = match[1] or os.environ.get("JOB_COMPLETION_INDEX", "")
    if not index.isdecimal():
        raise typer.BadParameter("must be I/N, or /N with JOB_COMPLETION_INDEX set", param_hint="--shard")
    shard = Shard(int(index), int(match[2]))
    if shard.number >= shard.shards:
        raise typer.BadParameter(f"I must be 0 to {shard.shards - 1}, got {shard.number}", param_hint="--shard")
    return shard


def _is_stream(output: str) -> bool:
    return output == _STDOUT or is_stream(Path(output))


def _name(output: str) -> str:
    return "standard output" if output == _STDOUT else output


@contextmanager
def _open_stream(output: str, is_quiet: bool) -> Iterator[BinaryIO]:
    if output == _STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if Path(output).is_fifo() and not is_open_file(Path(output)) and not is_quiet:
        err.print(f"waiting for a reader of {output}")
    with open_stream(Path(output)) as file:
        yield file


@contextmanager
def _telling_how_to_resume(path: Path, is_quiet: bool) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, print that the same command resumes the job, if it has finished parts."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not is_quiet:
            folder = Parts.of(path).folder
            way = f"the same command resumes from {folder}" if folder.exists() else "run the same command again"
            err.print(f"interrupted; {way}")
        raise


def _to_stream(client: Client, job: ScoreJob, file: BinaryIO, progress: ProgressDisplay) -> int:
    rejected = 0
    with tempfile.TemporaryDirectory() as spool:
        for line in stream_scores(client, job, file, Path(spool), progress):
            rejected += 1
            if rejected <= _REJECTS_SHOWN:
                err.print(f"rejected: {line.strip()}")
    if rejected:
        err.print(f"rejected: {counted(rejected, 'row')}; with --output FILE, FILE.rejects.jsonl lists all of them")
    return rejected


def _report_unlabelled(job: ScoreJob, progress: ProgressDisplay) -> None:
    if job.options.reject is not None:
        rows = counted(progress.unlabelled, "row")
        err.print(f"{rows} with an empty label: below the threshold of --reject {job.options.reject}")


def _report(outcome: Outcome, path: Path, progress: ProgressDisplay) -> None:
    inputs = progress.sources - progress.passed_over.empty_inputs
    rows = f"{counted(outcome.rows, 'row')} from {counted(inputs, 'input')}"
    if outcome.added is not None:
        err.print(f"{counted(outcome.added, 'new row')}{progress.took(outcome.added)} -> {path}")
        err.print(f"{path} has {counted(outcome.rows, 'row')}")
        if earlier := outcome.rejected - (outcome.added_rejected or 0):
            err.print(f"rejected by earlier runs: {counted(earlier, 'row')}; {rejects_path(path)} lists the reasons")
    elif outcome.was_finished:
        err.print(f"{path} is already finished: {rows}, scored by {outcome.model}; use --restart to score them again")
    else:
        err.print(f"{rows}{progress.took(outcome.rows)} -> {path}")
    if progress.unread_metadata:
        rows = counted(progress.unread_metadata, "row")
        err.print(f"{rows} with unreadable metadata, such as a key_id, which is left empty")
    if others := progress.passed_over.count_others:
        entries = "1 other file, folder or line" if others == 1 else f"{others:,} other files, folders and lines"
        err.print(f"not read: {entries}; {manifest_path(path)} has the reasons")
