"""The state of a run folder: which pictures are finished, which items failed, and what is left to paint.

Imports no torch.
"""

import os
from pathlib import Path
from typing import Any

from kandinsky22.backends import logs
from kandinsky22.backends.run_folder import I, RunFolder, Shard
from kandinsky22.files import open_regular

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the first and last bytes of every PNG


def logged(run: RunFolder[Any]) -> dict[str, dict[str, Any]]:
    """The records of finished pictures in all shards' logs by file stem: "sha256", "milliseconds", "worker"."""
    return logs.latest_by_id(sorted(run.folder.glob("log-*.jsonl")))


def failed(run: RunFolder[Any]) -> dict[str, dict[str, Any]]:
    """The records of items that failed and have not been painted since, by id: "error" and "tries"."""
    records = logs.latest_by_id(sorted(run.folder.glob("failed-*.jsonl")))
    return {item.id: records[item.id] for item in run.items if item.id in records and not is_painted(run, item)}


def unfinished_units(run: RunFolder[I], shard: Shard, *, retry: bool) -> list[tuple[I, ...]]:
    """The work units of a shard that need painting: those with an item that is not painted and did not fail before.

    retry: items that failed before count as unfinished too.
    """
    given_up = {} if retry else failed(run)
    return [unit for unit in run.units(shard) if not all(item.id in given_up or is_painted(run, item) for item in unit)]


def is_painted(run: RunFolder[I], item: I) -> bool:
    """Whether all pictures of an item are finished."""
    return all(map(is_complete_png, run.paths(item)))


def is_complete_png(path: Path) -> bool:
    """Whether a file exists and has a PNG's first and last bytes."""
    try:
        with open_regular(path) as file:
            starts = file.read(len(SIGNATURE)) == SIGNATURE
            file.seek(-len(END), os.SEEK_END)
            return starts and file.read() == END
    except (OSError, ValueError):
        return False
