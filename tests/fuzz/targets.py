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
"""Maximum CPU time of one input, in seconds. A file within the limits of docs/security.md takes less than 1 second."""

MEMORY_MIB = 500
"""Maximum growth of the process's peak memory during one batch of inputs, in MiB."""

Trial = Callable[[list[bytes], Callable[[int], None]], list[tuple[int, str]]]
"""A function that tries a batch of inputs and returns the index and the problem of each harmful input.

Before it tries an input, it calls its second argument with the index of this input.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser, an RPC or a port that takes untrusted input."""

    name: str
    share: int
    """Weight of this target: with twice the share of another target, it receives twice as many inputs."""
    make: Make
    begin: Callable[[Path], AbstractContextManager[Trial]]
    """Returns a context that yields the function which tries inputs; this function may write to the given folder."""
    batch: int = 64
    """Number of inputs per call of the function that tries inputs."""
    memory_mib: int = MEMORY_MIB


def corpus(name: str) -> list[bytes]:
    """Return the inputs that the repository stores for a target: valid inputs, and inputs that were once harmful."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutants(name: str, *changes: Callable[[bytes, random.Random], bytes]) -> Make:
    """Return a function that makes hostile inputs by changes of the inputs in a target's corpus."""
    return of_seeds(corpus(name), *changes)


def in_process(check: Callable[[bytes, Path], None]) -> Callable[[Path], AbstractContextManager[Trial]]:
    """Return a value for `Target.begin`, with which inputs are tried by calls of `check` in this process.

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
    """Call `check`; return a text that describes its exception or its slowness, "" = no problem."""
    started_at = time.process_time()
    try:
        check(data, folder)
    except Exception as exc:  # any exception is a finding
        last = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {Path(last.filename).name}:{last.lineno}: {str(exc)[:200]}"
    cpu_s = time.process_time() - started_at
    return f"slow: {cpu_s:.1f} s" if cpu_s > SLOW_S else ""
