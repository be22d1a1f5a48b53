"""A run folder: the captions that are painted in it, and all settings that decide their pictures. Imports no torch.

`manifest.jsonl` has an id, a caption and a seed per line. `run.json` has what else decides the pictures (weights,
settings, versions) and, for readers, the command that created the run and the hashes of the weight files. Both are
written once, atomically; everything painted in the folder later must have the same settings.

    runs/x/run.json  manifest.jsonl  pictures/ID.png  log-1-of-2.jsonl  failed-1-of-2.jsonl

Pictures are painted in work units (see `backends.work_units`), which are cut from the complete manifest; a shard is
every n-th unit. So a picture has the same batch, and the same last bits, however the manifest is divided into shards.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from kandinsky22.backends.work_units import WorkUnit
from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.evaluation.captions import Captions, can_name_file
from kandinsky22.files import atomic_write, locked, open_regular, parse_json
from kandinsky22.request import Request, Text

RUN, MANIFEST, LOCK = "run.json", "manifest.jsonl", ".lock"
MADE_BY = "weights", "dtype", "kandinsky22", "torch"
"""The entries of `Kandinsky.made_by` that must stay the same throughout a run; the others only affect rounding."""
ANNOTATIONS = ("command", "weights_sha256")  # entries of `run.json` that are for readers and not compared
MAX_BATCH = 1 << 20  # requests of a work unit
SEED_BYTES = 6  # of a hash: 48 bits, an integer that every JSON parser represents exactly
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to be painted: its id (which names its file), caption and seed."""

    id: str
    caption: str
    seed: int


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


def seed_of(run_seed: int, name: str) -> int:
    """The seed, from 0 to 2^48 - 1, of an id without one in its file; it depends on the run's seed and the id alone."""
    return int.from_bytes(hashlib.sha256(f"{run_seed} {name}".encode()).digest()[:SEED_BYTES])


def items(captions: Captions, run_seed: int) -> tuple[Item, ...]:
    """The items of captions: each has the seed of its file, or else one derived from `run_seed` and its id."""
    seeded = ((c, seed_of(run_seed, c.id) if c.seed is None else c.seed) for c in captions.items)
    return tuple(Item(c.id, c.caption, seed) for c, seed in seeded)


@dataclass(frozen=True)
class Run:
    """A run folder.

    template: a resolved request, whose prompt and seed each item replaces. settings: the contents of `run.json`.
    """

    folder: Path
    items: tuple[Item, ...]
    template: Request
    settings: Mapping[str, Any]

    @classmethod
    def create_or_open(
        cls,
        folder: Path,
        captions: Captions,
        template: Request,
        made_by: Mapping[str, Any],
        *,
        batch: int,
        seed: int = 0,
        annotations: Callable[[], Mapping[str, Any]] = dict,
    ) -> Self:
        """The run in a folder, created if there is none.

        template, made_by: a request resolved by the backend, and what else decides its pixels (see
        `Backend.describe`). batch: requests of a work unit. seed: the run's seed, from which seeds of items are
        derived. annotations: called when the run is created, for the entries that `ANNOTATIONS` lists.

        Raises `ValueError` for a folder whose run has other settings, naming the first difference, and for one that
        cannot be written.
        """
        settings = {
            "captions": {"sha256": captions.sha256, "count": len(captions.items)},
            "seed": seed,
            "batch": batch,
            "request": json.loads(as_template(template).to_json()),
            **{name: made_by[name] for name in MADE_BY if name in made_by},
        }
        run = cls(folder, items(captions, seed), as_template(template), settings)
        try:
            with locked(folder / LOCK):
                if not (folder / RUN).exists():
                    run = replace(run, settings={**settings, **annotations()})
                    run._write()
                    return run
        except OSError as error:
            raise ValueError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error
        existing = cls.open(folder)
        existing.check_same(settings)
        if existing.items != run.items:
            raise ValueError(f"{folder / MANIFEST} was changed after the run was created; give another folder")
        return replace(run, settings=existing.settings)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The existing run of a folder; of pictures in its template only the hashes are known. Raises `ValueError`."""
        settings = _read_settings(folder / RUN)
        template = as_template(Request.from_json(json.dumps(settings.get("request"))))
        batch = settings.get("batch")
        if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"{folder / RUN} states no batch from 1 to {MAX_BATCH}; give another folder")
        return cls(folder, _read_manifest(folder), template, settings)

    @property
    def batch(self) -> int:
        """Requests of a work unit."""
        return int(self.settings["batch"])

    def check_same(self, current: Mapping[str, Any]) -> None:
        """Raises `ValueError` naming the first difference between `current` settings and those of the run."""
        original = {name: value for name, value in self.settings.items() if name not in ANNOTATIONS}
        if difference := next(differences(original, json.loads(json.dumps(current))), None):
            name, before, now = difference
            raise ValueError(
                f"{self.folder} was created with {name} {_as_text(before)}, and now it is {_as_text(now)}; give "
                "another folder, or the original settings"
            )

    def units(self, shard: Shard) -> list[tuple[Item, ...]]:
        """The items of a shard, grouped into work units."""
        starts = range(0, len(self.items), self.batch)
        return [self.items[start : start + self.batch] for start in shard.select(starts)]

    def work_unit(self, unit: Sequence[Item]) -> WorkUnit[str]:
        """The requests of a unit's items, by id."""
        return WorkUnit({item.id: with_item(self.template, item) for item in unit})

    @property
    def pictures(self) -> Path:
        """The folder of finished pictures."""
        return self.folder / "pictures"

    def picture(self, item: Item) -> Path:
        """The path of an item's picture, which may not exist yet."""
        return self.pictures / f"{item.id}.png"

    def log(self, shard: Shard) -> Path:
        """The log of a shard's finished pictures."""
        return self.folder / f"log-{shard.name}.jsonl"

    def failures(self, shard: Shard) -> Path:
        """The log of a shard's captions that failed."""
        return self.folder / f"failed-{shard.name}.jsonl"

    def unfinished(self, shard: Shard) -> Path:
        """The folder in which a shard writes pictures before it moves them to `pictures`."""
        return self.folder / f"painting-{shard.name}"

    def _write(self) -> None:
        with atomic_write(self.folder / MANIFEST) as partial:
            partial.write_text(_json_lines(self.items), encoding="utf-8")
        with atomic_write(self.folder / RUN) as partial:  # last, so that a folder with run.json is complete
            partial.write_text(json.dumps(self.settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def check_folder(folder: Path, *, of_runs: bool = False) -> None:
    """Raises `ValueError` for a folder with results of another kind of evaluation.

    of_runs: the evaluation has several runs in folders within this one, as a sweep has; otherwise one run in it.
    """
    if of_runs and (folder / RUN).exists():
        raise ValueError(f"{folder} holds a run of captions, and a sweep has many; give another folder")
    if not of_runs and (cell := next(iter(sorted(folder.glob(f"*/{RUN}"))), None)):
        raise ValueError(
            f"{folder} holds other runs ({cell.parent.name}), as a sweep does, and their report would be overwritten; "
            "give another folder"
        )


def as_template(request: Request) -> Request:
    """A request with an empty prompt and the seed 0.

    Raises `ValueError` for a request that cannot be a template: its condition is not a text, or it asks for several
    pictures.
    """
    if not isinstance(request.condition, Text):
        raise ValueError("captions replace a prompt, and this request has none; start from text2img")
    if request.num_images != 1:
        raise ValueError(
            f"each caption is painted once, got num_images {request.num_images}; list it twice, with two ids"
        )
    return replace(request, condition=replace(request.condition, prompt=""), seed=0)


def with_item(template: Request, item: Item) -> Request:
    """The request for an item: the template with its caption and seed."""
    assert isinstance(template.condition, Text)
    return replace(template, condition=replace(template.condition, prompt=item.caption), seed=item.seed)


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: (dotted name, value before, value now)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**now, **before}:
            yield from differences(before.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif before != now:
        yield name, before, now


def _item(line: str) -> Item:
    item = Item(**parse_json(line))
    if not (isinstance(item.id, str) and isinstance(item.caption, str) and type(item.seed) is int):
        raise TypeError("an item is an id, a caption and a seed")
    if not can_name_file(item.id):
        raise ValueError(f"{item.id!r} cannot name a file")
    return item


def _read_manifest(folder: Path) -> tuple[Item, ...]:
    path = folder / MANIFEST
    try:
        with open_regular(path) as file:
            return tuple(_item(line) for line in file.read().decode("utf-8").split("\n")[:-1])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path} cannot be read; give another folder") from error


def _json_lines(values: Sequence[Item]) -> str:
    return "".join(json.dumps(asdict(value), ensure_ascii=False) + "\n" for value in values)


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path.parent} holds no run; there is no {path.name} in it")
    try:
        values = read_json(path)
    except CheckpointError as error:
        raise ValueError(f"{path} cannot be read; give another folder") from error
    return values


def _as_text(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
