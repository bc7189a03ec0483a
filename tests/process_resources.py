"""Read the memory, threads, open files and CPU time of a process from Linux's /proc."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path


def held(pid: int) -> dict[str, float]:
    """Return a process's resident memory and its peak, both in MiB, and the numbers of threads and open files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "resident_mib": round(int(fields["VmRSS"].split()[0]) / 1024, 1),
        "peak_mib": round(int(fields["VmHWM"].split()[0]) / 1024, 1),
        "threads": int(fields["Threads"]),
        "open_files": open_files(pid).total(),
    }


def cpu_s(pid: int) -> float:
    """Return the CPU time that all threads of a process have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]  # fields 14 and 15 of proc(5); the first two fields end at the parenthesis
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> Counter[str]:
    """Return the number of open files of a process by kind: a socket, a pipe, an eventfd, or the path of a file."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the process has closed the file since the folder was listed
            kinds[str(entry.readlink()).rstrip("0123456789]")] += 1
    return kinds
