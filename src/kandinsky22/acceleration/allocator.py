"""Keeps the memory that tensors free in the process while a stage computes, and returns it to the system afterwards.

glibc returns a large tensor's memory as soon as it is freed and maps it again for the next one, page by page, which
takes a fifth of MoVQ's time (docs/log.md). While any owner is registered, glibc is set to keep it; when the last one
is done, all of it goes back. Other allocators are left alone, and so is a glibc that the environment configures.
"""

import ctypes
import os
import sys
from functools import cache
from threading import Lock
from weakref import WeakSet

from kandinsky22.acceleration.flags import is_off, uses

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt
KEEP_OPTIONS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
DEFAULT_OPTIONS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10, M_MMAP_THRESHOLD: 32 << 20}
"""What glibc arrives at by itself once it has seen blocks of 32 MB."""

_owners: WeakSet[object] = WeakSet()
_lock = Lock()


def keep_freed(owner: object) -> None:
    """Keep freed memory until `owner`, and every other owner, is done or garbage-collected."""
    if is_off() or not uses("allocator") or _configured_by_environment():
        return
    with _lock:
        _owners.add(owner)
        set_options(KEEP_OPTIONS)


def stop_keeping(owner: object) -> None:
    """Remove an owner. With the last one, return free memory to the system and restore glibc's usual behaviour."""
    with _lock:
        if owner in _owners:
            _owners.remove(owner)
            if not _owners:
                set_options(DEFAULT_OPTIONS)
                free_unused()


def free_unused() -> None:
    """Return free memory to the system."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def set_options(options: dict[int, int]) -> None:
    """Set options of glibc's mallopt; does nothing with another allocator."""
    if (glibc := _glibc()) is not None:
        for option, value in options.items():
            glibc.mallopt(option, value)


def _configured_by_environment() -> bool:
    """Whether the environment sets any of glibc's options for this."""
    by_name = any(name.startswith(("MALLOC_MMAP_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_")) for name in os.environ)
    return by_name or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
