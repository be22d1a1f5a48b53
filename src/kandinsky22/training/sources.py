"""Finding the user's pictures: folders with captions beside the pictures, and tars written by img2dataset.

Lists pictures and the files that describe them; opens no picture.
"""

import csv
import math
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from kandinsky22.files import expand, open_regular, parse_json

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp")  # extensions
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
    """A picture that was not opened yet, the files with the same stem by their extension, and its row of metadata."""

    name: str  # within its source
    picture: ByteRange
    sidecars: Mapping[str, ByteRange]
    row: Mapping[str, Any]

    def describe(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The metadata, by keys in lower case, and the alternative captions. Files that cannot be read are ignored."""
        metadata = {**self.row, **_json(self.sidecars.get("json"))}
        caption = next((metadata[key] for key in CAPTION if metadata.get(key)), None)
        return metadata, _lines(self.sidecars.get("txt")) or _captions(caption)


def find_pictures(path: Path) -> tuple[list[SourcePicture], list[str]]:
    """The pictures of a source in a fixed order, and the names of damaged tars, whose readable pictures are included.

    Raises `ValueError` if there is no such source, and for metadata that cannot be read.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() != ".tar" or not path.is_file():
        raise ValueError(f"{path} is neither a folder nor a .tar; give a folder of pictures, or unpack it into one")
    pictures, is_damaged = _in_tar(path, path.name)
    return pictures, [path.name] if is_damaged else []


def _in_folder(root: Path) -> tuple[list[SourcePicture], list[str]]:
    pictures: list[SourcePicture] = []
    damaged: list[str] = []
    rows: dict[Path, dict[str, Any]] = {}
    for parent, folders, files in os.walk(root):
        folder, visible, all_names = Path(parent), sorted(n for n in files if not n.startswith(".")), set(files)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in METADATA:
            if file in visible:
                _add_metadata(folder / file, rows)
        for file in visible:
            path = folder / file
            name, extension = path.relative_to(root).as_posix(), path.suffix[1:].lower()
            if extension in PICTURES:
                texts = {kind: path.with_suffix(f".{kind}") for kind in ("txt", "json")}
                sidecars = {kind: ByteRange(text) for kind, text in texts.items() if text.name in all_names}
                pictures.append(SourcePicture(name, ByteRange(path), sidecars, rows.get(path, {})))
            elif extension == "tar":
                inside, is_damaged = _in_tar(path, name)
                pictures += inside
                damaged += [name] if is_damaged else []
    return pictures, damaged


def _in_tar(path: Path, name: str) -> tuple[list[SourcePicture], bool]:
    """The pictures in a tar, and whether it is damaged; the pictures before the damage are included."""
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
                        members.setdefault(folder + slash + key, {})[extension.lower()] = content
        # a complete tar ends with a block of zeros
        damaged = ByteRange(path, tar.offset, tarfile.BLOCKSIZE).read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        damaged = True
    pictures = [
        SourcePicture(f"{name}/{key}.{extension}", content, sidecars, {})
        for key, sidecars in members.items()
        for extension, content in sidecars.items()
        if extension in PICTURES
    ]
    return pictures, damaged


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
            f"{path} cannot be read: it needs a file_name and a text in every row, in UTF-8; correct it or remove it"
        ) from error


def _metadata(path: Path) -> Iterable[Mapping[str, Any]]:
    with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
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


def _lines(content: ByteRange | None) -> tuple[str, ...]:
    """The captions in a text file, one per line; none if it cannot be read."""
    try:
        return _captions(content.read(MAX_TEXT_BYTES).decode("utf-8-sig").splitlines()) if content is not None else ()
    except (OSError, ValueError):
        return ()


def _captions(value: object) -> tuple[str, ...]:
    """The captions in a text or a list of texts, each on one line, without half characters; empty ones are left out."""
    values = value if isinstance(value, list) else [value]
    captions = (" ".join(LONE_SURROGATE.sub("", text).split()) for text in values if isinstance(text, str))
    return tuple(text for text in captions if text)
