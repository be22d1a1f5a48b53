"""One training process at a time in a folder, by a lock that the system releases when the process ends."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kandinsky22.files import check_in_place, lock, remove_leftovers

LOCK = "lock"
TIMEOUT = 3.0  # seconds: a process whose supervisor was killed ends within this time


@contextlib.contextmanager
def run_lock(folder: Path, timeout: float = TIMEOUT) -> Iterator[Callable[[], None]]:
    """Lock the folder, which is created, against other processes while the block runs.

    Yields a function that raises `OSError` if the folder was removed or replaced since. Raises `OSError` if another
    process has it locked for longer than `timeout` seconds. On a file system without locks nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        if not lock(file, timeout):
            raise OSError(f"another run is going on in {folder}; wait until it ends, stop it, or name another --folder")
        for path, _, _ in os.walk(folder):
            remove_leftovers(Path(path))
        yield partial(check_in_place, file, folder / LOCK)
