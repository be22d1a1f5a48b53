"""A run folder of captions: each replaces the prompt and the seed of one request. Imports no torch.

`manifest.jsonl` has an id, a caption and a seed per line. `run.json` has what else decides the pictures (weights,
settings, versions) and, for readers, the command that created the run and the hashes of the weight files. Both are
written once; see `backends.run_folder`.

    runs/x/run.json  manifest.jsonl  pictures/ID.png  log-1-of-2.jsonl  failed-1-of-2.jsonl
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from kandinsky22.backends.run_folder import MADE_BY, RunFolder, can_name_file, read_settings, seed_of
from kandinsky22.evaluation.captions import Captions
from kandinsky22.files import atomic_write, open_regular, parse_json
from kandinsky22.request import Request, Text

RUN, MANIFEST = "run.json", "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to be painted: its id (which names its file), caption and seed."""

    id: str
    caption: str
    seed: int


def items(captions: Captions, run_seed: int) -> tuple[Item, ...]:
    """The items of captions: each has the seed of its file, or else one derived from `run_seed` and its id."""
    seeded = ((c, seed_of(run_seed, c.id) if c.seed is None else c.seed) for c in captions.items)
    return tuple(Item(c.id, c.caption, seed) for c, seed in seeded)


@dataclass(frozen=True)
class Run(RunFolder[Item]):
    """A run folder. template: a resolved request, whose prompt and seed each item replaces."""

    SETTINGS: ClassVar[str] = RUN

    template: Request

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
        derived. annotations, and what it raises: see `RunFolder.open_or_create`.
        """
        settings = {
            "captions": {"sha256": captions.sha256, "count": len(captions.items)},
            "seed": seed,
            "batch": batch,
            "request": json.loads(as_template(template).to_json()),
            **{name: made_by[name] for name in MADE_BY if name in made_by},
        }
        run = cls(folder, items(captions, seed), settings, as_template(template)).open_or_create(annotations)
        if _read_manifest(folder) != run.items:
            raise ValueError(f"{folder / MANIFEST} was changed after the run was created; give another folder")
        return run

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The existing run of a folder; of pictures in its template only the hashes are known. Raises `ValueError`."""
        settings = read_settings(folder / RUN)
        template = as_template(Request.from_json(json.dumps(settings.get("request"))))
        return cls(folder, _read_manifest(folder), settings, template)

    def request(self, item: Item) -> Request:
        """The template with an item's caption and seed."""
        return with_item(self.template, item)

    @property
    def pictures(self) -> Path:
        """The folder of finished pictures."""
        return self.folder / "pictures"

    def picture(self, item: Item) -> Path:
        """The path of an item's picture, which may not exist yet."""
        return self.pictures / f"{item.id}.png"

    def paths(self, item: Item) -> Sequence[Path]:
        """The path of an item's only picture."""
        return [self.picture(item)]

    def write(self) -> None:
        """Write the manifest, then the settings."""
        with atomic_write(self.folder / MANIFEST) as partial:
            partial.write_text(_json_lines(self.items), encoding="utf-8")
        super().write()


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
