"""A file of captions as a value: what is to be painted, under which name, with which seed. Imports no torch.

A .csv or .tsv has a header with one column of captions, and, if it likes, one of ids and one of seeds; other columns are
passed over. Of COCO's own `image_id` and `id` the caption's, `id`, counts. A .txt has a caption a line. Whatever would be
painted otherwise than its author thinks is refused.
"""

import csv
import hashlib
import io
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kandinsky22.request.request import MAX_SEED

CAPTION = ("caption", "text", "prompt")
ID = ("id", "image_id", "file_name", "filename", "name")
SEED = ("seed",)
COCO = {
    "id",
    "image_id",
}  # both are in COCO's own tables, where several captions are of one picture: the caption's is meant
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # an id that is a picture's file name is meant without its ending
FORBIDDEN = '/\\<>:"|?*'  # in a file's name, on one system or another
LONGEST = 200  # bytes of an id: 255 is what file systems take, with an ending and a temporary name's


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption, the id that its picture is named after, and its seed, if the file has one for it."""

    id: str
    caption: str
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Captions:
    """The captions of a file in its order, and the SHA-256 of its bytes, as hexadecimal digits."""

    items: tuple[Captioned, ...]
    sha256: str


class _Row(NamedTuple):
    """A caption and the line it begins in; an id of None is to be its number."""

    line: int
    caption: str
    id: str | None = None
    seed: int | None = None


def read(path: Path) -> Captions:
    """The captions of a .csv, .tsv or .txt, in UTF-8. Without ids, a caption's id is its number, counted from 1.

    Raises `ValueError`, one sentence that names the line and the fix: for another kind of file, another encoding, no or several
    columns that could be meant, rows of another length than the header, empty lines and captions, ids that are no file
    names or not unique, and captions that come twice where there are no ids to tell them apart.
    """
    ending = path.suffix.lower()
    if ending not in (*DELIMITERS, ".txt"):
        raise ValueError(f"captions are read from .csv, .tsv and .txt files, got {path.name!r}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    text = _decoded(path, data)
    rows = [*(_lines(path, text) if ending == ".txt" else _table(path, text, DELIMITERS[ending]))]
    if not rows:
        raise ValueError(
            f"{path} holds no captions; write one a line" + ("" if ending == ".txt" else " below the header")
        )
    return Captions(tuple(_named(path, rows)), hashlib.sha256(data).hexdigest())


def _decoded(path: Path, data: bytes) -> str:
    """The text of UTF-8, with or without a byte order mark."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the bytes decoded begin after a mark, if there is one
        at = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, at) + 1
        raise ValueError(f"{path} is not UTF-8: byte {at}, in line {line}, is wrong; save it as UTF-8") from None
    if "\0" in text:  # which UTF-16 is full of
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path} is not text in UTF-8: line {line} holds a zero byte; save it as UTF-8")
    return text


def _lines(path: Path, text: str) -> Iterator[_Row]:
    """A caption a line; empty lines may only end the file."""
    whole = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    for line, said in enumerate(whole.split("\n") if whole else (), 1):
        yield _Row(line, _caption(path, line, said))


def _table(path: Path, text: str, delimiter: str) -> Iterator[_Row]:
    records = _records(path, text, delimiter)
    if not records:
        return
    (_, header), *rows = records
    names = [name.strip().casefold() for name in header]
    caption, named, seeded = (_column(path, names, which) for which in (CAPTION, ID, SEED))
    if caption is None:
        found = ", ".join(repr(name) for name in names) or "an empty line where the header belongs"
        raise ValueError(f"{path} has no column of captions, only {found}; name one of them {_either(CAPTION)}")
    for line, row in rows:
        if not row:
            raise _empty(path, line)
        if len(row) != len(names):
            raise ValueError(
                f"{path}, line {line}, has {len(row)} fields and the header has {len(names)}; put a caption that holds "
                "the delimiter into quotation marks"
            )
        yield _Row(
            line,
            _caption(path, line, row[caption]),
            None if named is None else _id(path, line, row[named]),
            None if seeded is None else _seed(path, line, row[seeded]),
        )


def _records(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The rows of a table, each with the line that it begins in; without empty ones at the end."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, line = [], 1
    try:
        for row in reader:
            records.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        if "limit" in str(error):
            raise ValueError(
                f"{path}, line {line}, has a field of more than {csv.field_size_limit()} characters, which is no caption; "
                "close the quotation mark where it ends"
            ) from None
        raise ValueError(
            f"{path}, line {line}, cannot be read ({error}); put the field into quotation marks and double those within"
        ) from None
    while records and not any(field.strip() for field in records[-1][1]):
        records.pop()
    return records


def _column(path: Path, names: Sequence[str], which: Sequence[str]) -> int | None:
    """Where the one column is that goes by one of some names, if there is one."""
    found = [k for k, name in enumerate(names) if name in which]
    if len(found) == 2 and {names[k] for k in found} == COCO:
        return names.index("id")
    if len(found) > 1:
        said = " and ".join(repr(names[k]) for k in found)
        raise ValueError(f"{path} has the columns {said}, each of which could be the {which[0]}; keep one of them")
    return found[0] if found else None


def _caption(path: Path, line: int, said: str) -> str:
    caption = said.strip()
    if not caption:
        raise _empty(path, line)
    return caption


def _id(path: Path, line: int, said: str) -> str:
    """An id that can be a file's name."""
    stem, dot, ending = said.strip().rpartition(".")
    name = stem if f"{dot}{ending}".lower() in PICTURES else said.strip()
    if not name:
        raise ValueError(f"{path}, line {line}, has no id; give it one, or remove the column")
    if name.startswith(".") or not name.isprintable() or any(letter in FORBIDDEN for letter in name):
        raise ValueError(
            f"{path}, line {line}: the id {name!r} cannot name a file; leave out folders, {FORBIDDEN} and a dot in front"
        )
    if (size := len(name.encode())) > LONGEST:
        raise ValueError(f"{path}, line {line}: the id has {size} bytes, and a file's name takes {LONGEST}; shorten it")
    return name


def _seed(path: Path, line: int, said: str) -> int | None:
    """A seed, or None where the field is empty."""
    if not (digits := said.strip()):
        return None
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) < MAX_SEED):
        raise ValueError(
            f"{path}, line {line}: a seed is a whole number from 0 to {MAX_SEED - 1}, got {digits!r}; leave the field "
            "empty, and one is made of the id"
        )
    return int(digits)


def _named(path: Path, rows: Sequence[_Row]) -> Iterator[Captioned]:
    """The rows under ids that differ."""
    if rows[0].id is None:
        _check_unique(
            path, "caption", "remove one of them, or give each an id", ((row.caption, row.line) for row in rows)
        )
    else:
        _check_unique(path, "id", "give each its own", ((row.id, row.line) for row in rows))
    digits = len(str(len(rows)))
    for number, row in enumerate(rows, 1):
        yield Captioned(f"{number:0{digits}}" if row.id is None else row.id, row.caption, row.seed)


def _check_unique(path: Path, what: str, fix: str, values: Iterable[tuple[Hashable, int]]) -> None:
    seen: dict[Hashable, int] = {}
    for value, line in values:
        if (first := seen.setdefault(value, line)) != line:
            raise ValueError(f"{path}: lines {first} and {line} have the same {what}, {value!r}; {fix}")


def _empty(path: Path, line: int) -> ValueError:
    return ValueError(f"{path}, line {line}, has no caption; write one, or remove the line")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
