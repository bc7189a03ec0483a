"""Shows long work on a terminal, and in plain lines elsewhere."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

console = Console(soft_wrap=True, highlight=False)


def bar() -> Progress:
    """A progress bar that vanishes when done; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def download_bar() -> Progress:
    """As `bar`, for bytes: how many of all, how fast, how long still."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def watching(shown: Progress) -> Callable[[str, int], Callable[[int], None]]:
    """Shows one file after the other on a bar: called with its name and drawings, gives what counts them."""
    task = shown.add_task("reading")

    def watch(name: str, rows: int) -> Callable[[int], None]:
        shown.reset(task, description=name, total=rows)
        return lambda done: shown.advance(task, done)

    return watch
