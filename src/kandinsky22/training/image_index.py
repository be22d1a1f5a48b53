"""The sizes and contents of the user's pictures, stored with the run, so that no file is decoded twice to check it.

One line per file, added while pictures are checked, so that an interrupted check continues. It stores a hash of the
content, the size, and which files are broken, but no captions or results of filters, which may change while the picture
stays the same. Lines of earlier versions, without a hash, are not used.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kandinsky22.files import open_regular, parse_json
from kandinsky22.training.run_lock import run_lock
from kandinsky22.training.sources import ByteRange

FOLDER, INDEX = "pictures", "index.jsonl"
TIMEOUT = 6 * 3600.0  # seconds to wait for another network that checks the same pictures


class Size(NamedTuple):
    """A picture's height and width in pixels, after EXIF orientation."""

    height: int
    width: int


class Entry(NamedTuple):
    """What is known of a decoded file: `stamp` changes with it, `digest` with its content; a broken one has no size."""

    stamp: str
    digest: str
    size: Size | None


class ImageIndex:
    """The entries of decoded files.

    `lookup` and `add` may be called from any thread; `write` stores what was added. Without a `path` nothing is stored.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._entries: dict[tuple[str, int], Entry] = {}
        self._unwritten: list[tuple[ByteRange, Entry]] = []
        if path is not None and path.exists():
            with open_regular(path) as lines:
                for line in lines:
                    with suppress(ValueError, TypeError):  # incomplete after a crash; the first line is empty
                        file, offset, stamp, height, width, digest = parse_json(line)
                        if not all(type(number) is int for number in (offset, height, width)):
                            raise TypeError("an entry has other values")
                        self._entries[sys.intern(file), offset] = Entry(stamp, digest, _size(height, width))

    def lookup(self, content: ByteRange, stamp: str) -> Entry | None:
        """The entry of a picture, if it is in the index and its file has not changed since."""
        entry = self._entries.get((str(content.path.absolute()), content.offset))
        return entry if entry is not None and entry.stamp == stamp else None

    def add(self, content: ByteRange, entry: Entry) -> None:
        """Add a picture's entry."""
        self._unwritten.append((content, entry))

    def write(self) -> None:
        """Append what was added since the last call to the file. Raises `OSError` if it cannot be written."""
        added, self._unwritten = self._unwritten, []
        if self.path is None or not added:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = ([str(c.path.absolute()), c.offset, e.stamp, *(e.size or (0, 0)), e.digest] for c, e in added)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{json.dumps(row)}" for row in rows))  # a crash may have left a row without its end


def _size(height: int, width: int) -> Size | None:
    return Size(height, width) if height > 0 and width > 0 else None


@contextmanager
def open_index(folder: Path) -> Iterator[ImageIndex]:
    """The index in a run's folder, locked against other networks that would check the same pictures meanwhile.

    Raises `OSError` if another one has it locked for hours.
    """
    with run_lock(folder / FOLDER, TIMEOUT):
        yield ImageIndex(folder / FOLDER / INDEX)
