"""A run folder: what is painted in it, and all that decides the pictures. Imports no torch.

`manifest.jsonl` has an id, a caption and a seed a line. `run.json` is what else the pictures follow from: weights, settings,
versions; and, for whoever reads it, the command that began it and its weights' files. Both are written whole, once; whoever
comes to paint in the folder must mean the same.

    runs/x/run.json  manifest.jsonl  pictures/ID.png  log-1-of-2.jsonl  failed-1-of-2.jsonl

Pictures are painted in packs (see `backends.packs`), which are cut from the whole manifest, and a shard is every n-th pack. So
a picture's company, and with it the last bits of its pixels, is the same however the manifest is shared out.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from kandinsky22.backends.work_units import Pack
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.logs import locked
from kandinsky22.files import atomic_write
from kandinsky22.request import Request, Text

RUN, MANIFEST, LOCK = "run.json", "manifest.jsonl", ".lock"
MADE_BY = "weights", "dtype", "kandinsky22", "torch"
"""What of `Kandinsky.made_by` a run may not change; others only round."""
NOTED = ("command", "weights_sha256")  # of what `run.json` holds, what is for readers and not compared
SEED_BYTES = 6  # of a hash: few enough that every program that reads JSON knows the number
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to be painted."""

    id: str
    caption: str
    seed: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `of`, counted from 1. Raises `ValueError` for a part that there is not."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(
                f"there is no part {self.number} of {self.of}; parts are counted from 1: 1/{max(1, self.of)}"
            )

    @classmethod
    def parsed(cls, text: str) -> Self:
        """The shard that "2/8" names. Raises `ValueError`."""
        if not (found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)):
            raise ValueError(f"a shard is its number and how many there are, such as 1/8, got {text!r}")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"{self.number}-of-{self.of}"

    def out_of(self, values: Sequence[T]) -> Sequence[T]:
        """Its share: every `of`-th value. All shards together have each value once."""
        return values[self.number - 1 :: self.of]


WHOLE = Shard()


def seed_of(run_seed: int, name: str) -> int:
    """The seed of an id whose file gives it none, from 0 to 2^48 - 1; the same wherever else the id stands."""
    return int.from_bytes(hashlib.sha256(f"{run_seed} {name}".encode()).digest()[:SEED_BYTES])


def items(captions: Captions, run_seed: int) -> tuple[Item, ...]:
    """Captions with a seed each."""
    seeded = ((c, seed_of(run_seed, c.id) if c.seed is None else c.seed) for c in captions.items)
    return tuple(Item(c.id, c.caption, seed) for c, seed in seeded)


@dataclass(frozen=True)
class Run:
    """A run folder. `template` is a resolved request, of which every item takes the prompt's and the seed's place; `about` is
    what `run.json` holds."""

    folder: Path
    items: tuple[Item, ...]
    template: Request
    about: Mapping[str, Any]

    @classmethod
    def begun(
        cls,
        folder: Path,
        captions: Captions,
        template: Request,
        made_by: Mapping[str, Any],
        *,
        batch: int,
        seed: int = 0,
        noted: Callable[[], Mapping[str, Any]] = dict,
    ) -> Self:
        """The run in a folder, begun if it is not there.

        template, made_by: as a painter's `about` tells them of a request. batch: requests of a pack. seed: what the items'
        seeds are made of. noted: asked, if it is begun, for what `NOTED` names.

        Raises `ValueError` for a folder in which something else was begun, in one sentence that names the
        first difference, and where it cannot be written.
        """
        about = {
            "captions": {"sha256": captions.sha256, "count": len(captions.items)},
            "seed": seed,
            "batch": batch,
            "request": json.loads(unfilled(template).to_json()),
            **{name: made_by[name] for name in MADE_BY if name in made_by},
        }
        run = cls(folder, items(captions, seed), unfilled(template), about)
        try:
            with locked(folder / LOCK):
                if not (folder / RUN).exists():
                    run = replace(run, about={**about, **noted()})
                    run._write()
                    return run
        except OSError as error:
            raise ValueError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error
        then = cls.opened(folder)
        then.check_same(about)
        if then.items != run.items:
            raise ValueError(f"{folder / MANIFEST} was changed after the run began; give another folder")
        return replace(run, about=then.about)

    @classmethod
    def opened(cls, folder: Path) -> Self:
        """The run that was begun in a folder; pictures that its template holds are references only. Raises `ValueError`."""
        about = _json(folder / RUN)
        return cls(folder, _read_manifest(folder), Request.from_json(json.dumps(about.get("request"))), about)

    @property
    def batch(self) -> int:
        """Requests of a pack."""
        return int(self.about["batch"])

    def check_same(self, now: Mapping[str, Any]) -> None:
        """Raises `ValueError` naming the first difference of `now`, in the form of `about`, from what the run was begun with."""
        then = {name: value for name, value in self.about.items() if name not in NOTED}
        if differs := next(differences(then, json.loads(json.dumps(now))), None):
            name, was, wanted = differs
            raise ValueError(
                f"{self.folder} was begun with {name} {_said(was)}, and now it is {_said(wanted)}; give another folder, or the "
                "same as then"
            )

    def packs(self, shard: Shard) -> list[tuple[Item, ...]]:
        """A shard's items, as they are painted together."""
        starts = range(0, len(self.items), self.batch)
        return [self.items[start : start + self.batch] for start in shard.out_of(starts)]

    def pack(self, together: Sequence[Item]) -> Pack[str]:
        """Items as requests, by id."""
        return Pack({item.id: filled(self.template, item) for item in together})

    @property
    def pictures(self) -> Path:
        """The folder of pictures."""
        return self.folder / "pictures"

    def picture(self, item: Item) -> Path:
        """Where an item's picture is, or will be."""
        return self.pictures / f"{item.id}.png"

    def log(self, shard: Shard) -> Path:
        """Where a shard's pictures are written down."""
        return self.folder / f"log-{shard.name}.jsonl"

    def failures(self, shard: Shard) -> Path:
        """Where a shard's captions that failed are written down."""
        return self.folder / f"failed-{shard.name}.jsonl"

    def desk(self, shard: Shard) -> Path:
        """Where a shard's pictures are until they are whole."""
        return self.folder / f"painting-{shard.name}"

    def _write(self) -> None:
        for torn in self.folder.glob(".*.part"):  # of one that was killed
            torn.unlink()
        with atomic_write(self.folder / MANIFEST) as partial:
            partial.write_text(_lines(self.items), encoding="utf-8")
        with atomic_write(self.folder / RUN) as partial:  # last: where it is, all is
            partial.write_text(json.dumps(self.about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def check_place(folder: Path, *, of_runs: bool = False) -> None:
    """Raises `ValueError` for a folder that holds what another kind of evaluation left: a run in it where there should be runs
    in folders of it (`of_runs`), or the other way round."""
    if of_runs and (folder / RUN).exists():
        raise ValueError(f"{folder} holds a run of captions, and a sweep has many; give another folder")
    if not of_runs and (cell := next(iter(sorted(folder.glob(f"*/{RUN}"))), None)):
        raise ValueError(
            f"{folder} holds other runs ({cell.parent.name}), such as a sweep has, and this would write over their report; "
            "give another folder"
        )


def unfilled(template: Request) -> Request:
    """A request with nothing of any item in it, its seed 0. Raises `ValueError` for one that is no template: its condition is
    not a text, or it asks for several pictures."""
    if not isinstance(template.condition, Text):
        raise ValueError("captions take the place of a prompt, and this request is not about one; begin with text2img")
    if template.num_images != 1:
        raise ValueError(
            f"a caption is painted once, got num_images {template.num_images}; write it twice, with two ids"
        )
    return replace(template, condition=replace(template.condition, prompt=""), seed=0)


def filled(template: Request, item: Item) -> Request:
    """The request for an item."""
    assert isinstance(template.condition, Text)
    return replace(template, condition=replace(template.condition, prompt=item.caption), seed=item.seed)


def differences(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two values of JSON differ: dotted names, what was there then and what is now."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**now, **then}:
            yield from differences(then.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif then != now:
        yield name, then, now


def _read_manifest(folder: Path) -> tuple[Item, ...]:
    path = folder / MANIFEST
    try:
        return tuple(Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read; give another folder") from error


def _lines(values: Sequence[Item]) -> str:
    return "".join(json.dumps(asdict(value), ensure_ascii=False) + "\n" for value in values)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no run; there is no {path.name} in it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read; give another folder") from error
    return dict(values)


def _said(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
