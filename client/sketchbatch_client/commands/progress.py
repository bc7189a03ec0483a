"""Shows how far a long command has come: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .options import err

_LINE_EVERY_S = 10.0


class Shown:
    """Progress on stderr, while it is open; nothing at all if `is_quiet`."""

    def __init__(self, verb: str, *, is_quiet: bool) -> None:
        self.sources = 0
        self._verb = verb
        self._has_lines = not is_quiet and not err.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} rows/s"),
            TimeRemainingColumn(),
            console=err,
            disable=is_quiet or not err.is_terminal,
            transient=True,
        )
        self._task = TaskID(0)
        self._rows = self._done = self._done_before = 0
        self._began_at = self._said_at = time.monotonic()

    def __enter__(self) -> "Shown":
        self._bar.start()
        self._task = self._bar.add_task(f"{self._verb}: opening", total=None, rate=0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def opens(self, source: str) -> None:
        """Rows of this input are being counted."""
        self.sources += 1
        self._bar.update(self._task, description=f"opening {source}")

    def begins(self, rows: int, rows_done: int) -> None:
        """So many rows there are, of which so many were done by an earlier run."""
        self._rows, self._done, self._done_before = rows, rows_done, rows_done
        self._began_at = self._said_at = time.monotonic()
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(self._verb, total=rows, completed=rows_done, rate=0.0)
        if rows_done and self._has_lines:
            err.print(f"{self._verb}: going on after {rows_done:,} of {rows:,} rows")

    def advances(self, rows: int) -> None:
        """So many rows more are done."""
        self._done += rows
        now = time.monotonic()
        rate = (self._done - self._done_before) / max(now - self._began_at, 1e-9)
        self._bar.update(self._task, completed=self._done, rate=rate)
        if self._has_lines and now - self._said_at >= _LINE_EVERY_S:
            self._said_at = now
            left_s = (self._rows - self._done) / rate
            err.print(f"{self._verb}: {self._done:,} of {self._rows:,} rows, {rate:,.0f} rows/s, {left_s:,.0f} s left")


@contextmanager
def showing(verb: str, arrays: Iterable[Sized], *, is_quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows progress through the rows of all `arrays`; yields what to call with each number of rows done."""
    with Shown(verb, is_quiet=is_quiet) as shown:
        shown.begins(sum(map(len, arrays)), 0)
        yield shown.advances
