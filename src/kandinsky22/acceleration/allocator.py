"""Whether memory that tensors free stays with the process for the next ones, or goes back to the system.

glibc returns what a large tensor frees at once and fetches it anew for the next, page by page, which takes a fifth of MoVQ's
time (docs/performance.md). While somebody computes it is told to keep it; whoever is done gives it back. Other allocators, and a
glibc that is told otherwise by the environment, are left alone.
"""

import ctypes
import os
import sys
from collections.abc import Hashable
from functools import cache

from kandinsky22.acceleration.switch import off, uses

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10, M_MMAP_THRESHOLD: 32 << 20}
"""What glibc does by itself once it has seen blocks of 32 MB."""
TOLD = (
    "MALLOC_MMAP_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_",
    "GLIBC_TUNABLES",
)  # how names in the environment begin that tell it otherwise

_at_work: set[Hashable] = set()


def keep_freed(who: Hashable) -> None:
    """Keep what is freed until `who` gives it back, and everybody else who computes."""
    if off() or not uses("allocator") or any(name.startswith(TOLD) for name in os.environ):
        return
    if not _at_work:
        _tell(KEEPING)
    _at_work.add(who)


def give_back(who: Hashable = None) -> None:
    """Return what is free to the system. The last one at work has later memory go back at once again."""
    if who in _at_work:
        _at_work.remove(who)
        if not _at_work:
            _tell(USUAL)
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def _tell(how: dict[int, int]) -> None:
    if (glibc := _glibc()) is not None:
        for option, value in how.items():
            glibc.mallopt(option, value)


@cache
def _glibc() -> ctypes.CDLL | None:
    here = ctypes.CDLL(None) if sys.platform == "linux" else None
    return here if hasattr(here, "mallopt") and hasattr(here, "malloc_trim") else None
