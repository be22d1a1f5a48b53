"""Files that grow by a line of JSON at a time and may be cut off anywhere, and files that one process has. Imports no torch."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record; when this returns it is on the disk."""
    with path.open("ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def mend(path: Path) -> None:
    """Cut off a line that was not written to its end, so that the next one is not added to it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def by_id(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The latest record of each "id" in files, but for a line that is being written. Raises `ValueError` naming a line that
    holds none."""
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                records[record["id"]] = record
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{path}, line {number}, is damaged; remove that line, and begin again") from None
    return records


@contextlib.contextmanager
def locked(path: Path, taken: str | None = None) -> Iterator[None]:
    """Nobody else has this file, which is made, locked for as long; the end of the process ends it too.

    taken: what to say, as a `ValueError`, if somebody has; None is to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if taken is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(taken) from None
        yield
