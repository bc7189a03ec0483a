"""Define the class of fuzz targets: how inputs are made, how they are tried, and which results count as harmful."""

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
"""Maximum CPU time of one input, in seconds. A file within the limits of docs/security.md takes less than 1 second."""

MEMORY_MIB = 500
"""Maximum growth of the process's peak memory during one batch of inputs, in MiB."""

Trial = Callable[[list[bytes], Callable[[int], None]], list[tuple[int, str]]]
"""A function that tries a batch of inputs and returns the index and the problem of each harmful input.

Before it tries an input, it calls its second argument with the index of this input.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser, an RPC or a port under test, with the functions that make its inputs and try them."""

    name: str
    share: int
    """Weight of the target: the fraction `share` / (sum of all shares) of a run's inputs belongs to this target."""
    make: Make
    begin: Callable[[Path], AbstractContextManager[Trial]]
    """Returns a context that yields the function that tries inputs; this function may write to the given folder."""
    batch: int = 64
    """Number of inputs that are tried in one call of the `Trial` function."""
    memory_mib: int = MEMORY_MIB


def corpus(name: str) -> list[bytes]:
    """Return the stored inputs of a target: valid inputs, and inputs that were once harmful."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutants(name: str, *changes: Callable[[bytes, random.Random], bytes]) -> Make:
    """Return a function that makes hostile inputs by changes of the inputs in a target's corpus."""
    return of_seeds(corpus(name), *changes)


def in_process(check: Callable[[bytes, Path], None]) -> Callable[[Path], AbstractContextManager[Trial]]:
    """Return a function for `Target.begin`: it yields a function that calls `check` with each input in this process.

    An input is harmful if `check` raises an exception or takes too long.
    """

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
    """Return a description of the exception of `check`, or of its CPU time if it was slow; "" = no problem."""
    started_at = time.process_time()
    try:
        check(data, folder)
    except Exception as exc:  # any exception is a finding
        last = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {Path(last.filename).name}:{last.lineno}: {str(exc)[:200]}"
    cpu_s = time.process_time() - started_at
    return f"slow: {cpu_s:.1f} s" if cpu_s > SLOW_S else ""
