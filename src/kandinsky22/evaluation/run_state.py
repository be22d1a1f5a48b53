"""The state of a run folder: which pictures are finished, which captions failed, and what is left to paint.

Imports no torch.
"""

import os
from pathlib import Path
from typing import Any

from kandinsky22.evaluation import logs
from kandinsky22.evaluation.manifest import Item, Run, Shard

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the first and last bytes of every PNG


def logged(run: Run) -> dict[str, dict[str, Any]]:
    """The records of finished pictures in all shards' logs, by id: "sha256" of the file, "milliseconds", "worker"."""
    return logs.latest_by_id(sorted(run.folder.glob("log-*.jsonl")))


def failed(run: Run) -> dict[str, dict[str, Any]]:
    """The records of captions that failed and have no picture since, by id: "error" and "tries"."""
    records = logs.latest_by_id(sorted(run.folder.glob("failed-*.jsonl")))
    return {name: record for name, record in records.items() if not is_complete_png(run.pictures / f"{name}.png")}


def unfinished_units(run: Run, shard: Shard, *, retry: bool) -> list[tuple[Item, ...]]:
    """The work units of a shard that need painting: those with an item that has no picture and did not fail before.

    retry: items that failed before count as unfinished too.
    """
    given_up = {} if retry else failed(run)
    return [
        unit
        for unit in run.units(shard)
        if not all(item.id in given_up or is_complete_png(run.picture(item)) for item in unit)
    ]


def is_complete_png(path: Path) -> bool:
    """Whether a file exists and has a PNG's first and last bytes."""
    try:
        with path.open("rb") as file:
            starts = file.read(len(SIGNATURE)) == SIGNATURE
            file.seek(-len(END), os.SEEK_END)
            return starts and file.read() == END
    except OSError:
        return False
