"""Keeps freed memory in the process, so that a large message does not fault every page in anew.

glibc gives blocks of over 128 KiB back to the kernel as soon as they are freed. A request of 1,024 rows passes through
several of them, and taking their pages again cost two thirds of what receiving it cost: 1.5 ms instead of 0.5 ms
(docs/decisions/0008).
"""

import ctypes
import sys

# malloc.h's names for its parameters, and what they are set to.
_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, 1 << 30),  # free bytes at the top of the heap before any are given back
    "M_MMAP_THRESHOLD": (-3, 32 << 20),  # the largest value that every glibc takes; larger blocks are mapped
    "M_ARENA_MAX": (-8, 2),  # heaps: each keeps its own freed memory
}


def keep_freed_memory() -> None:
    """Sets glibc's malloc so for the whole process; does nothing where the C library is another."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return
    for number, value in _SETTINGS.values():
        mallopt(number, value)
