"""Layout: radii and centres for groups of discs in boxes, so that no two discs touch and relations are unambiguous.

Lengths are in units of the picture's shorter side, y down. Independent of shapes and colours.
"""

import math
from dataclasses import dataclass

import numpy as np

MARGIN = 0.035  # between a disc and the edge of its box: 2 of 64 pixels, and twice that between two groups
GAP = 0.035  # between two discs of one group
SMALL, LARGEST = (0.105, 0.125), 0.34  # radii: the range of "small", and the maximum of any disc
ROOM = {1: 0.29, 2: 0.25, 3: 0.225, 4: 0.205}  # radius by count, in a box of area 1
ATTEMPTS = 200

Disc = tuple[float, float, float]  # x, y, radius


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the picture: its left, top, right and bottom edges."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


def split(relation: str | None, height: float, width: float, cut: float) -> tuple[Box, ...]:
    """The boxes of both groups, divided at the fraction `cut`; without a relation one box, the whole picture."""
    if relation in ("above", "below"):
        upper, lower = Box(0, 0, width, height * cut), Box(0, height * cut, width, height)
        return (upper, lower) if relation == "above" else (lower, upper)
    if relation in ("left of", "right of"):
        left, right = Box(0, 0, width * cut, height), Box(width * cut, 0, width, height)
        return (left, right) if relation == "left of" else (right, left)
    return (Box(0, 0, width, height),)


def scatter(box: Box, count: int, size: str | None, weight: float, rng: np.random.Generator) -> tuple[Disc, ...]:
    """`count` discs at random positions in the box, which do not touch; they shrink until they fit.

    `weight` scales the radius: a star needs a larger disc than a circle to appear equally large.
    """
    max_radius = min(LARGEST, min(box.width, box.height) / 2 - MARGIN)
    radius = min(max_radius, weight * _radius(box, count, size, rng))
    while True:
        discs: list[Disc] = []
        for _ in range(count):
            disc = _free_disc(box, radius * rng.uniform(0.9, 1.0), discs, rng)
            if disc is None:
                break
            discs.append(disc)
        else:
            return tuple(discs)
        radius *= 0.97


def arrange(
    members: tuple[tuple[int, str | None, float], ...],
    relation: str | None,
    height: float,
    width: float,
    rng: np.random.Generator,
) -> tuple[tuple[Disc, ...], ...]:
    """The discs of each group, from its (count, size, weight), so that the relation is true of the boxes and of the
    groups' mean centres.

    "above" also means more above than beside: layouts whose centres differ more across the relation than along it are
    rejected and drawn again, up to 200 times.
    """
    for _ in range(ATTEMPTS):
        boxes = split(relation, height, width, cut=rng.uniform(0.46, 0.54))
        groups = tuple(
            scatter(box, count, size, weight, rng) for box, (count, size, weight) in zip(boxes, members, strict=True)
        )
        if relation is None or _is_unambiguous(groups, relation):
            break
    return groups


def _radius(box: Box, count: int, size: str | None, rng: np.random.Generator) -> float:
    if size == "small":
        return float(rng.uniform(*SMALL))
    room = ROOM[count] * math.sqrt(box.width * box.height)
    if size == "large":
        return 1.25 * room
    return float(room * (rng.uniform(0.75, 0.95) if count == 1 else rng.uniform(0.85, 1.0)))


def _free_disc(box: Box, radius: float, taken: list[Disc], rng: np.random.Generator) -> Disc | None:
    inset = radius + MARGIN
    for _ in range(30):
        x, y = rng.uniform(box.left + inset, box.right - inset), rng.uniform(box.top + inset, box.bottom - inset)
        if all(math.hypot(x - other[0], y - other[1]) > radius + other[2] + GAP for other in taken):
            return float(x), float(y), float(radius)
    return None


def _is_unambiguous(groups: tuple[tuple[Disc, ...], ...], relation: str) -> bool:
    first, second = ([sum(axis) / len(group) for axis in zip(*group, strict=True)] for group in groups)
    across, down = abs(first[0] - second[0]), abs(first[1] - second[1])
    return bool(down > across if relation in ("above", "below") else across > down)
