"""The picture world: abstract compositions that can be described in words, and how they are sampled.

A scene is a description (groups of coloured shapes, their relation, ground, decoration and style) and the placed shapes
that show it. Independent of pixels (`render`), sentences (`captions`) and the reading of pictures (`oracle`).
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from kandinsky22.compositions.layout import arrange
from kandinsky22.compositions.pieces import Offset, Piece, slide_together

RGB = tuple[int, int, int]

# Far apart in Lab (see the tests): an autoencoder blurs hue first, so green is yellowish and teal is dark.
COLORS: dict[str, RGB] = {
    "red": (204, 32, 46),
    "orange": (245, 134, 18),
    "yellow": (252, 217, 48),
    "green": (66, 150, 44),
    "teal": (0, 145, 142),
    "blue": (22, 72, 180),
    "purple": (142, 47, 148),
    "black": (26, 25, 30),
}
GROUNDS: dict[str, RGB] = {
    "cream": (246, 234, 204),
    "white": (251, 250, 248),
    "grey": (184, 184, 188),
    "sky blue": (180, 214, 243),
    "pink": (247, 200, 209),
}
PLURALS: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "ring": "rings",
    "cross": "crosses",
    "star": "stars",
    "half moon": "half moons",
}
SHAPES: tuple[str, ...] = tuple(PLURALS)
DECORATIONS: tuple[str, ...] = ("", "thin black lines", "a grid", "arcs")
STYLES: tuple[str, ...] = ("paper", "watercolour", "ink", "pastel", "clay")  # the first is the default
RELATIONS: tuple[str, ...] = ("above", "below", "left of", "right of")
ALONG: dict[str, Offset] = {"above": (0, 1), "below": (0, -1), "left of": (1, 0), "right of": (-1, 0)}  # y down
SIZES: tuple[str, ...] = ("small", "large")
OVERLAPS = 0.26  # share of scenes with two groups in which an overlap is attempted; three in four attempts succeed

# Never in training scenes, so that they test whether a model can combine a colour and a shape.
HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = (
    ("purple", "star"),
    ("green", "half moon"),
    ("orange", "ring"),
    ("teal", "square"),
    ("blue", "cross"),
    ("yellow", "triangle"),
    ("black", "circle"),
)
MAX_COUNT = 4  # shapes in one group
MAX_ASPECT = 4.0  # ratio of the longer side to the shorter one

# The disc radius at which each shape appears as large as the others, and the maximum rotation (radians).
WEIGHTS = {
    "circle": 0.88,
    "square": 1.0,
    "triangle": 1.06,
    "ring": 0.95,
    "cross": 1.06,
    "star": 1.12,
    "half moon": 1.04,
}
LEANS = {"circle": 0.0, "square": 0.3, "triangle": 0.25, "ring": 0.0, "cross": 0.35, "star": 0.3, "half moon": 0.35}


@dataclass(frozen=True, slots=True)
class Group:
    """One or more shapes of one kind and colour. `size` is "small", "large" or None; only a single shape may have one.

    Raises ValueError for a wrong count and for words outside the world.
    """

    count: int
    color: str
    shape: str
    size: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"a group has 1 to {MAX_COUNT} shapes, got count {self.count}")
        check_choice("color", self.color, COLORS)
        check_choice("shape", self.shape, SHAPES)
        if self.size is not None:
            check_choice("size", self.size, SIZES)
            if self.count != 1:
                raise ValueError(f"only a single shape has a size, got {self.count} {self.size} ones; leave it None")


@dataclass(frozen=True, slots=True)
class Scene:
    """A composition: one group, or two of different colours with the relation of the first to the second.

    `pieces` are sorted from far to near. `height` and `width` are those of the picture; the shorter one is 1. `seed`
    determines what captions do not state: tints, texture, and the positions of the decoration's lines. `style` is the
    material of the whole picture. Raises ValueError for words outside the world and impossible combinations.
    """

    ground: str
    decoration: str
    groups: tuple[Group, ...]
    relation: str | None
    pieces: tuple[Piece, ...]
    seed: int
    height: float = 1.0
    width: float = 1.0
    style: str = STYLES[0]

    def __post_init__(self) -> None:
        check_choice("ground", self.ground, GROUNDS)
        check_choice("decoration", self.decoration, DECORATIONS)
        check_choice("style", self.style, STYLES)
        if self.relation is not None:
            check_choice("relation", self.relation, RELATIONS)
        if len(self.groups) != (1 if self.relation is None else 2):
            raise ValueError(
                f"a scene has one group and no relation, or two groups and one, "
                f"got {len(self.groups)} and {self.relation!r}"
            )
        if len({group.color for group in self.groups}) != len(self.groups):
            raise ValueError(f"two groups need different colors, got {self.groups[0].color} twice")
        if min(self.height, self.width) != 1.0 or max(self.height, self.width) > MAX_ASPECT:
            raise ValueError(
                f"the shorter side must be 1 and the longer at most {MAX_ASPECT:g}, "
                f"got {self.height:g} x {self.width:g}"
            )

    @classmethod
    def of(
        cls,
        groups: tuple[Group, ...],
        relation: str | None,
        ground: str,
        decoration: str,
        rng: np.random.Generator,
        *,
        height: float = 1.0,
        width: float = 1.0,
        style: str = STYLES[0],
        overlap: bool = False,
    ) -> Self:
        """A scene with a random layout for a description. Raises ValueError for words outside the world.

        With `overlap`, shapes of the two groups overlap slightly if the layout allows it.
        """
        empty = cls(ground, decoration, groups, relation, (), int(rng.integers(2**31)), height, width, style)
        members = tuple((group.count, group.size, WEIGHTS[group.shape]) for group in groups)
        layout = arrange(members, relation, height, width, rng)
        pieces = [
            place_shape(index, group, disc, rng)
            for index, (group, discs) in enumerate(zip(groups, layout, strict=True))
            for disc in discs
        ]
        pieces.sort(key=lambda piece: piece.z)
        overlapping = slide_together(pieces, ALONG[relation], height, width, rng) if overlap and relation else None
        return replace(empty, pieces=overlapping or tuple(pieces))

    def stretched(self, height: float, width: float) -> Self:
        """The scene in a picture of another height and width: positions are scaled, the sizes of the pieces are not."""
        moved = [
            replace(piece, x=piece.x * width / self.width, y=piece.y * height / self.height) for piece in self.pieces
        ]
        return replace(self, pieces=tuple(moved), height=height, width=width)


def sample(rng: np.random.Generator, *, height: float = 1.0, width: float = 1.0, held_out: bool = False) -> Scene:
    """A random scene, with two groups in 65% of cases; the first has 1 to 4 shapes, the second 1 to 3.

    Training scenes have none of `HELD_OUT_PAIRS`. With `held_out`, for evaluation, the first group is one of them and
    the second is not.
    """
    counts = [int(rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))) + 1]
    relation = None
    if rng.random() < 0.65:
        counts.append(int(rng.choice(3, p=(0.5, 0.3, 0.2))) + 1)
        relation = _one(RELATIONS, rng)
    names = tuple(COLORS)
    kinds = [(names[index], training_shape(names[index], rng)) for index in rng.permutation(len(names))[: len(counts)]]
    if held_out:
        kinds[0] = HELD_OUT_PAIRS[rng.integers(len(HELD_OUT_PAIRS))]
        if len(kinds) == 2 and kinds[1][0] == kinds[0][0]:
            color = _one(tuple(name for name in names if name != kinds[0][0]), rng)
            kinds[1] = (color, training_shape(color, rng))
    groups = tuple(_group(count, *kind, rng) for count, kind in zip(counts, kinds, strict=True))
    ground = _one(tuple(GROUNDS), rng)
    decoration = DECORATIONS[rng.choice(len(DECORATIONS), p=(0.4, 0.2, 0.2, 0.2))]
    style = STYLES[rng.choice(len(STYLES), p=(0.36, 0.16, 0.16, 0.16, 0.16))]
    overlap = bool(rng.random() < OVERLAPS)
    return Scene.of(groups, relation, ground, decoration, rng, height=height, width=width, style=style, overlap=overlap)


def training_shape(color: str, rng: np.random.Generator) -> str:
    """A random shape that training scenes may have in this colour."""
    return _one(tuple(shape for shape in SHAPES if (color, shape) not in HELD_OUT_PAIRS), rng)


def _group(count: int, color: str, shape: str, rng: np.random.Generator) -> Group:
    return Group(count, color, shape, _one(SIZES, rng) if count == 1 and rng.random() < 0.4 else None)


def place_shape(index: int, group: Group, disc: tuple[float, float, float], rng: np.random.Generator) -> Piece:
    """A shape of a group in a disc (x, y, radius), with random rotation and nearness."""
    lean = LEANS[group.shape]
    angle, z = float(rng.uniform(-lean, lean)), float(1.0 - 0.65 * rng.random())
    return Piece(index, group.shape, group.color, *disc, angle, z)


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]


def check_choice(kind: str, value: str, choices: dict[str, RGB] | tuple[str, ...]) -> None:
    """Raises ValueError if `value` is not one of the choices."""
    if value not in choices:
        raise ValueError(f"unknown {kind} {value!r}; this world has {', '.join(map(repr, choices))}")
