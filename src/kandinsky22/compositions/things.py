"""Things: emoji from public sets, each in up to two drawing styles, with their names in English and Russian.

Read from the files that `runs/fetch_things.py` writes, which are not part of the package. Independent of scenes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kandinsky22.arrays import map_rows
from kandinsky22.files import open_regular, parse_json

DRAWINGS: tuple[str, ...] = ("flat", "shaded")
"""The drawing styles, as captions name them."""
PICTURES, LABELS = "things.npy", "things.json"


@dataclass(frozen=True, slots=True)
class EnglishName:
    """A noun phrase. `plural` is None for things that are not counted; `article`: whether "a" or "an" precedes it."""

    name: str
    plural: str | None = None
    article: bool = False


@dataclass(frozen=True, slots=True)
class RussianForms:
    """The inflected forms of a Russian noun phrase: genitive, instrumental, and both in the plural.

    `gender` is m, f or n; `few` is the form after 2 to 4 in the nominative.
    """

    gender: str
    gen: str
    ins: str
    few: str
    gen_pl: str
    ins_pl: str


@dataclass(frozen=True, slots=True)
class RussianName:
    """A noun phrase in the nominative. `forms` is None for things that are not counted, which are not inflected."""

    name: str
    forms: RussianForms | None = None


@dataclass(frozen=True, slots=True)
class Thing:
    """One concept: its names, the most common one first, and the index of its picture in each drawing style it has.

    `weight` in (0, 1] is its relative frequency. `held_out`: it is never in training scenes. `counted`: a scene may
    have more than one of it.
    """

    hexcode: str
    group: str
    subgroup: str
    english: tuple[EnglishName, ...]
    russian: tuple[RussianName, ...]
    rows: Mapping[str, int] = field(hash=False)
    counted: bool = False
    held_out: bool = False
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The most common English name."""
        return self.english[0].name

    def is_valid(self, pictures: int) -> bool:
        """Whether its names and numbers have the types above, and its rows are those of a number of pictures."""
        names = (*(name.name for name in self.english), *(name.name for name in self.russian))
        return (
            all(isinstance(text, str) for text in (self.hexcode, self.group, *names))
            and len(self.english) > 0
            and isinstance(self.rows, dict)
            and all(type(row) is int and 0 <= row < pictures for row in self.rows.values())
            and type(self.weight) in (int, float)
            and 0 < self.weight <= 1
        )

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """A thing from its entry in `things.json`."""
        russian = (
            RussianName(name["name"], RussianForms(**name["forms"]) if name["forms"] else None) for name in entry["ru"]
        )
        return cls(
            entry["hexcode"],
            entry["group"],
            entry["subgroup"],
            tuple(EnglishName(**name) for name in entry["en"]),
            tuple(russian),
            entry["rows"],
            entry["counted"],
            entry["held_out"],
            entry["weight"],
        )


class Things:
    """Things and their pictures, uint8 [N, S, S, 4], RGBA, straight alpha; `runs/fetch_things.py` makes S = 128."""

    def __init__(self, things: Sequence[Thing], pictures: NDArray[np.uint8]) -> None:
        self.things, self.pictures = tuple(things), pictures
        self._numbers = {thing.hexcode: number for number, thing in enumerate(things)}
        self._by_hexcode = {thing.hexcode: thing for thing in things}
        self._resized = lru_cache(maxsize=512)(self._resize)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The things in a folder.

        Raises `FileNotFoundError`, which names the command that downloads them, and `ValueError` for damaged files.
        """
        if not (folder / LABELS).exists():
            raise FileNotFoundError(f"{folder} has no things; download them with: python runs/fetch_things.py {folder}")
        try:
            with open_regular(folder / LABELS) as file:
                things = [Thing.from_json(entry) for entry in parse_json(file.read())]
            pictures = map_rows(folder / PICTURES)
            if pictures.ndim != 4 or pictures.shape[-1] != 4:
                raise ValueError("its pictures are not RGBA")
            if not all(thing.is_valid(len(pictures)) for thing in things):
                raise ValueError("a thing has values of other types or no picture")
            return cls(things, pictures)
        except (ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
            raise ValueError(f"the things in {folder} cannot be read ({error}); download them again") from error

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, hexcode: str) -> Thing:
        return self._by_hexcode[hexcode]

    def number(self, thing: Thing) -> int:
        """The index of a thing in `things`."""
        return self._numbers[thing.hexcode]

    def choose(
        self,
        rng: np.random.Generator,
        drawing: str,
        *,
        counted: bool = False,
        held_out: bool = False,
        subgroup: str | None = None,
        other_than: Sequence[Thing] = (),
    ) -> Thing | None:
        """A random thing, by weight, that has this drawing style and is counted (if required), held out or not, and in
        the subgroup; None if there is none, or if eight draws are all in `other_than`."""
        candidates, totals = self._pool(drawing, counted, held_out, subgroup)
        for _ in range(8 if candidates else 0):
            thing = candidates[int(np.searchsorted(totals, rng.random() * totals[-1], side="right"))]
            if thing not in other_than:
                return thing
        return None

    def picture(self, thing: Thing, drawing: str, side: int) -> NDArray[np.uint8]:
        """The picture of a thing, uint8 RGBA [side, side, 4] with straight alpha."""
        return self._resized(thing.rows[drawing], side)

    @cached_property
    def _pools(self) -> dict[tuple[Any, ...], tuple[list[Thing], NDArray[np.float64]]]:
        return {}

    def _pool(self, *key: Any) -> tuple[list[Thing], NDArray[np.float64]]:
        """The things to choose from, and their cumulative weights."""
        if key not in self._pools:
            drawing, counted, held_out, subgroup = key
            candidates = [
                thing
                for thing in self.things
                if drawing in thing.rows
                and thing.held_out == held_out
                and (thing.counted or not counted)
                and subgroup in (None, thing.subgroup)
            ]
            self._pools[key] = candidates, np.cumsum([thing.weight for thing in candidates])
        return self._pools[key]

    def _resize(self, row: int, side: int) -> NDArray[np.uint8]:
        picture = Image.fromarray(np.asarray(self.pictures[row]))  # Pillow resizes RGBA with premultiplied alpha
        return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
