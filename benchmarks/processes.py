"""Read CPU seconds and memory of processes from Linux's /proc."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of several processes in MiB; shared pages count once per process."""

    peak_mib: float
    after_mib: float


def tree(pid: int) -> list[int]:
    """Return the process and its living descendants."""
    pids = [pid]
    for parent in pids:  # the list grows during the loop
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            pids.extend(map(int, children.read_text().split()))
    return pids


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that the processes have used so far, user and system, in steps of 0.01 s."""
    ticks = 0
    for pid in pids:
        fields = (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        )  # the process name in the second field may contain spaces
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def machine_cpu_s() -> float:
    """Return the CPU seconds that the machine has used so far, and those that its hypervisor took from it (steal)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def memory(pids: Iterable[int]) -> Memory:
    """Return the peak and the present memory, summed over all processes."""
    peak_kib = after_kib = 0
    for pid in pids:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        peak_kib += int(fields["VmHWM"].split()[0])
        after_kib += int(fields["VmRSS"].split()[0])
    return Memory(round(peak_kib / 1024, 1), round(after_kib / 1024, 1))


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
