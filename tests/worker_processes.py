"""Find the worker processes of a service."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the process ids of the workers that the process `pid` has started.

    The resource tracker of multiprocessing, which is also a child process of `pid`, is not included.
    """
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in started if b"spawn_main" in command_line(each)]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


def command_line(pid: str) -> bytes:
    """Return the command line of a process; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
