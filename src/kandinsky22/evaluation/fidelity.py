"""Prompt fidelity in the picture world: which parts of its caption a picture shows, as the oracle reads it.

Rates are of one attribute each, with Wilson's interval; those of two sets of pictures add up.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from kandinsky22.compositions import Scene, judge, read, wilson

ATTRIBUTES: Mapping[str, str] = {
    "ground": "ground",
    "present": "asked colours present",
    "colors": "exactly the asked colours",
    "shape": "shape",
    "count": "count",
    "relation": "relation",
    "plain": "all of these",
    "style": "style",
    "whole": "whole caption",
}
"""What is judged, and how it is said."""


class Rate(NamedTuple):
    """So many of so many are right."""

    right: int
    of: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Where it lies for 95 of 100 such sets (Wilson)."""
        return wilson(self.right, self.of)

    def merged(self, other: Self) -> "Rate":
        """Of both sets."""
        return Rate(self.right + other.right, self.of + other.of)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.0f} ({100 * low:.0f}-{100 * high:.0f})"


Rates = Mapping[str, Rate]


def verdict(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """Which of `ATTRIBUTES` are right in a picture; `relation` only where the scene has one, `plain` is all but the style."""
    said = judge(read(np.asarray(picture.convert("RGB"))), scene)
    return said | {"plain": all(said[name] for name in said.keys() - {"style", "whole"})}


def rates(verdicts: Iterable[Mapping[str, bool]]) -> Rates:
    """How often each attribute is right, of the verdicts that judge it; at least one must."""
    told = list(verdicts)
    lists = {name: [said[name] for said in told if name in said] for name in ATTRIBUTES}
    return {name: Rate(sum(values), len(values)) for name, values in lists.items() if values}


def merged(parts: Iterable[Rates]) -> Rates:
    """The rates of several sets together."""

    def both(a: Rates, b: Rates) -> Rates:
        return {name: a[name].merged(b[name]) if name in a and name in b else (a | b)[name] for name in a | b}  # type: ignore[operator]

    return reduce(both, parts)
