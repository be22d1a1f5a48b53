"""Logs of one JSON record per line that survive a kill at any moment, and exclusive files. Imports no torch."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kandinsky22.files import lock


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record; it is on the disk when this returns."""
    with path.open("ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def truncate_partial_line(path: Path) -> None:
    """Remove a last line that was not written completely, so that the next record starts on a line of its own."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def latest_by_id(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The latest record of each "id" in some logs; a last line without an end is ignored, as it is being written.

    Raises `ValueError` naming a line that holds no record.
    """
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                records[record["id"]] = record
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{path}, line {number}, is damaged; remove that line and run again") from None
    return records


@contextlib.contextmanager
def locked(path: Path, error: str | None = None) -> Iterator[None]:
    """Lock a file, created if needed, for the length of a `with` block; the end of the process also releases it.

    error: the message of the `ValueError` to raise if another process has the lock; None waits for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not lock(file, None if error is None else 0):
            raise ValueError(error)
        yield
