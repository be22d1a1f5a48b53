"""A file of captions: what to paint, the id that names each picture, and its seed. Imports no torch.

A .csv or .tsv has a header with one column of captions and, optionally, one of ids and one of seeds; other columns are
ignored. Where a table has both of COCO's columns `image_id` and `id`, the caption's own `id` is used. A .txt has one
caption per line. Input that could be understood in more than one way is refused.
"""

import csv
import hashlib
import io
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kandinsky22.backends.run_folder import FORBIDDEN, MAX_ID_BYTES, can_name_file
from kandinsky22.files import open_regular
from kandinsky22.request.picture_file import SUFFIXES
from kandinsky22.request.request import MAX_SEED

CAPTION = ("caption", "text", "prompt")
ID = ("id", "image_id", "file_name", "filename", "name")
SEED = ("seed",)
COCO = {"id", "image_id"}  # both are columns of COCO's own tables, which have several captions per image
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_BYTES = 1 << 30  # of a file: millions of captions


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption, the id that names its picture, and its seed, if the file gives one."""

    id: str
    caption: str
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Captions:
    """The captions of a file, in order, and the SHA-256 of its bytes in hexadecimal."""

    items: tuple[Captioned, ...]
    sha256: str


class _Row(NamedTuple):
    """A caption, and the line on which it starts; without an id, its number becomes its id."""

    line: int
    caption: str
    id: str | None = None
    seed: int | None = None


def read(path: Path) -> Captions:
    """The captions of a .csv, .tsv or .txt file in UTF-8. Without ids, a caption's id is its number, counted from 1.

    Raises `ValueError`, one sentence that names the line and the fix, for: another kind of file; another encoding; no
    column of captions, or several columns with the same meaning; rows whose length differs from the header's; empty
    lines and captions; ids that cannot be file names or are not unique; and repeated captions in a file without ids.
    """
    suffix = path.suffix.lower()
    if suffix not in (*DELIMITERS, ".txt"):
        raise ValueError(f"captions are read from .csv, .tsv and .txt files, got {path.name!r}")
    try:
        with open_regular(path, MAX_BYTES) as file:
            data = file.read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    text = decode(path, data)
    rows = [*(_text_rows(path, text) if suffix == ".txt" else _table_rows(path, text, DELIMITERS[suffix]))]
    if not rows:
        raise ValueError(
            f"{path} holds no captions; write one per line" + ("" if suffix == ".txt" else " below the header")
        )
    return Captions(tuple(_with_ids(path, rows)), hashlib.sha256(data).hexdigest())


def decode(path: Path, data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.start counts from behind the byte order mark, if there is one
        at = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, at) + 1
        raise ValueError(f"{path} is not UTF-8: byte {at}, in line {line}, is wrong; save it as UTF-8") from None
    if "\0" in text:  # typical of UTF-16
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path} is not text in UTF-8: line {line} holds a zero byte; save it as UTF-8")
    return text


def _text_rows(path: Path, text: str) -> Iterator[_Row]:
    """One caption per line; empty lines are allowed at the end only."""
    stripped = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    for line, caption in enumerate(stripped.split("\n") if stripped else (), 1):
        yield _Row(line, _caption(path, line, caption))


def _table_rows(path: Path, text: str, delimiter: str) -> Iterator[_Row]:
    records = table_records(path, text, delimiter)
    if not records:
        return
    (_, header), *rows = records
    names = [name.strip().casefold() for name in header]
    caption_column, id_column, seed_column = (_column(path, names, synonyms) for synonyms in (CAPTION, ID, SEED))
    if caption_column is None:
        columns = ", ".join(repr(name) for name in names) or "an empty line where the header belongs"
        raise ValueError(f"{path} has no column of captions, only {columns}; name one of them {_alternatives(CAPTION)}")
    for line, row in rows:
        if not row:
            raise _missing_caption(path, line)
        if len(row) != len(names):
            raise ValueError(
                f"{path}, line {line}, has {len(row)} fields and the header has {len(names)}; put a caption that holds "
                "the delimiter into quotation marks"
            )
        yield _Row(
            line,
            _caption(path, line, row[caption_column]),
            None if id_column is None else _id(path, line, row[id_column]),
            None if seed_column is None else _seed(path, line, row[seed_column]),
        )


def table_records(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The rows of a table, each with the line on which it starts; without empty rows at the end."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, line = [], 1
    try:
        for row in reader:
            records.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        if "limit" in str(error):
            raise ValueError(
                f"{path}, line {line}, has a field of more than {csv.field_size_limit()} characters, which is no "
                "caption; close the quotation mark where it ends"
            ) from None
        raise ValueError(
            f"{path}, line {line}, cannot be read ({error}); put the field into quotation marks and double those within"
        ) from None
    while records and not any(field.strip() for field in records[-1][1]):
        records.pop()
    return records


def _column(path: Path, names: Sequence[str], synonyms: Sequence[str]) -> int | None:
    """The index of the one column whose name is among `synonyms`; None if there is none."""
    matches = [k for k, name in enumerate(names) if name in synonyms]
    if len(matches) == 2 and {names[k] for k in matches} == COCO:
        return names.index("id")
    if len(matches) > 1:
        columns = " and ".join(repr(names[k]) for k in matches)
        raise ValueError(
            f"{path} has the columns {columns}, each of which could be the {synonyms[0]}; keep one of them"
        )
    return matches[0] if matches else None


def _caption(path: Path, line: int, field: str) -> str:
    caption = field.strip()
    if not caption:
        raise _missing_caption(path, line)
    return caption


def _id(path: Path, line: int, field: str) -> str:
    """An id that can be a file name, without a picture's suffix."""
    stem, dot, suffix = field.strip().rpartition(".")
    name = stem if f"{dot}{suffix}".lower() in SUFFIXES else field.strip()
    if not name:
        raise ValueError(f"{path}, line {line}, has no id; give it one, or remove the column")
    if not can_name_file(name):
        raise ValueError(
            f"{path}, line {line}: the id {name!r} cannot name a file; leave out folders, {FORBIDDEN} and a dot at "
            "its start"
        )
    if (size := len(name.encode())) > MAX_ID_BYTES:
        raise ValueError(
            f"{path}, line {line}: the id has {size} bytes, and a file's name takes {MAX_ID_BYTES}; shorten it"
        )
    return name


def _seed(path: Path, line: int, field: str) -> int | None:
    """A seed; None if the field is empty."""
    if not (digits := field.strip()):
        return None
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) < MAX_SEED):
        raise ValueError(
            f"{path}, line {line}: a seed is a whole number from 0 to {MAX_SEED - 1}, got {digits!r}; leave the field "
            "empty to have one derived from the id"
        )
    return int(digits)


def _with_ids(path: Path, rows: Sequence[_Row]) -> Iterator[Captioned]:
    """The rows with unique ids; a row without one gets its number, with leading zeros."""
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


def _missing_caption(path: Path, line: int) -> ValueError:
    return ValueError(f"{path}, line {line}, has no caption; write one, or remove the line")


def _alternatives(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
