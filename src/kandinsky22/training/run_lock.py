"""One training process at a time in a folder, by a lock that the system releases when the process ends."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kandinsky22.files import locked, remove_leftovers

LOCK = "lock"
TIMEOUT = 3.0  # seconds: a process whose supervisor was killed ends within this time


@contextlib.contextmanager
def run_lock(folder: Path, timeout: float = TIMEOUT) -> Iterator[Callable[[], None]]:
    """`files.locked` for a training folder, from which what killed processes left is removed.

    Raises `OSError` if another process has it locked for longer than `timeout` seconds.
    """
    error = f"another run is going on in {folder}; wait until it ends, stop it, or name another --folder"
    with locked(folder / LOCK, timeout, error) as check_in_place:
        for path, _, _ in os.walk(folder):
            remove_leftovers(Path(path))
        yield check_in_place
