"""Whether a file is the published one: its size and SHA-256, read once and noted until the file changes."""

import hashlib
from contextlib import suppress
from pathlib import Path

from kandinsky22.checkpoints.catalog import File
from kandinsky22.checkpoints.json_files import CheckpointError, read_text
from kandinsky22.files import atomic_write, cache_dir

CHUNK = 1 << 24


def verify(path: Path, file: File, name: str) -> None:
    """Compare the file at `path` with the published `file`, and note that it is the same.

    A file that differs is removed, since a cache would return it again, and `CheckpointError` says so.
    """
    size = path.stat().st_size
    digest = sha256(path) if size == file.bytes and file.sha256 else None
    if size == file.bytes and digest == file.sha256:
        with suppress(OSError):  # without a note the file is read again next time
            place, note = _note(path, file)
            with atomic_write(place) as partial:
                partial.write_text(note, encoding="ascii")
        return
    for wrong in (path.resolve(), path):  # the hub's cache consists of links
        with suppress(OSError):
            wrong.unlink()
    why = f"its SHA-256 is {digest}, not {file.sha256}" if digest else f"it has {size} bytes, not {file.bytes}"
    raise CheckpointError(f"{name} is not the file that was published: {why}; it was removed, so fetch it again")


def is_verified(path: Path, file: File) -> bool:
    """Whether a file need not be read: it was verified before and has not changed since, or its SHA-256 is unknown."""
    if file.sha256 is None:
        return path.stat().st_size == file.bytes
    place, note = _note(path, file)
    try:
        return read_text(place) == note
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _note(path: Path, file: File) -> tuple[Path, str]:
    """Where it is noted that a file was verified, and the note, which no longer matches once the file changes."""
    target = path.resolve()
    state = target.stat()
    place = hashlib.sha256(str(target).encode()).hexdigest()[:16]
    return cache_dir() / "checked" / place, f"{file.sha256} {state.st_size} {state.st_mtime_ns}\n"
