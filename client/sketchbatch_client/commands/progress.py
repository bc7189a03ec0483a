"""Show the progress of a long command on stderr: a bar on a terminal, else one line every few seconds."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..drawings.passed_over import PassedOverList
from .options import err

_LINE_EVERY_S = 10.0

_SOFTMAX = "`sketchbatch-train adapt` adds a softmax"

_KINDS = {
    "logits": f"logits: they do not sum to 1; {_SOFTMAX}",
    "log-probabilities": f"log-probabilities: they do not sum to 1; {_SOFTMAX}",
    "independent": "independent: each is from 0 to 1, and they do not sum to 1",
}
"""What a user must know of scores that are no probabilities, by `ModelInfo.score_kind`."""


class ProgressDisplay(Progress):
    """The progress of a command while the context is open; `is_quiet` turns the display off."""

    def __init__(self, command: str, *, is_quiet: bool) -> None:
        self.sources = 0
        self._command = command
        self._is_quiet = is_quiet
        self._has_lines = not is_quiet and not err.is_terminal
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} rows/s"),
            TimeRemainingColumn(),
            console=err,
            disable=is_quiet or not err.is_terminal,
            transient=True,
        )
        self.passed_over = PassedOverList()
        self.unread_metadata = 0
        self.unlabelled = 0
        self._task = self.add_task(f"{command}: opening", total=None, rate=0.0)
        self._rows = self._done = self._done_before = 0
        self._resumed = self._read = 0  # rows that interrupted runs have read, and that this run has
        self._opened_at = self._started_at = self._last_line_at = time.monotonic()

    def opens(self, source: str) -> None:
        self.sources += 1
        self.update(self._task, description=f"opening {source}")

    def selects(self, model: str, score_kind: str) -> None:
        """Announce scores that are no probabilities, which look like low or negative probabilities."""
        if score_kind not in ("", "probabilities") and not self._is_quiet:
            err.print(f"the scores of {model} are {_KINDS.get(score_kind, score_kind)}")

    def begins(self, rows: int, rows_done: int) -> None:
        """Show how many rows the command has in all, and that an earlier run finished `rows_done` of them."""
        self._rows, self._done, self._done_before = rows, rows_done, rows_done
        self._resumed += rows_done
        self._started_at = self._last_line_at = time.monotonic()
        self.remove_task(self._task)
        self._task = self.add_task(self._command, total=rows, completed=rows_done, rate=0.0)
        if rows_done and self._has_lines:
            err.print(f"{self._command}: resuming after {rows_done:,} of {rows:,} rows")

    def advances(self, rows: int) -> None:
        self._done += rows
        self._read += rows
        now = time.monotonic()
        rate = (self._done - self._done_before) / max(now - self._started_at, 1e-9)
        self.update(self._task, completed=self._done, rate=rate)
        if self._has_lines and now - self._last_line_at >= _LINE_EVERY_S:
            self._last_line_at = now
            left_s = (self._rows - self._done) / rate
            err.print(
                f"{self._command}: {self._done:,} of {self._rows:,} rows, {rate:,.0f} rows/s, {left_s:,.0f} s left"
            )

    def took(self, rows: int) -> str:
        """Return how long the command took for `rows` rows, as the end of a phrase that begins with their number.

        The rate of a resumed command counts only the rows that it read itself, rejected rows included.
        """
        took_s = time.monotonic() - self._opened_at
        if not self._resumed:
            return f" in {took_s:.1f} s ({rows / took_s:,.0f} rows/s)"
        if not self._read:
            return f", all of an interrupted run; finished in {took_s:.1f} s"
        rate = f"{self._read / took_s:,.0f} rows/s"
        return f"; resumed after {self._resumed:,} rows and read the other {self._read:,} in {took_s:.1f} s ({rate})"

    def passes_over(self, files: PassedOverList) -> None:
        self.passed_over = files

    def leaves_empty(self, rows: int) -> None:
        self.unread_metadata += rows

    def leaves_unlabelled(self, rows: int) -> None:
        self.unlabelled += rows


@contextmanager
def show_progress(command: str, arrays: Iterable[Sized], *, is_quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show the progress through the rows of all `arrays`; yield the function that counts finished rows."""
    with ProgressDisplay(command, is_quiet=is_quiet) as progress:
        progress.begins(sum(map(len, arrays)), 0)
        yield progress.advances
