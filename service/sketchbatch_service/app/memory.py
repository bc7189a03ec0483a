"""Keep freed memory in the process, so that large messages cause fewer page faults.

glibc returns blocks of over 128 KiB to the kernel as soon as they are freed. A request of 1,024 rows needs several
such blocks, and each new block causes page faults. To receive such a request took 1.5 ms without these settings, and
0.5 ms with them (docs/decisions/0008).
"""

import ctypes
import sys

# Parameter of mallopt, as named in malloc.h -> (its number there, the value that we set).
_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, 1 << 30),  # most free bytes at the top of the heap that malloc keeps
    "M_MMAP_THRESHOLD": (-3, 32 << 20),  # larger blocks are returned when freed; the maximum that every glibc accepts
    "M_ARENA_MAX": (-8, 2),  # number of heaps, each of which keeps its own freed memory
}


def keep_freed_memory() -> None:
    """Configure glibc's malloc for the whole process; do nothing with another C library."""
    if sys.platform.startswith("linux") and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # not in musl
        for number, value in _SETTINGS.values():
            mallopt(number, value)
