"""Prompt fidelity in the picture world: which attributes of its caption a picture shows, as read by the oracle.

Every attribute has a rate with Wilson's interval.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

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
"""The attributes that are scored, and their names for readers."""


class Rate(NamedTuple):
    """`right` of `of` pictures are right."""

    right: int
    of: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95%, (low, high)."""
        return wilson(self.right, self.of)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.0f} ({100 * low:.0f}-{100 * high:.0f})"


Rates = Mapping[str, Rate]


def verdict(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """Whether each of `ATTRIBUTES` is right in a picture of a scene.

    `relation` is there only if the scene has one; `plain` is all attributes but the style.
    """
    verdicts = judge(read(np.asarray(picture.convert("RGB"))), scene)
    return verdicts | {"plain": all(verdicts[name] for name in verdicts.keys() - {"style", "whole"})}


def rates(verdicts: Iterable[Mapping[str, bool]]) -> Rates:
    """How often each attribute is right, among the verdicts that contain it; attributes in no verdict are left out."""
    all_verdicts = list(verdicts)
    values = {name: [verdict[name] for verdict in all_verdicts if name in verdict] for name in ATTRIBUTES}
    return {name: Rate(sum(of_name), len(of_name)) for name, of_name in values.items() if of_name}
