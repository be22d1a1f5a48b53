"""One run at a time in a folder. The lock is the system's: it ends with the process that holds it, however that ends."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "lock"
PATIENCE = 3.0  # seconds: a process whose supervisor was killed ends within one
GLANCE = 0.1  # seconds between tries


@contextlib.contextmanager
def held(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the folder, which is made, against other processes. Raises `OSError` where one holds it for longer than
    `patience` seconds. Where the file system knows no locks, there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        until = time.monotonic() + patience
        while not _taken(file.fileno()):
            if time.monotonic() > until:
                raise OSError(
                    f"another run is going on in {folder}; wait until it ends, stop it, or name another --folder"
                )
            time.sleep(GLANCE)
        yield


def _taken(file: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # there are no locks here
        return True
    return True
