"""Logs of one JSON record per line that survive a kill at any moment. Imports no torch."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kandinsky22.files import open_regular, parse_json


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record; it is on the disk when this returns."""
    with path.open("ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def truncate_partial_line(path: Path) -> None:
    """Remove a last line that was not written completely, so that the next record starts on a line of its own."""
    if path.exists():
        with open_regular(path) as file:
            end = file.read().rfind(b"\n") + 1
        os.truncate(path, end)


def latest_by_id(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The latest record of each "id" in some logs; a last line without an end is ignored, as it is being written.

    Raises `ValueError` naming a line that holds no record.
    """
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                record = dict(parse_json(line))
                records[record["id"]] = record
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{path}, line {number}, is damaged; remove that line and run again") from None
    return records
