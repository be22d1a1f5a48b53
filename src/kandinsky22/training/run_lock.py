"""One training process at a time in a folder, by a lock that the system releases when the process ends."""

from contextlib import AbstractContextManager
from pathlib import Path

from kandinsky22.files import locked

LOCK = "lock"
TIMEOUT = 3.0  # seconds: a process whose supervisor was killed ends within this time


def run_lock(folder: Path, timeout: float = TIMEOUT) -> AbstractContextManager[None]:
    """Locks a folder, which is created; entering raises `OSError` if it stays locked for `timeout` seconds."""
    error = f"another run is going on in {folder}; wait until it ends, stop it, or name another --folder"
    return locked(folder / LOCK, timeout, error)
