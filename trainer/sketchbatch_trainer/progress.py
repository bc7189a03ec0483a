"""Show progress bars if the output is a terminal, and print nothing otherwise."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

console = Console(soft_wrap=True, highlight=False, markup=False)


def warn(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr)


def joined(labels: tuple[str, ...]) -> str:
    """Return the labels as text, such as "bear, cat, dog", or their number if there are more than twelve labels."""
    return ", ".join(labels) if len(labels) <= 12 else f"{len(labels)} classes"


def row_bar() -> Progress:
    """Return a progress bar that counts rows and disappears at the end."""
    return _bar(MofNCompleteColumn())


def byte_bar() -> Progress:
    """Return a progress bar that counts bytes, with the transfer rate, and disappears at the end."""
    return _bar(DownloadColumn(), TransferSpeedColumn())


def show_files(progress: Progress) -> Callable[[str, int], Callable[[int], None]]:
    """Return a function to call with the name and the number of rows of each file; it restarts the bar for the file.

    That function returns another one, to call with the number of rows read since the last call.
    """
    task = progress.add_task("reading")

    def start_file(name: str, rows: int) -> Callable[[int], None]:
        progress.reset(task, description=name, total=rows)
        return lambda rows_read: progress.advance(task, rows_read)

    return start_file


def _bar(*counters: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), *counters, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
