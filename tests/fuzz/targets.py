"""Define fuzz targets: how inputs are made, how they are tried, and what counts as harm."""

import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mutations import Make, of_seeds

CORPUS = Path(__file__).parent / "corpus"

SLOW_S = 5.0
"""CPU seconds that one input may take. A file within the limits of docs/security.md takes less than one."""

MEMORY_MIB = 500
"""By how much an input may raise the peak memory of the process."""

Trial = Callable[[list[bytes], Callable[[int], None]], list[tuple[int, str]]]
"""Tries a batch of inputs and calls its second argument with each input's index before it tries that input.

Returns index and problem of each harmful input.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser, an RPC or a port that takes untrusted input."""

    name: str
    share: int
    """Inputs per thousand of a run."""
    make: Make
    begin: Callable[[Path], AbstractContextManager[Trial]]
    """Prepares trials that may write to the given folder."""
    batch: int = 64
    """Inputs per trial."""
    memory_mib: int = MEMORY_MIB


def corpus(name: str) -> list[bytes]:
    """Return the committed inputs of a target: valid inputs, and inputs that were harmful once."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutants(name: str, *changes: Callable[[bytes, random.Random], bytes]) -> Make:
    """Return a maker of mutants of a target's corpus."""
    return of_seeds(corpus(name), *changes)


def in_process(check: Callable[[bytes, Path], None]) -> Callable[[Path], AbstractContextManager[Trial]]:
    """Try inputs one after another in this process; `check` raises if an input is harmful."""

    @contextmanager
    def begin(folder: Path) -> Iterator[Trial]:
        def trial(inputs: list[bytes], progress: Callable[[int], None]) -> list[tuple[int, str]]:
            problems = []
            for index, data in enumerate(inputs):
                progress(index)
                if problem := _problem(check, data, folder):
                    problems.append((index, problem))
            return problems

        yield trial

    return begin


def _problem(check: Callable[[bytes, Path], None], data: bytes, folder: Path) -> str:
    """Return the exception of `check`, or a message if `check` was slow; "" = no problem."""
    started_at = time.process_time()
    try:
        check(data, folder)
    except Exception as exc:  # any exception is a finding
        last = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {Path(last.filename).name}:{last.lineno}: {str(exc)[:200]}"
    cpu_s = time.process_time() - started_at
    return f"slow: {cpu_s:.1f} s" if cpu_s > SLOW_S else ""
