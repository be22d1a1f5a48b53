"""Whether memory that tensors free stays with the process for the next ones, or goes back to the system.

glibc returns what a large tensor frees at once and fetches it anew for the next, page by page, which takes a fifth of MoVQ's
time (docs/log.md). While somebody computes it is told to keep it; when the last is done, all goes back. Other allocators, and a
glibc that is told otherwise by the environment, are left alone.
"""

import ctypes
import os
import sys
from functools import cache
from threading import Lock
from weakref import WeakSet

from kandinsky22.acceleration.flags import off, uses

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10, M_MMAP_THRESHOLD: 32 << 20}
"""What glibc does by itself once it has seen blocks of 32 MB."""

_at_work: WeakSet[object] = WeakSet()
_turns = Lock()


def keep_freed(who: object) -> None:
    """Keep what is freed until `who` is done, and everybody else who computes. Whoever is gone is done."""
    if off() or not uses("allocator") or _told_otherwise():
        return
    with _turns:
        _at_work.add(who)
        _tell(KEEPING)


def done(who: object) -> None:
    """When nobody else is at work, return what is free to the system, and later what is freed at once again."""
    with _turns:
        if who in _at_work:
            _at_work.remove(who)
            if not _at_work:
                _tell(USUAL)
                free_unused()


def free_unused() -> None:
    """Return what is free to the system."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def _tell(how: dict[int, int]) -> None:
    if (glibc := _glibc()) is not None:
        for option, value in how.items():
            glibc.mallopt(option, value)


def _told_otherwise() -> bool:
    """Whether the environment tells glibc something about it."""
    named = any(name.startswith(("MALLOC_MMAP_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_")) for name in os.environ)
    return named or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")


@cache
def _glibc() -> ctypes.CDLL | None:
    here = ctypes.CDLL(None) if sys.platform == "linux" else None
    return here if hasattr(here, "mallopt") and hasattr(here, "malloc_trim") else None
