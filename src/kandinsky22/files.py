"""Writing files atomically, locks between processes, and the user's cache folder. Imports no torch."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

POLL = 0.1  # seconds between attempts to take a lock


def _umask() -> int:
    """The permission bits that this process removes from new files; the only way to read them is to set them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it is renamed to `path` when the block ends.

    If writing fails, the temporary file is removed and an existing file stays as it was. The folder is created. Raises
    `OSError` whatever exception the writer raised for a failed write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())  # some writers create files that only their owner may read
        partial.replace(path)
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these for a failed write
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def cache_dir() -> Path:
    """The user's folder for what is computed once and reused; `KANDINSKY22_CACHE` moves it."""
    if chosen := os.environ.get("KANDINSKY22_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kandinsky22"


@contextlib.contextmanager
def locked(path: Path, timeout: float | None = None, error: str = "") -> Iterator[None]:
    """Lock a file, which is created, against other processes while the block runs; the end of the process releases it.

    Waits up to `timeout` seconds (None: without limit; 0: not at all), then raises `BlockingIOError` with the message
    `error`. On a file system without locks nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        end = None if timeout is None else time.monotonic() + timeout
        while not _try_lock(file.fileno()):
            if end is not None and time.monotonic() >= end:
                raise BlockingIOError(error or f"{path} is locked by another process; wait until it ends")
            time.sleep(POLL)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
