"""What users keep in order on a server: named documents, and pictures in folders, searched by words and settings."""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select

from kandinsky22.server.store import Store, StoredPicture
from kandinsky22.server.tables import DOCUMENTS, FOLDERS, JOBS, PICTURE_ROWS

TRASH = "trash"
"""The folder of deleted pictures, which only a search in it finds."""
MAX_DOCUMENTS = 5000  # of an owner
SETTINGS = {
    "steps": "$.decoder.steps",
    "guidance": "$.decoder.guidance_scale",
    "sampler": "$.decoder.sampler",
    "prior-steps": "$.prior.steps",
    "prior-guidance": "$.prior.guidance_scale",
    "strength": "$.start.strength",
    "model": "$.model",
}
"""Where a job's request has the settings that a search names, such as `steps:20`."""
PARTS = {"start": "$.start", "mask": "$.mask", "hint": "$.hint", "mix": "$.condition.parts", "negative": "$.negative"}
"""What `has:start` and so on look for."""


@dataclass(frozen=True, slots=True)
class Document:
    """A named JSON value, such as a preset."""

    kind: str
    name: str
    value: Any
    changed: float


class Library:
    """The documents and folders of a store. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def documents(self, owner: str) -> list[Document]:
        """An owner's documents, by kind and name."""
        query = select(DOCUMENTS).where(DOCUMENTS.c.owner == owner).order_by(DOCUMENTS.c.kind, DOCUMENTS.c.name)
        with self.store.engine.begin() as connection:
            rows = connection.execute(query).all()
        return [Document(row.kind, row.name, json.loads(row.value), row.changed) for row in rows]

    def put(self, owner: str, kind: str, name: str, value: Any) -> Document:
        """Store a document, in place of one of the same name. Raises `ValueError` if there are too many."""
        document = Document(kind, name, value, time.time())
        with self.store.engine.begin() as connection:
            count = select(func.count()).where(DOCUMENTS.c.owner == owner)
            if connection.execute(count).scalar_one() >= MAX_DOCUMENTS:
                raise ValueError(f"there are {MAX_DOCUMENTS} presets, styles, wildcards and embeddings; remove some")
            values = {"owner": owner, "kind": kind, "name": name, "changed": document.changed}
            statement = DOCUMENTS.insert().prefix_with("OR REPLACE")
            connection.execute(statement.values(**values, value=json.dumps(value, ensure_ascii=False)))
        return document

    def remove(self, owner: str, kind: str, name: str) -> bool:
        """Remove a document; whether there was one."""
        chosen = and_(DOCUMENTS.c.owner == owner, DOCUMENTS.c.kind == kind, DOCUMENTS.c.name == name)
        with self.store.engine.begin() as connection:
            return bool(connection.execute(DOCUMENTS.delete().where(chosen)).rowcount)

    def pictures(
        self,
        owner: str,
        *,
        before: int | None = None,
        count: int = 50,
        search: str = "",
        starred: bool = False,
        folder: str | None = None,
    ) -> list[tuple[StoredPicture, str | None]]:
        """An owner's pictures with their folders, the newest first.

        search: words of the prompt, and settings such as `steps:20`, `seed:7`, `size:128x96`, `has:mask`, all of which
        must hold. before: a picture's number. folder: None finds all but deleted ones.
        """
        conditions: list[ColumnElement[bool]] = [PICTURE_ROWS.c.owner == owner, PICTURE_ROWS.c.hidden == 0]
        conditions += [] if before is None else [PICTURE_ROWS.c.number < before]
        conditions += [PICTURE_ROWS.c.starred == 1] if starred else []
        conditions += [_condition(word) for word in search.split()]
        conditions.append(
            or_(FOLDERS.c.folder.is_(None), FOLDERS.c.folder != TRASH) if folder is None else FOLDERS.c.folder == folder
        )
        tables = PICTURE_ROWS.join(JOBS, JOBS.c.id == PICTURE_ROWS.c.job)
        tables = tables.outerjoin(FOLDERS, FOLDERS.c.picture == PICTURE_ROWS.c.id)
        query = select(PICTURE_ROWS, FOLDERS.c.folder).select_from(tables).where(and_(*conditions))
        with self.store.engine.begin() as connection:
            rows = connection.execute(query.order_by(PICTURE_ROWS.c.number.desc()).limit(count)).all()
        return [(self.store.stored_picture(row), row.folder) for row in rows]

    def move(self, owner: str, picture: str, folder: str | None) -> StoredPicture | None:
        """Put a picture into a folder, or into none; None if the owner has no such picture."""
        stored = self.store.picture(picture, owner)
        if stored is not None:
            with self.store.engine.begin() as connection:
                connection.execute(FOLDERS.delete().where(FOLDERS.c.picture == picture))
                if folder is not None:
                    connection.execute(FOLDERS.insert().values(picture=picture, folder=folder))
        return stored

    def folders(self, owner: str) -> dict[str, int]:
        """An owner's folders with the number of pictures in each."""
        tables = FOLDERS.join(PICTURE_ROWS, FOLDERS.c.picture == PICTURE_ROWS.c.id)
        query = select(FOLDERS.c.folder, func.count()).select_from(tables).where(PICTURE_ROWS.c.owner == owner)
        with self.store.engine.begin() as connection:
            rows = connection.execute(query.group_by(FOLDERS.c.folder).order_by(FOLDERS.c.folder)).all()
        return {row[0]: row[1] for row in rows}

    def empty_trash(self, owner: str) -> int:
        """Delete the pictures in the trash and their files; returns how many."""
        tables = FOLDERS.join(PICTURE_ROWS, FOLDERS.c.picture == PICTURE_ROWS.c.id)
        query = select(PICTURE_ROWS.c.id).select_from(tables)
        with self.store.engine.begin() as connection:
            chosen = query.where(PICTURE_ROWS.c.owner == owner, FOLDERS.c.folder == TRASH)
            ids = list(connection.execute(chosen).scalars())
            connection.execute(FOLDERS.delete().where(FOLDERS.c.picture.in_(ids)))
        return sum(self.store.delete_picture(picture, owner) for picture in ids)


def words_of(search: str) -> Iterable[tuple[str, str]]:
    """The words of a search as (setting, value); the setting of a plain word is ""."""
    for word in search.split():
        name, colon, value = word.partition(":")
        yield (name.lower(), value) if colon and value else ("", word)


def _condition(word: str) -> ColumnElement[bool]:
    """What a word of a search asks of a picture; a word that is no setting is looked for in the prompt."""
    ((name, value),) = words_of(word)
    if name == "has" and value in PARTS:
        return func.json_type(JOBS.c.request, PARTS[value]).is_not(None)
    if name == "seed" and value.isdecimal():
        return PICTURE_ROWS.c.seed == min(int(value), 2**63 - 1)
    if name == "size":
        with suppress(ValueError):
            width, height = (int(side) for side in value.lower().split("x"))
            return and_(PICTURE_ROWS.c.width == width, PICTURE_ROWS.c.height == height)
    if name in SETTINGS:
        found = func.json_extract(JOBS.c.request, SETTINGS[name])
        with suppress(ValueError):
            return found == float(value)
        return found == value
    return PICTURE_ROWS.c.prompt.icontains(word, autoescape=True)
