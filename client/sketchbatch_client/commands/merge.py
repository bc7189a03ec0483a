"""The subcommand `merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ..output_file import local_path
from ..scoring.manifest import rejects_path
from ..scoring.merge import merge as merge_shards
from .options import INCOMPLETE, IgnoreOthers, Quiet, counted, err, report_passed_over


def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(
            parser=local_path,
            help="Outputs of all shards, in any order; or outputs of several jobs.",
            metavar="SHARD...",
        ),
    ],
    output: Annotated[
        Path, typer.Option(parser=local_path, help="File to write, with the ending of the shards.", metavar="FILE")
    ],
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace an output of another job, or a file that no job has written.")
    ] = False,
    ignore_others: IgnoreOthers = False,
    quiet: Quiet = False,
) -> None:
    """Merge the outputs of `sketchbatch score --shard` into one file, byte-identical to the output of one run.

    Example: sketchbatch merge scores-*.parquet --output scores.parquet

    Outputs of several jobs, such as one per night, are merged, too: their rows keep the order of the arguments.

    Exit codes: 0 = merged, 1 = a shard is missing or unfinished, or the disk is full, 2 = invalid options, 3 = merged,
    but some rows were rejected, or the jobs did not read files that may have drawings, 4 = the outputs do not belong
    together, one is damaged, or OUTPUT must not be replaced. Files that a job accepted with --ignore-others do not
    count.
    """
    outcome = merge_shards(shards, output, restart=restart, ignores_others=ignore_others)
    if not quiet:
        err.print(f"{counted(outcome.rows, 'row')} from {counted(len(shards), 'file')} -> {output}")
    is_complete = report_passed_over(outcome.passed_over, ignores_others=ignore_others)
    if outcome.rejected:
        err.print(f"rejected: {counted(outcome.rejected, 'row')}; {rejects_path(output)} lists the reasons")
    if outcome.rejected or not is_complete:
        raise typer.Exit(INCOMPLETE)
