"""Shows how far a long command has come."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .options import err


@contextmanager
def showing(verb: str, arrays: Iterable[Sized], *, is_quiet: bool) -> Iterator[Callable[[int], None]]:
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
