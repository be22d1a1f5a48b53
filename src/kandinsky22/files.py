"""Opening, writing and locking files safely among other processes, and the user's cache folder. Imports no torch."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from safetensors import SafetensorError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

POLL = 0.1  # seconds between attempts to take a lock
MAX_DEPTH = 100  # of JSON values: requests and configurations have less than ten
TEMPORARY = ".part"  # the suffix of a file that is being written
FICLONE = 0x40049409  # Linux's ioctl that makes a file share the blocks of another


@contextlib.contextmanager
def atomic_write(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write to; it is renamed to `path` when the block ends.

    If writing fails, the temporary file is removed and an existing file stays as it was. The folder is created, and
    temporary files of killed processes are removed from it. exclusive: raise `FileExistsError` instead of replacing a
    file. Raises `OSError` whatever exception the writer raised for a failed write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    # The name is cut so that it stays within the 255 bytes of a file system; the random part makes it unique.
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with partial.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if sys.platform == "win32":  # cannot rename an open file
                file.close()
            else:
                lock(file, timeout=0)  # marks it as in use, for `remove_leftovers`
            yield partial
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.chmod(mode)  # some writers create files that only their owner may read
            if exclusive:
                _rename_exclusively(partial, path)
            else:
                partial.replace(path)
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these for a failed write
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _rename_exclusively(source: Path, target: Path) -> None:
    """Rename a file. Raises `FileExistsError` if there is a file of the new name."""
    try:
        target.hardlink_to(source)  # atomic, and fails if the target exists
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then replace the empty file
        target.open("xb").close()
        source.replace(target)


@cache  # once in a process is enough
def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that `atomic_write` left in a folder when its process was killed.

    A process that still writes holds a lock on its file, so that file stays; where there are no locks, all stay.
    """
    if sys.platform == "win32":
        return
    for partial in folder.glob(f".*.*{TEMPORARY}"):
        with contextlib.suppress(OSError), open_regular(partial) as file:
            if _try_lock(file.fileno()):
                partial.unlink()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks until one of the two is written to where the file system can (reflink)."""
    with open_regular(source) as original, atomic_write(target) as partial, partial.open("wb") as copy:
        try:
            if sys.platform != "linux":
                raise OSError(errno.ENOTSUP, "no reflinks")
            fcntl.ioctl(copy.fileno(), FICLONE, original.fileno())
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a file for reading. It never waits for a pipe and never reads a device.

    Raises `ValueError` for anything but a regular file, and for one larger than `max_bytes`; `OSError` as `open` does.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is a pipe or a device; give a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size} bytes, and at most {max_bytes} are read")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with contextlib.suppress(OSError):  # `fdopen` may have closed it
            os.close(descriptor)
        raise


def require_regular(path: Path) -> None:
    """Raises as `open_regular` does; for libraries that open a file by its name."""
    open_regular(path).close()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, nested at most `MAX_DEPTH` deep. Raises `ValueError` for anything else."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [child for among in children for child in among if isinstance(child, dict | list)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters of it; else the name of the error."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def cache_dir() -> Path:
    """The user's folder for what is computed once and reused; `KANDINSKY22_CACHE` moves it."""
    if chosen := os.environ.get("KANDINSKY22_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kandinsky22"


def lock(file: IO[Any], timeout: float | None = None) -> bool:
    """Take an exclusive lock on an open file, which the system releases when the file is closed or its process ends.

    Waits up to `timeout` seconds (None: without limit; 0: not at all) and returns whether the lock was taken. On a file
    system without locks it returns True at once.
    """
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while not _try_lock(file.fileno()):
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(POLL)
    except OSError:
        pass
    return True


def _try_lock(descriptor: int) -> bool:
    """Whether a lock was taken. Raises `OSError` on a file system without locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
