"""What is fuzzed: of each target how its inputs are made, and what it means to survive one."""

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
"""Processor seconds that one input may take: a file within the limits of docs/security.md takes less than one."""

MEMORY_MIB = 500
"""How far an input may raise the most memory that the process ever had."""

Trial = Callable[[list[bytes], Callable[[int], None]], list[tuple[int, str]]]
"""Tries inputs, telling of each before it is tried; returns which of them went wrong, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that takes what others wrote."""

    name: str
    share: int
    """Inputs of each thousand."""
    make: Make
    begin: Callable[[Path], AbstractContextManager[Trial]]
    """Given a folder to write in."""
    batch: int = 64
    """Inputs tried at a time."""
    memory_mib: int = MEMORY_MIB


def corpus(name: str) -> list[bytes]:
    """The inputs kept for a target, good ones and those that once did harm."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutants(name: str, *changes: Callable[[bytes, random.Random], bytes]) -> Make:
    """Of a target's corpus."""
    return of_seeds(corpus(name), *changes)


def in_process(check: Callable[[bytes, Path], None]) -> Callable[[Path], AbstractContextManager[Trial]]:
    """Tries one after the other here; `check` returns unless something is wrong."""

    @contextmanager
    def begin(folder: Path) -> Iterator[Trial]:
        def trial(inputs: list[bytes], at: Callable[[int], None]) -> list[tuple[int, str]]:
            wrong = []
            for place, data in enumerate(inputs):
                at(place)
                if what := _outcome(check, data, folder):
                    wrong.append((place, what))
            return wrong

        yield trial

    return begin


def _outcome(check: Callable[[bytes, Path], None], data: bytes, folder: Path) -> str:
    started_at = time.process_time()
    try:
        check(data, folder)
    except Exception as exc:  # what we look for
        last = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {Path(last.filename).name}:{last.lineno}: {str(exc)[:200]}"
    took_s = time.process_time() - started_at
    return f"slow: {took_s:.1f} s" if took_s > SLOW_S else ""
