"""Where a person's pictures are: folders with captions beside the pictures, and img2dataset's tars.

Pictures are found here, with what lies beside them; none is opened.
"""

import csv
import json
import math
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")  # how their files' names end
METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's imagefolder
CAPTION = ("caption", "text")  # keys of what is said of a picture, in lower case


@dataclass(frozen=True)
class Source:
    """Where pictures are: a folder of pictures or of tars, or a .tar; and how often it is drawn from, beside others.

    Raises `ValueError` for a weight that is not positive and finite.
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of {self.path} must be a positive number, got {self.weight:g}; try 1")

    @classmethod
    def parsed(cls, text: str) -> "Source":
        """The source that "folder" or "folder:2.5" names. Raises `ValueError` where it is not there."""
        path = Path(text).expanduser()
        if text and path.exists():  # no text as a path would be the folder we are in
            return cls(path)
        before, colon, weight = text.rpartition(":")
        path = Path(before).expanduser()
        if not (colon and before and path.exists()):
            raise ValueError(f"{text} is not there; give a folder or a .tar, and its weight after a colon: photos:2")
        try:
            return cls(path, float(weight))
        except ValueError:
            raise ValueError(
                f"the weight of {before} must be a positive number, got {weight!r}; try {before}:2"
            ) from None


class Part(NamedTuple):
    """Some bytes of a file, or, with a length of -1, all from `offset` on."""

    path: Path
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The bytes; from any thread."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


class Found(NamedTuple):
    """A picture that was not looked at yet, and what lies beside it: parts by ending, a row of metadata."""

    name: str  # within its source
    picture: Part
    beside: Mapping[str, Part]
    row: Mapping[str, Any]

    def about(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What is said of the picture, by keys in lower case, and the wordings of its caption; what cannot be read is as if it
        were not there."""
        about = {**self.row, **_json(self.beside.get("json"))}
        caption = next((about[key] for key in CAPTION if about.get(key)), None)
        return about, _lines(self.beside.get("txt")) or _wordings(caption)


def find(path: Path) -> tuple[list[Found], list[str]]:
    """The pictures of a source in a fixed order, and the names of tars that are damaged, of which it gives what comes before.

    Raises `ValueError` where there is no such source, and for metadata that cannot be read.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() != ".tar" or not path.is_file():
        raise ValueError(f"{path} is neither a folder nor a .tar; give a folder of pictures, or unpack it into one")
    found, damaged = _in_tar(path, path.name)
    return found, [path.name] if damaged else []


def _in_folder(root: Path) -> tuple[list[Found], list[str]]:
    found: list[Found] = []
    damaged: list[str] = []
    rows: dict[Path, dict[str, Any]] = {}
    for place, folders, files in os.walk(root):
        here, names, there = Path(place), sorted(name for name in files if not name.startswith(".")), set(files)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in METADATA:
            if name in names:
                _add_metadata(here / name, rows)
        for name in names:
            path = here / name
            said, ending = path.relative_to(root).as_posix(), path.suffix[1:].lower()
            if ending in PICTURES:
                texts = {text: path.with_suffix(f".{text}") for text in ("txt", "json")}
                beside = {text: Part(file) for text, file in texts.items() if file.name in there}
                found.append(Found(said, Part(path), beside, rows.get(path, {})))
            elif ending == "tar":
                inside, torn = _in_tar(path, said)
                found += inside
                damaged += [said] if torn else []
    return found, damaged


def _in_tar(path: Path, said: str) -> tuple[list[Found], bool]:
    """The pictures in a tar, and whether it is damaged: what comes before the damage is given."""
    members: dict[str, dict[str, Part]] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                part = Part(path, member.offset_data, member.size)
                if member.isreg() and not member.issparse() and part.offset + part.length <= size:
                    folder, slash, file = member.name.removeprefix("./").rpartition("/")
                    key, _, ending = file.partition(".")  # as WebDataset does: key.seg.png is no picture of the key
                    if key:  # else it is hidden
                        members.setdefault(folder + slash + key, {})[ending.lower()] = part
        damaged = Part(path, tar.offset, tarfile.BLOCKSIZE).read() != bytes(tarfile.BLOCKSIZE)  # what ends a whole one
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        damaged = True
    found = [
        Found(f"{said}/{key}.{ending}", part, parts, {})
        for key, parts in members.items()
        for ending, part in parts.items()
        if ending in PICTURES
    ]
    return found, damaged


def _add_metadata(path: Path, rows: dict[Path, dict[str, Any]]) -> None:
    """Rows of an imagefolder's metadata by the pictures' paths; of several for one picture, each is a wording."""
    try:
        for row in _metadata(path):
            values = {str(key).casefold(): value for key, value in row.items()}
            known = rows.setdefault(Path(os.path.normpath(path.parent / str(row["file_name"]))), {})
            texts = [*known.get("text", ()), *_wordings(values.pop("text", None))]
            known.update(values, text=texts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read: it needs a file_name and a text in every row, in UTF-8; correct it or remove it"
        ) from error


def _metadata(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from (json.loads(line) for line in file if line.strip())


def _json(part: Part | None) -> dict[str, Any]:
    """What a JSON file says, its keys in lower case; nothing where it cannot be read."""
    try:
        values = json.loads(part.read()) if part is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {key.casefold(): value for key, value in values.items()} if isinstance(values, dict) else {}


def _lines(part: Part | None) -> tuple[str, ...]:
    """The wordings in a text file, one a line; none where it cannot be read."""
    try:
        return _wordings(part.read().decode("utf-8-sig").splitlines()) if part is not None else ()
    except (OSError, ValueError):
        return ()


def _wordings(said: object) -> tuple[str, ...]:
    """What is said of a picture, once or in a list, each on one line."""
    listed = said if isinstance(said, list) else [said]
    words = (" ".join(text.split()) for text in listed if isinstance(text, str))
    return tuple(text for text in words if text)
