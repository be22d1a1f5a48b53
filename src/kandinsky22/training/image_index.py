"""What was found out about a person's pictures, kept with the run: none is decoded a second time to learn the same.

A line for each picture's file, added as pictures are looked at, so that looking which was stopped goes on. It knows sizes and
what is broken, and nothing of filters and captions, which may change while the picture stays.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kandinsky22.training.lock import held
from kandinsky22.training.sources import Part

FOLDER, INDEX = "pictures", "index.jsonl"
WAITING = 6 * 3600.0  # seconds for another network that looks through the same pictures


class Size(NamedTuple):
    """A picture's height and width in pixels, upright."""

    height: int
    width: int


Verdict = Size | None
"""What a file is: a picture of some size, or broken."""


class Judged:
    """What is known of files. `known` and `note` may be called from any thread; what was noted is written by `write`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[tuple[str, int], tuple[str, Verdict]] = {}
        self._new: list[tuple[Part, str, Verdict]] = []
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a crash tore it; the first is empty
                    file, offset, stamp, height, width = json.loads(line)
                    self._known[sys.intern(file), offset] = stamp, Size(height, width) if height else None

    def known(self, part: Part, stamp: str) -> tuple[bool, Verdict]:
        """Whether it is known what these bytes are, and what; `stamp` is that of their file, and tells whether it changed."""
        noted, verdict = self._known.get((str(part.path.absolute()), part.offset), ("", None))
        return noted == stamp, verdict

    def note(self, part: Part, stamp: str, verdict: Verdict) -> None:
        """Keep what was found out."""
        self._new.append((part, stamp, verdict))

    def write(self) -> None:
        """Add what was noted since to the file, if there is one. Raises `OSError` where it cannot be written."""
        new, self._new = self._new, []
        if self.path is None or not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            rows = ([str(part.path.absolute()), part.offset, stamp, *(size or (0, 0))] for part, stamp, size in new)
            file.write("".join(f"\n{json.dumps(row)}" for row in rows))  # begun anew, after whatever a crash left


@contextmanager
def kept_in(folder: Path) -> Iterator[Judged]:
    """What is kept in a run's folder, held against other networks that would look at the same pictures meanwhile. Raises
    `OSError` where one does so for hours."""
    with held(folder / FOLDER, WAITING):
        yield Judged(folder / FOLDER / INDEX)
