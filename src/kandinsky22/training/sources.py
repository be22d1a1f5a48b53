"""Finding the user's pictures: folders with captions beside the pictures, and tars written by img2dataset.

Lists pictures and the files that describe them; opens no picture.
"""

import codecs
import csv
import math
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from kandinsky22.files import expand, open_regular, parse_json
from kandinsky22.request.picture_file import SUFFIXES

PICTURES = tuple(suffix[1:] for suffix in SUFFIXES)  # extensions
TEXTS = ("txt", "caption")  # extensions of captions beside a picture, the first that exists is read
HINT = "hint"  # name.hint.png is the control picture of name.png
METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's imagefolder
MAX_TEXT_BYTES = 2**20  # of the captions or the metadata of one picture
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can contain and no tokenizer reads
CAPTION = ("caption", "text")  # metadata keys of the caption, in lower case


@dataclass(frozen=True)
class Source:
    """A folder of pictures or of tars, or a single tar, and its sampling weight relative to other sources.

    Raises `ValueError` for a weight that is not positive and finite.
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of {self.path} must be a positive number, got {self.weight:g}; try 1")

    @classmethod
    def parse(cls, text: str) -> "Source":
        """The source that "folder" or "folder:2.5" names. Raises `ValueError` if it does not exist."""
        path = expand(text)
        if text and path.exists():  # an empty text would be the current folder
            return cls(path)
        before, colon, weight = text.rpartition(":")
        path = expand(before)
        if not (colon and before and path.exists()):
            raise ValueError(f"{text} is not there; give a folder or a .tar, and its weight after a colon: photos:2")
        try:
            return cls(path, float(weight))
        except ValueError:
            raise ValueError(
                f"the weight of {before} must be a positive number, got {weight!r}; try {before}:2"
            ) from None


class ByteRange(NamedTuple):
    """Bytes of a file from `offset` on: `length` of them, or, if it is -1, all that follow."""

    path: Path
    offset: int = 0
    length: int = -1

    def read(self, max_bytes: int) -> bytes:
        """The bytes. Safe to call from any thread. Raises `ValueError` for more than `max_bytes` and for no file."""
        with open_regular(self.path) as file:
            length = os.fstat(file.fileno()).st_size - self.offset if self.length < 0 else self.length
            if length > max_bytes:
                raise ValueError(f"{self.path} has {length} bytes of one content, and at most {max_bytes} are read")
            file.seek(self.offset)
            return file.read(length)


class SourcePicture(NamedTuple):
    """A picture that was not opened yet, its row of metadata, and the files with the same stem by their extension.

    The sidecar "hint" is its control picture.
    """

    name: str  # within its source
    picture: ByteRange
    sidecars: Mapping[str, ByteRange]
    row: Mapping[str, Any]

    def describe(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The metadata, by keys in lower case, and the alternative captions. Files that cannot be read are ignored."""
        metadata = {**self.row, **_json(self.sidecars.get("json"))}
        caption = next((metadata[key] for key in CAPTION if metadata.get(key)), None)
        lines = (_lines(self.sidecars[kind]) for kind in TEXTS if kind in self.sidecars)
        return metadata, next(filter(None, lines), ()) or _captions(caption)


@dataclass
class Contents:
    """What a source holds: its pictures in a fixed order, and the names of what was left out.

    `damaged` are tars, whose readable pictures are included; `unread` are files that are neither a picture nor describe
    one; `unmatched` are the file names of metadata rows without a picture.
    """

    pictures: list[SourcePicture] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def find_pictures(path: Path) -> Contents:
    """What a source holds. Raises `ValueError` if there is no such source, and for metadata that cannot be read."""
    contents = Contents()
    if path.is_dir():
        _add_folder(path, contents)
    elif path.suffix.lower() == ".tar" and path.is_file():
        _add_tar(path, path.name, contents)
    else:
        raise ValueError(f"{path} is neither a folder nor a .tar; give a folder of pictures, or unpack it into one")
    return contents


def _add_folder(root: Path, contents: Contents) -> None:
    rows: dict[Path, dict[str, Any]] = {}
    pictured: set[Path] = set()
    for parent, folders, files in os.walk(root):
        folder, visible = Path(parent), sorted(name for name in files if not name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in METADATA:
            if file in visible:
                _add_metadata(folder / file, rows)
        used, members = {*METADATA}, _by_stem(visible)
        for file in visible:
            path = folder / file
            name, extension = path.relative_to(root).as_posix(), path.suffix[1:].lower()
            if extension == "tar":
                _add_tar(path, name, contents)
                used.add(file)
            elif extension in PICTURES and not _is_hint(path.stem):
                beside = members.get(path.stem, {})
                sidecars = {kind: ByteRange(folder / other) for kind, other in beside.items()}
                contents.pictures.append(SourcePicture(name, ByteRange(path), sidecars, rows.get(path, {})))
                used |= {file, *beside.values()}
                pictured.add(path)
        contents.unread += [(folder / file).relative_to(root).as_posix() for file in visible if file not in used]
    contents.unmatched += [os.path.relpath(path, root) for path in rows if path not in pictured]


def _by_stem(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The files that may describe a picture, by its stem and their kind."""
    result: dict[str, dict[str, str]] = {}
    for name in names:
        stem, _, extension = name.rpartition(".")
        if extension in (*TEXTS, "json"):
            result.setdefault(stem, {})[extension] = name
        elif extension.lower() in PICTURES and _is_hint(stem):
            result.setdefault(stem.rpartition(".")[0], {})[HINT] = name
    return result


def _is_hint(stem: str) -> bool:
    return stem.lower().endswith(f".{HINT}")


def _add_tar(path: Path, name: str, contents: Contents) -> None:
    """Add the pictures in a tar; those before its damage if it is damaged."""
    members: dict[str, dict[str, ByteRange]] = {}
    try:
        size = path.stat().st_size
        with open_regular(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                content = ByteRange(path, member.offset_data, member.size)
                if member.isreg() and not member.issparse() and content.offset + content.length <= size:
                    folder, slash, file = member.name.removeprefix("./").rpartition("/")
                    key, _, extension = file.partition(".")  # as WebDataset does: key.seg.png is no picture of the key
                    if key:  # else the file is hidden
                        kind = HINT if _is_hint(f".{extension.rpartition('.')[0]}") else extension.lower()
                        members.setdefault(folder + slash + key, {})[kind] = content
        # a complete tar ends with a block of zeros
        damaged = ByteRange(path, tar.offset, tarfile.BLOCKSIZE).read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        damaged = True
    contents.damaged += [name] if damaged else []
    for key, sidecars in members.items():
        found = [extension for extension in sidecars if extension in PICTURES]
        contents.pictures += [SourcePicture(f"{name}/{key}.{kind}", sidecars[kind], sidecars, {}) for kind in found]
        contents.unread += [f"{name}/{key}.{kind}" for kind in sidecars if not found]


def _add_metadata(path: Path, rows: dict[Path, dict[str, Any]]) -> None:
    """Add the rows of an imagefolder's metadata by the paths of their pictures.

    Several rows for one picture are alternative captions.
    """
    try:
        for row in _metadata(path):
            values = {str(key).casefold(): value for key, value in row.items()}
            row_of_picture = rows.setdefault(Path(os.path.normpath(path.parent / str(row["file_name"]))), {})
            texts = [*row_of_picture.get("text", ()), *_captions(values.pop("text", None))]
            row_of_picture.update(values, text=texts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read: every row needs a file_name and a text, in UTF-8 or UTF-16; correct or remove it"
        ) from error


def _metadata(path: Path) -> Iterable[Mapping[str, Any]]:
    with open_regular(path) as start:
        encoding = _encoding(start.read(4))
    with TextIOWrapper(open_regular(path), encoding=encoding, newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from (parse_json(line, halves=True) for line in file if line.strip())


def _json(content: ByteRange | None) -> dict[str, Any]:
    """The object in a JSON file, by keys in lower case; empty if it cannot be read."""
    try:
        values = parse_json(content.read(MAX_TEXT_BYTES), halves=True) if content is not None else {}
    except (OSError, ValueError):
        return {}
    return {key.casefold(): value for key, value in values.items()} if isinstance(values, dict) else {}


def _lines(content: ByteRange) -> tuple[str, ...]:
    """The captions in a text file, one per line; none if it cannot be read."""
    try:
        text = content.read(MAX_TEXT_BYTES)
        return _captions(text.decode(_encoding(text)).splitlines())
    except (OSError, ValueError):
        return ()


def _encoding(start: bytes) -> str:
    """The encoding of a text by its first bytes: UTF-16 with a byte order mark, else UTF-8 with or without one."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _captions(value: object) -> tuple[str, ...]:
    """The captions in a text or a list of texts, each on one line, without half characters; empty ones are left out."""
    values = value if isinstance(value, list) else [value]
    captions = (" ".join(LONE_SURROGATE.sub("", text).split()) for text in values if isinstance(text, str))
    return tuple(text for text in captions if text)
