"""Finds the processes that a service started."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that live, those of Python's own tracker of resources left out."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in started if b"spawn_main" in command_line(each)]


def resident_mib(pid: int) -> float:
    """Memory that it holds."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


def command_line(pid: str) -> bytes:
    """Nothing for a process that ends while we look."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
