"""The verb `merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ..scoring.job import rejects_path
from ..scoring.merge import merge as merge_shards
from .options import Quiet, err
from .score import SOME_REJECTED


def merge(
    shards: Annotated[list[Path], typer.Argument(help="The outputs of all shards, in any order.", metavar="SHARD...")],
    output: Annotated[Path, typer.Option(help="File to write, of the kind that the shards are.", metavar="FILE")],
    quiet: Quiet = False,
) -> None:
    """Joins what `score --shard` wrote into what one run would have written, to the byte.

    Wants every shard of one job, finished; says which is missing. Exit codes are those of `score`.
    """
    outcome = merge_shards(shards, output)
    if not quiet:
        err.print(f"{outcome.rows:,} rows from {len(shards)} shards -> {output}")
    if outcome.rejected:
        err.print(f"{outcome.rejected:,} rows are no drawing; {rejects_path(output)} says why")
        raise typer.Exit(SOME_REJECTED)
