"""A run folder: items that are painted into it, and all settings that decide their pictures. Imports no torch.

The settings file is written once, atomically; everything painted in the folder later must have the same settings.
Pictures are painted in work units (see `work_units`), which are cut from all items in order; a shard is every n-th
unit. So a picture has the same batch, and the same last bits, however the items are divided into shards.

`evaluation.manifest.Run` is a folder of captions, `cli.batch_run.BatchRun` one of requests.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from kandinsky22.backends.work_units import WorkUnit
from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.files import atomic_write, locked
from kandinsky22.request import Request

LOCK = ".lock"
MADE_BY = "weights", "dtype", "kandinsky22", "torch"
"""The entries of `Backend.describe` that must stay the same throughout a run; the others only affect rounding."""
ANNOTATIONS = ("command", "weights_sha256")  # entries of the settings that are for readers and not compared
MAX_BATCH = 1 << 20  # requests of a work unit
SEED_BYTES = 6  # of a hash: 48 bits, an integer that every JSON parser represents exactly
FORBIDDEN = '/\\<>:"|?*'  # characters that some operating system forbids in file names
MAX_ID_BYTES = 200  # file systems allow 255, and the id gets a suffix and parts of a temporary name
T = TypeVar("T")


class Identified(Protocol):
    """An item of a run."""

    @property
    def id(self) -> str:
        """Its name, unique in the run; it names its files."""
        ...


I = TypeVar("I", bound=Identified)  # noqa: E741


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `number` of `count`, counted from 1. Raises `ValueError` for a number out of range."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(
                f"there is no shard {self.number} of {self.count}; shards are counted from 1: 1/{max(1, self.count)}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that "2/8" names. Raises `ValueError` for another form."""
        if not (match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)):
            raise ValueError(f"a shard is its number and how many there are, such as 1/8, got {text!r}")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """Its part of a file name, such as "2-of-8"."""
        return f"{self.number}-of-{self.count}"

    def select(self, values: Sequence[T]) -> Sequence[T]:
        """Every `count`-th value, from its own number on; all shards together select each value once."""
        return values[self.number - 1 :: self.count]


UNSHARDED = Shard()


@dataclass(frozen=True)
class RunFolder(ABC, Generic[I]):
    """A folder of pictures. items: in the order in which units are cut. settings: the contents of the settings file.

    Raises `ValueError` for settings without a batch.
    """

    SETTINGS: ClassVar[str]
    """The name of the settings file."""

    folder: Path
    items: tuple[I, ...]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        batch = self.settings.get("batch")
        if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
            path = self.folder / self.SETTINGS
            raise ValueError(f"{path} states no batch from 1 to {MAX_BATCH}; give another folder")

    @abstractmethod
    def request(self, item: I) -> Request:
        """The resolved request of an item."""

    @abstractmethod
    def paths(self, item: I) -> Sequence[Path]:
        """The files of an item's pictures in `pictures`, which may not exist yet; their stems are unique in the run."""

    @property
    @abstractmethod
    def pictures(self) -> Path:
        """The folder of finished pictures."""

    def made_by(self, item: I) -> Mapping[str, Any]:
        """What must have made an item's pictures: the entries of `MADE_BY`."""
        return {name: self.settings.get(name) for name in MADE_BY}

    def open_or_create(self, annotations: Callable[[], Mapping[str, Any]] = dict) -> Self:
        """This run, with the annotations in its file; it is written if there is none.

        annotations: called when the run is created, for the entries that `ANNOTATIONS` lists. Raises `ValueError` for a
        folder whose run has other settings, naming the first difference, and for one that cannot be written.
        """
        path = self.folder / self.SETTINGS
        try:
            with locked(self.folder / LOCK):
                if not path.exists():
                    created = replace(self, settings={**self.settings, **annotations()})
                    created.write()
                    return created
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"cannot write into {self.folder}: {reason}; choose another folder") from error
        existing = replace(self, settings=read_settings(path))
        existing.check_same(self.settings)
        return existing

    def write(self) -> None:
        """Write the settings, last of all files, so that a folder with settings is complete."""
        with atomic_write(self.folder / self.SETTINGS) as partial:
            partial.write_text(json.dumps(self.settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def check_same(self, current: Mapping[str, Any]) -> None:
        """Raises `ValueError` naming the first difference between `current` settings and those of the run."""
        original = {name: value for name, value in self.settings.items() if name not in ANNOTATIONS}
        if difference := next(differences(original, json.loads(json.dumps(current))), None):
            name, before, now = difference
            raise ValueError(
                f"{self.folder} was created with {name} {_as_text(before)}, and now it is {_as_text(now)}; give "
                "another folder, or the original settings"
            )

    @property
    def batch(self) -> int:
        """Requests of a work unit."""
        return int(self.settings["batch"])

    def units(self, shard: Shard) -> list[tuple[I, ...]]:
        """The items of a shard, grouped into work units."""
        starts = range(0, len(self.items), self.batch)
        return [self.items[start : start + self.batch] for start in shard.select(starts)]

    def work_unit(self, unit: Sequence[I]) -> WorkUnit[str]:
        """The requests of a unit's items, by id."""
        return WorkUnit({item.id: self.request(item) for item in unit})

    def log(self, shard: Shard) -> Path:
        """The log of a shard's finished pictures."""
        return self.folder / f"log-{shard.name}.jsonl"

    def failures(self, shard: Shard) -> Path:
        """The log of a shard's items that failed."""
        return self.folder / f"failed-{shard.name}.jsonl"

    def unfinished(self, shard: Shard) -> Path:
        """The folder in which a shard writes pictures before it moves them to `pictures`."""
        return self.folder / f"painting-{shard.name}"


def seed_of(run_seed: int, name: str) -> int:
    """The seed, from 0 to 2^48 - 1, of an id without one in its file; it depends on the run's seed and the id alone."""
    return int.from_bytes(hashlib.sha256(f"{run_seed} {name}".encode()).digest()[:SEED_BYTES])


def can_name_file(name: str) -> bool:
    """Whether an id can be the name of a file on every system."""
    return name[:1] not in ("", ".") and name.isprintable() and not any(letter in FORBIDDEN for letter in name)


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: (dotted name, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**now, **before}:
            yield from differences(before.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif before != now:
        yield name, before, now


def read_settings(path: Path) -> dict[str, Any]:
    """The contents of a settings file. Raises `ValueError`."""
    if not path.exists():
        raise ValueError(f"{path.parent} holds no run; there is no {path.name} in it")
    try:
        values = read_json(path)
    except CheckpointError as error:
        raise ValueError(f"{path} cannot be read; give another folder") from error
    return values


def _as_text(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
