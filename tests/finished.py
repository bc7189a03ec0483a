"""The result of a command that a test has run."""

from typing import NamedTuple


class Finished(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str
