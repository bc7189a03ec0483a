"""Keep freed memory in the process, so that large messages cause fewer page faults.

glibc returns blocks of over 128 KiB to the kernel as soon as they are freed. A request of 1,024 rows passes through
several of them. Faulting their pages in again took two thirds of the time to receive the request: 1.5 ms instead of
0.5 ms (docs/decisions/0008).
"""

import ctypes
import sys

# malloc.h's names of its parameters: (number, value).
_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, 1 << 30),  # free bytes at the top of the heap before any are returned
    "M_MMAP_THRESHOLD": (-3, 32 << 20),  # the largest value that every glibc accepts; larger blocks are mapped
    "M_ARENA_MAX": (-8, 2),  # heaps: each keeps its own freed memory
}


def keep_freed_memory() -> None:
    """Configure glibc's malloc for the whole process; do nothing with another C library."""
    if sys.platform.startswith("linux") and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        for number, value in _SETTINGS.values():
            mallopt(number, value)
