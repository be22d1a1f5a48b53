"""Whether a file is what was published: its size and SHA-256, read once and noted until the file is touched."""

import hashlib
from contextlib import suppress
from pathlib import Path

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.about import CheckpointError
from kandinsky22.checkpoints.catalog import File
from kandinsky22.files import atomic_write

CHUNK = 1 << 24


def check(path: Path, file: File, name: str) -> None:
    """Hold the file at `path` against what was published as `file`, and note that it is the same.

    Where it is not, it is removed, and `CheckpointError` says so: a cache that keeps it would hand it out again.
    """
    there = path.stat().st_size
    found = sha256(path) if there == file.bytes and file.sha256 else None
    if there == file.bytes and found == file.sha256:
        with suppress(OSError):  # notes that cannot be written cost time, not pictures
            place, note = _note(path, file)
            with atomic_write(place) as partial:
                partial.write_text(note, encoding="ascii")
        return
    for wrong in (path.resolve(), path):  # the hub's cache holds links
        with suppress(OSError):
            wrong.unlink()
    why = f"its SHA-256 is {found}, not {file.sha256}" if found else f"it has {there} bytes, not {file.bytes}"
    raise CheckpointError(f"{name} is not the file that was published: {why}; it was removed, so fetch it again")


def was_checked(path: Path, file: File) -> bool:
    """Whether a file needs no checking: it passed before and was not touched since, or nobody published its content."""
    if file.sha256 is None:
        return path.stat().st_size == file.bytes
    place, note = _note(path, file)
    try:
        return place.read_text(encoding="ascii") == note
    except (OSError, UnicodeDecodeError):
        return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _note(path: Path, file: File) -> tuple[Path, str]:
    """Where it is noted that a file passed, and the note, which no longer holds once the file is touched."""
    real = path.resolve()
    state = real.stat()
    place = hashlib.sha256(str(real).encode()).hexdigest()[:16]
    return catalog.cache() / "checked" / place, f"{file.sha256} {state.st_size} {state.st_mtime_ns}\n"
