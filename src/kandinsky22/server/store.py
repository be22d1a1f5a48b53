"""Jobs, pictures, uploaded files and keys in a folder: a SQLite database, and files beside it. Imports no torch.

A picture's file is complete before the transaction that names it, and a job's end and its pictures are one transaction;
so after a crash at any point a job is either finished with all its pictures, or waits to be painted again.
"""

import hashlib
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sqlalchemy import Connection, Row, and_, create_engine, event, func, or_, select, update
from sqlalchemy.exc import DatabaseError

from kandinsky22.files import atomic_write, lock, remove_leftovers
from kandinsky22.request import Request
from kandinsky22.request.events import Reason
from kandinsky22.server.tables import FILES, JOBS, KEYS, PICTURE_ROWS, TABLES, VERSION

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
DATABASE, PICTURES, UPLOADS = "kandinsky22.db", "pictures", "uploads"


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks. max_jobs: jobs that may wait or run at a time."""

    name: str
    scopes: frozenset[str]
    max_jobs: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored. Times are seconds since 1970."""

    id: str
    number: int
    owner: str
    state: State
    request: Request
    source: str
    cost: float
    hidden: bool
    reason: Reason | None
    error: str | None
    created: float
    started: float | None
    ended: float | None


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A finished picture. path: its file."""

    id: str
    number: int
    job: str
    owner: str
    position: int
    path: Path
    sha256: str
    bytes: int
    width: int
    height: int
    seed: int
    prompt: str
    starred: bool
    created: float


class ConflictError(ValueError):
    """An idempotency key that belongs to another request."""


class Store:
    """The folder. Any thread may use it. Raises `ValueError` for one of another version, or that cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._claimed: BinaryIO | None = None
        try:
            for name in (PICTURES, UPLOADS):
                (folder / name).mkdir(parents=True, exist_ok=True)
                remove_leftovers(folder / name)
            self.engine = create_engine(f"sqlite:///{folder / DATABASE}", connect_args={"timeout": 30})
            event.listen(self.engine, "connect", _configure)
            with self.engine.begin() as connection:
                version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
                if version not in (0, VERSION):
                    raise ValueError(f"{folder} was written by another version of kandinsky22; give another --data")
                TABLES.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
        except OSError as error:
            raise self._unusable(error.strerror or error) from error
        except DatabaseError as error:  # the disk is full or read-only, or the file is damaged
            raise self._unusable(error.orig) from error

    def claim(self) -> None:
        """Use the folder as its only server, until this process ends. Raises `ValueError` if another server does."""
        try:
            self._claimed = (self.folder / "server.lock").open("ab")
        except OSError as error:
            raise self._unusable(error.strerror or error) from error
        if not lock(self._claimed, timeout=0):
            self._claimed.close()
            raise ValueError(f"another server uses {self.folder}; stop it, or choose another place with --data")

    def _unusable(self, reason: object) -> ValueError:
        return ValueError(f"cannot use {self.folder}: {reason}; make room there, or choose another place with --data")

    def close(self) -> None:
        """Close the database, and give up the claim."""
        self.engine.dispose()
        if self._claimed is not None:
            self._claimed.close()

    def _transaction(self) -> AbstractContextManager[Connection]:
        return self.engine.begin()

    # Keys

    def add_key(self, name: str, scopes: Iterable[str], max_jobs: int) -> str:
        """A new key, which only its owner knows from now on. Raises `ValueError` for a name that is taken."""
        secret = f"k22-{secrets.token_urlsafe(32)}"
        with self._transaction() as connection:
            if connection.execute(select(KEYS.c.name).where(KEYS.c.name == name)).first():
                raise ValueError(f"there is a key {name!r} already; remove it first, or choose another name")
            values = {
                "name": name,
                "hash": hash_secret(secret),
                "scopes": " ".join(sorted(scopes)),
                "max_jobs": max_jobs,
            }
            connection.execute(KEYS.insert().values(**values, created=time.time()))
        return secret

    def remove_key(self, name: str) -> None:
        """Remove a key. Raises `ValueError` if there is none of this name."""
        with self._transaction() as connection:
            if not connection.execute(KEYS.delete().where(KEYS.c.name == name)).rowcount:
                raise ValueError(f"there is no key {name!r}")

    def keys(self) -> dict[str, Key]:
        """All keys, by the SHA-256 of their secret."""
        with self._transaction() as connection:
            rows = connection.execute(select(KEYS)).all()
        return {row.hash: Key(row.name, frozenset(row.scopes.split()), row.max_jobs) for row in rows}

    # Jobs

    def add_job(
        self,
        owner: str,
        request: Request,
        *,
        source: str,
        cost: float,
        hidden: bool = False,
        idempotency_key: str | None = None,
        asked: Request | None = None,
    ) -> Job:
        """A new job, or the one that the owner added before with this idempotency key.

        asked: the request before it was resolved. Raises `ConflictError` if that was another one.
        """
        digest = hashlib.sha256((asked or request).to_json().encode()).hexdigest()
        with self._transaction() as connection:
            values = {
                "id": str(uuid.uuid4()),  # FusionBrain's clients accept nothing else
                "owner": owner,
                "state": "queued",
                "request": request.to_json(),
                "source": source,
                "cost": cost,
                "hidden": int(hidden),
                "idempotency_key": idempotency_key,
                "asked": digest,
                "created": time.time(),
            }
            # one statement decides, so that of two calls at once one adds the job and the other finds it
            added = connection.execute(JOBS.insert().prefix_with("OR IGNORE").values(**values)).rowcount
            known = and_(JOBS.c.owner == owner, JOBS.c.idempotency_key == idempotency_key)
            row = connection.execute(select(JOBS).where(JOBS.c.id == values["id"] if added else known)).one()
        if row.asked != digest:
            raise ConflictError("this Idempotency-Key belongs to another request; choose a new one")
        return _job(row)

    def job(self, job: str, owner: str | None = None) -> Job | None:
        """A job by its id; of an owner: None if it is another's."""
        query = select(JOBS).where(JOBS.c.id == job)
        with self._transaction() as connection:
            row = connection.execute(query if owner is None else query.where(JOBS.c.owner == owner)).first()
        return None if row is None else _job(row)

    def jobs(self, owner: str, *, before: int | None = None, count: int = 50) -> list[Job]:
        """An owner's jobs, the newest first; before: a job's number."""
        query = select(JOBS).where(JOBS.c.owner == owner, *([] if before is None else [JOBS.c.number < before]))
        with self._transaction() as connection:
            return [_job(row) for row in connection.execute(query.order_by(JOBS.c.number.desc()).limit(count))]

    def recover(self) -> list[Job]:
        """The jobs that an earlier server has not ended, the oldest first; those that ran wait again.

        Removes files of pictures whose job had not ended when that server was killed.
        """
        with self._transaction() as connection:
            known = set(connection.execute(select(PICTURE_ROWS.c.file)).scalars())
            for file in (self.folder / PICTURES).glob("*/*.png"):
                if file.relative_to(self.folder).as_posix() not in known:
                    file.unlink()
            connection.execute(update(JOBS).where(JOBS.c.state == "running").values(state="queued", started=None))
            return [
                _job(row)
                for row in connection.execute(select(JOBS).where(JOBS.c.state == "queued").order_by(JOBS.c.number))
            ]

    def start(self, job: str, request: Request) -> None:
        """A job runs, with its request resolved."""
        values = {"state": "running", "started": time.time(), "request": request.to_json()}
        with self._transaction() as connection:
            connection.execute(update(JOBS).where(JOBS.c.id == job, JOBS.c.state == "queued").values(**values))

    def requeue(self, job: str) -> None:
        """A job that ran waits again."""
        with self._transaction() as connection:
            values = {"state": "queued", "started": None}
            connection.execute(update(JOBS).where(JOBS.c.id == job, JOBS.c.state == "running").values(**values))

    def end(self, job: str, state: State, reason: Reason | None = None, error: str | None = None) -> None:
        """A job failed or was cancelled."""
        with self._transaction() as connection:
            values = {"state": state, "reason": reason, "error": error, "ended": time.time()}
            connection.execute(update(JOBS).where(JOBS.c.id == job, JOBS.c.state.not_in(ENDED)).values(**values))

    def finish(self, job: Job, pictures: Iterable[tuple[bytes, Mapping[str, Any]]]) -> list[StoredPicture]:
        """A job succeeded: store its pictures (PNG files, with width, height, seed and prompt), and then its end."""
        now, rows = time.time(), []
        for position, (file, values) in enumerate(pictures):
            name = f"{job.id}-{position}"
            path = Path(PICTURES) / time.strftime("%Y-%m", time.gmtime(now)) / f"{name}.png"
            with atomic_write(self.folder / path) as partial:
                partial.write_bytes(file)
            rows.append(
                {
                    "id": name,
                    "job": job.id,
                    "owner": job.owner,
                    "position": position,
                    "file": path.as_posix(),
                    "sha256": hashlib.sha256(file).hexdigest(),
                    "bytes": len(file),
                    "starred": 0,
                    "hidden": int(job.hidden),
                    "created": now,
                    **values,
                }
            )
        with self._transaction() as connection:
            ended = update(JOBS).where(JOBS.c.id == job.id, JOBS.c.state.not_in(ENDED))
            if not connection.execute(ended.values(state="succeeded", ended=now)).rowcount:
                return self.pictures_of(job.id)  # it ended before: those pictures stay
            if rows:
                connection.execute(PICTURE_ROWS.insert(), rows)
        return self.pictures_of(job.id)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._transaction() as connection:
            rows = connection.execute(select(JOBS.c.state, func.count()).group_by(JOBS.c.state)).all()
        return {row[0]: row[1] for row in rows}

    # Pictures

    def pictures_of(self, job: str) -> list[StoredPicture]:
        """A job's pictures, in order."""
        query = select(PICTURE_ROWS).where(PICTURE_ROWS.c.job == job).order_by(PICTURE_ROWS.c.position)
        with self._transaction() as connection:
            return [self.stored_picture(row) for row in connection.execute(query)]

    def picture(self, picture: str, owner: str | None = None) -> StoredPicture | None:
        """A picture by its id; of an owner: None if it is another's."""
        query = select(PICTURE_ROWS).where(PICTURE_ROWS.c.id == picture)
        with self._transaction() as connection:
            row = connection.execute(query if owner is None else query.where(PICTURE_ROWS.c.owner == owner)).first()
        return None if row is None else self.stored_picture(row)

    def gallery(
        self, owner: str, *, before: int | None = None, count: int = 50, search: str = "", starred: bool = False
    ) -> list[StoredPicture]:
        """An owner's pictures, the newest first. search: words of the prompt, all of which must occur; before: a
        picture's number."""
        conditions = [PICTURE_ROWS.c.owner == owner, PICTURE_ROWS.c.hidden == 0]
        conditions += [] if before is None else [PICTURE_ROWS.c.number < before]
        conditions += [PICTURE_ROWS.c.starred == 1] if starred else []
        conditions += [PICTURE_ROWS.c.prompt.icontains(word, autoescape=True) for word in search.split()]
        query = select(PICTURE_ROWS).where(and_(*conditions)).order_by(PICTURE_ROWS.c.number.desc()).limit(count)
        with self._transaction() as connection:
            return [self.stored_picture(row) for row in connection.execute(query)]

    def star(self, picture: str, owner: str, starred: bool) -> bool:
        """Star a picture, or not; whether the owner has it."""
        query = update(PICTURE_ROWS).where(PICTURE_ROWS.c.id == picture, PICTURE_ROWS.c.owner == owner)
        with self._transaction() as connection:
            return bool(connection.execute(query.values(starred=int(starred))).rowcount)

    def delete_picture(self, picture: str, owner: str) -> bool:
        """Delete a picture and its file; whether the owner had it."""
        stored = self.picture(picture, owner)
        if stored is None:
            return False
        with self._transaction() as connection:
            connection.execute(PICTURE_ROWS.delete().where(PICTURE_ROWS.c.id == picture))
        with suppress(FileNotFoundError):
            stored.path.unlink()
        return True

    def stored_picture(self, row: Row[Any]) -> StoredPicture:
        """The picture of a row of its table."""
        values = {name: getattr(row, name) for name in StoredPicture.__slots__ if name not in ("path", "starred")}
        return StoredPicture(path=self.folder / row.file, starred=bool(row.starred), **values)

    # Uploaded files

    def add_file(self, file: str, kind: str, name: str, owner: str, content: bytes) -> Path:
        """Store an uploaded file under its hash, once; returns its path."""
        path = self.folder / UPLOADS / file
        if not path.is_file():
            with atomic_write(path) as partial:
                partial.write_bytes(content)
        with self._transaction() as connection:
            values = {"kind": kind, "name": name, "owner": owner, "bytes": len(content), "used": time.time()}
            connection.execute(FILES.insert().prefix_with("OR REPLACE").values(id=file, **values))
        return path

    def file(self, file: str, kind: str) -> Path | None:
        """The path of an uploaded file of a kind, or None."""
        with self._transaction() as connection:
            found = update(FILES).where(FILES.c.id == file, FILES.c.kind == kind).values(used=time.time())
            known = connection.execute(found).rowcount
        return self.folder / UPLOADS / file if known else None

    # Space

    def bytes_used(self) -> int:
        """Bytes of all pictures and uploaded files."""
        with self._transaction() as connection:
            return sum(
                connection.execute(select(func.coalesce(func.sum(table.c.bytes), 0))).scalar_one()
                for table in (PICTURE_ROWS, FILES)
            )

    def prune(self, *, max_bytes: int | None = None, max_seconds: float | None = None) -> int:
        """Delete the oldest pictures without a star, and files unused for longest, beyond limits; returns how many."""
        removed = 0
        oldest = time.time() - (max_seconds if max_seconds is not None else float("inf"))
        used = self.bytes_used()
        with self._transaction() as connection:
            candidates = [
                *connection.execute(
                    select(PICTURE_ROWS.c.id, PICTURE_ROWS.c.file, PICTURE_ROWS.c.bytes, PICTURE_ROWS.c.created)
                    .where(or_(PICTURE_ROWS.c.starred == 0, PICTURE_ROWS.c.hidden == 1))
                    .order_by(PICTURE_ROWS.c.created)
                )
            ]
            for row in candidates:
                if row.created >= oldest and (max_bytes is None or used <= max_bytes):
                    break
                connection.execute(PICTURE_ROWS.delete().where(PICTURE_ROWS.c.id == row.id))
                (self.folder / row.file).unlink(missing_ok=True)
                used, removed = used - row.bytes, removed + 1
            waiting = " ".join(connection.execute(select(JOBS.c.request).where(JOBS.c.state.not_in(ENDED))).scalars())
            for row in connection.execute(select(FILES).order_by(FILES.c.used)).all():
                if row.used >= oldest and (max_bytes is None or used <= max_bytes):
                    break
                if row.id not in waiting:
                    connection.execute(FILES.delete().where(FILES.c.id == row.id))
                    (self.folder / UPLOADS / row.id).unlink(missing_ok=True)
                    used, removed = used - row.bytes, removed + 1
        return removed


def hash_secret(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _configure(connection: Any, _: object) -> None:
    """Of every connection: a log that survives a crash, and readers that do not wait for the writer."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
        connection.execute(f"PRAGMA {pragma}")


def _job(row: Row[Any]) -> Job:
    values = {name: getattr(row, name) for name in Job.__slots__ if name not in ("request", "hidden")}
    return Job(request=Request.from_json(row.request), hidden=bool(row.hidden), **values)
