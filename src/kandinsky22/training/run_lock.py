"""One training process at a time in a folder, by a lock that the system releases when the process ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kandinsky22.files import lock

LOCK = "lock"
TIMEOUT = 3.0  # seconds: a process whose supervisor was killed ends within this time


@contextlib.contextmanager
def run_lock(folder: Path, timeout: float = TIMEOUT) -> Iterator[None]:
    """Lock the folder, which is created, against other processes while the block runs.

    Raises `OSError` if another process has it locked for longer than `timeout` seconds. On a file system without locks
    nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        if not lock(file, timeout):
            raise OSError(f"another run is going on in {folder}; wait until it ends, stop it, or name another --folder")
        yield
