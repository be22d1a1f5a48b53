"""Scenes with things: one thing, several of a kind, or things beside other things or shapes; and their pictures.

The ground, the decoration and the style are those of the world of shapes (`world`, `render`). Independent of sentences.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kandinsky22.compositions.canvas import canvas
from kandinsky22.compositions.layout import arrange
from kandinsky22.compositions.pieces import Piece
from kandinsky22.compositions.render import Layers, add_to_layers, background_layers, draw_background, to_uint8
from kandinsky22.compositions.shapes import FloatArray
from kandinsky22.compositions.styles import LIGHT, SHADE, SHADOWS, paint
from kandinsky22.compositions.things import DRAWINGS, Thing, Things
from kandinsky22.compositions.world import (
    COLORS,
    DECORATIONS,
    GROUNDS,
    MAX_COUNT,
    RELATIONS,
    STYLES,
    WEIGHTS,
    Group,
    check_choice,
    place_shape,
    training_shape,
)

KINDS: tuple[str, ...] = ("alone", "several", "two", "with shapes")
KIND_ODDS = (0.52, 0.17, 0.19, 0.12)
# of a thing among others: the weight of its disc, and half its square's side over the disc's radius
DISC_WEIGHT, FILLED = (1.45, 0.96)
ALONE, ALONE_LARGE = (0.2, 0.32), (0.36, 0.475)  # half the side of the square of a thing that is alone
LARGE_ODDS = 0.8
EDGE = 0.015  # between a thing that is alone and the edge of the picture
NO_DECORATION = 0.76  # share of the scenes
STYLE_ODDS = (0.6, 0.1, 0.1, 0.1, 0.1)
SHAPE_STYLE_ODDS = (0.36, 0.16, 0.16, 0.16, 0.16)
VISIBLE = 128  # of 255: the least alpha of a pixel that belongs to a thing


@dataclass(frozen=True, slots=True)
class ThingGroup:
    """1 to 4 things of one kind. Raises ValueError for more than one of a thing that is not counted."""

    count: int
    thing: Thing

    def __post_init__(self) -> None:
        limit = MAX_COUNT if self.thing.counted else 1
        if not 1 <= self.count <= limit:
            raise ValueError(f"a group has 1 to {limit} of {self.thing.name!r}, got {self.count}")


@dataclass(frozen=True, slots=True)
class PlacedThing:
    """One placed thing: the centre (x, y) of its square and half the square's side r, in units of the picture's shorter
    side.

    `group` indexes the scene's groups, z in (0.35, 1] is the nearness (1 is nearest).
    """

    group: int
    x: float
    y: float
    r: float
    z: float


@dataclass(frozen=True, slots=True)
class ThingScene:
    """A composition with things: one group of them, or two groups with the relation of the first to the second, one of
    which may be of shapes.

    `drawing` is the drawing style of all things; the other attributes are those of `Scene`. Raises ValueError for words
    outside the world and for a thing without that drawing style.
    """

    ground: str
    decoration: str
    groups: tuple[ThingGroup | Group, ...]
    relation: str | None
    drawing: str
    pieces: tuple[PlacedThing | Piece, ...]
    seed: int
    height: float = 1.0
    width: float = 1.0
    style: str = STYLES[0]

    def __post_init__(self) -> None:
        check_choice("ground", self.ground, GROUNDS)
        check_choice("decoration", self.decoration, DECORATIONS)
        check_choice("style", self.style, STYLES)
        check_choice("drawing", self.drawing, DRAWINGS)
        if len(self.groups) != (1 if self.relation is None else 2):
            raise ValueError(
                f"a scene has one group and no relation, or two groups and one, "
                f"got {len(self.groups)} and {self.relation!r}"
            )
        for thing in self.things:
            if self.drawing not in thing.rows:
                raise ValueError(f"{thing.name!r} has no {self.drawing} drawing")

    @property
    def things(self) -> tuple[Thing, ...]:
        """The things of all groups."""
        return tuple(group.thing for group in self.groups if isinstance(group, ThingGroup))

    @property
    def has_shapes(self) -> bool:
        """Whether one of the groups has shapes."""
        return len(self.things) < len(self.groups)

    @classmethod
    def of(
        cls,
        groups: tuple[ThingGroup | Group, ...],
        relation: str | None,
        drawing: str,
        ground: str,
        decoration: str,
        rng: np.random.Generator,
        *,
        style: str = STYLES[0],
    ) -> Self:
        """A square scene with a random layout for a description. Raises ValueError for words outside the world."""
        empty = cls(ground, decoration, groups, relation, drawing, (), int(rng.integers(2**31)), style=style)
        if relation is None and groups[0].count == 1:
            r = float(rng.uniform(*(ALONE_LARGE if rng.random() < LARGE_ODDS else ALONE)))
            x, y = (float(rng.uniform(r + EDGE, 1 - r - EDGE)) for _ in range(2))
            return replace(empty, pieces=(PlacedThing(0, x, y, r, _nearness(rng)),))
        members = tuple(
            (group.count, None, DISC_WEIGHT)
            if isinstance(group, ThingGroup)
            else (group.count, group.size, WEIGHTS[group.shape])
            for group in groups
        )
        pieces: list[PlacedThing | Piece] = []
        for index, (group, discs) in enumerate(zip(groups, arrange(members, relation, 1.0, 1.0, rng), strict=True)):
            for x, y, r in discs:
                if isinstance(group, ThingGroup):
                    pieces.append(PlacedThing(index, x, y, FILLED * r, _nearness(rng)))
                else:
                    pieces.append(place_shape(index, group, (x, y, r), rng))
        return replace(empty, pieces=tuple(sorted(pieces, key=lambda piece: piece.z)))

    def stretched(self, height: float, width: float) -> Self:
        """The scene in a picture of another height and width: positions are scaled, the sizes of the pieces are not."""
        moved = [
            replace(piece, x=piece.x * width / self.width, y=piece.y * height / self.height) for piece in self.pieces
        ]
        return replace(self, pieces=tuple(moved), height=height, width=width)


def sample_things(rng: np.random.Generator, things: Things, *, held_out: bool = False) -> ThingScene:
    """A random square scene with things: in half of them one thing alone, mostly large; else several of a kind, two
    kinds, or things and shapes.

    With `held_out`, for evaluation, the first thing is a held-out one. Raises ValueError if the collection has no thing
    of the kind that is drawn.
    """
    drawing = DRAWINGS[rng.integers(len(DRAWINGS))]
    kind = KINDS[rng.choice(len(KINDS), p=KIND_ODDS)]
    if kind == "alone":
        groups: list[ThingGroup | Group] = [ThingGroup(1, _choose(rng, things, drawing, held_out))]
    elif kind == "several":
        groups = [
            ThingGroup(_count(rng, (0.1, 0.34, 0.3, 0.26)), _choose(rng, things, drawing, held_out, counted=True))
        ]
    else:
        groups = [_group(rng, things, drawing, held_out)]
        if kind == "two":
            first = groups[0]
            assert isinstance(first, ThingGroup)
            groups.append(_group(rng, things, drawing, False, first.thing))
        else:
            color = tuple(COLORS)[rng.integers(len(COLORS))]
            groups.append(Group(_count(rng, (0.55, 0.27, 0.18)), color, training_shape(color, rng)))
            if rng.random() < 0.5:
                groups.reverse()
    relation = RELATIONS[rng.integers(len(RELATIONS))] if len(groups) == 2 else None
    ground = tuple(GROUNDS)[rng.integers(len(GROUNDS))]
    decoration = DECORATIONS[rng.integers(1, len(DECORATIONS)) if rng.random() > NO_DECORATION else 0]
    style = STYLES[rng.choice(len(STYLES), p=SHAPE_STYLE_ODDS if kind == "with shapes" else STYLE_ODDS)]
    return ThingScene.of(tuple(groups), relation, drawing, ground, decoration, rng, style=style)


def render_things(scene: ThingScene, things: Things, side: int = 128, *, grain: bool = True) -> NDArray[np.uint8]:
    """Paint a scene with things: uint8 [H, W, 3], where the shorter side has `side` pixels (at least 16)."""
    points = canvas(scene.height, scene.width, side)
    picture, texture, tints = draw_background(scene, points, grain=grain)
    for piece, tint in zip(scene.pieces, tints, strict=True):
        if isinstance(piece, Piece):
            paint(picture, piece, points, scene.style, tint, texture)
            continue
        rgba, top, left = _resized(scene, piece, things, side)
        alpha = rgba[..., 3].astype(np.float32) / 255
        if scene.style in SHADOWS:
            _cast_shadow(picture, alpha, top, left, piece, side, *SHADOWS[scene.style])
        target, source = _overlap(picture.shape[:2], alpha.shape, top, left)
        color = rgba[source][..., :3].astype(np.float32) / 255
        picture[target] += alpha[source][..., None] * (color - picture[target])
    return to_uint8(picture)


def thing_layers(scene: ThingScene, things: Things, side: int = 128) -> Layers:
    """The exact depth and instance maps of `render_things(scene, things, side)`; things are where alpha >= 1/2."""
    points = canvas(scene.height, scene.width, side)
    maps = background_layers(scene.height, points)
    for number, piece in enumerate(scene.pieces, start=1):
        if isinstance(piece, Piece):
            add_to_layers(maps, piece, number, points)
            continue
        rgba, top, left = _resized(scene, piece, things, side)
        target, source = _overlap(maps.ids.shape, rgba.shape[:2], top, left)
        inside = rgba[source][..., 3] >= VISIBLE
        maps.depth[target][inside] = piece.z
        maps.ids[target][inside] = number
    return maps


def _choose(rng: np.random.Generator, things: Things, drawing: str, held_out: bool, counted: bool = False) -> Thing:
    thing = things.choose(rng, drawing, counted=counted, held_out=held_out)
    if thing is None:
        kind = ("counted " if counted else "") + ("held-out " if held_out else "")
        raise ValueError(f"there is no {kind}thing with a {drawing} drawing; a collection needs things of every kind")
    return thing


def _group(
    rng: np.random.Generator, things: Things, drawing: str, held_out: bool, other: Thing | None = None
) -> ThingGroup:
    counted = rng.random() < 0.75
    pool = {"counted": counted, "held_out": held_out, "other_than": () if other is None else (other,)}
    thing = things.choose(rng, drawing, **pool)  # type: ignore[arg-type]  # the values of a dict are of several types
    if thing is None:
        thing = _choose(rng, things, drawing, held_out)
    return ThingGroup(_count(rng, (0.68, 0.2, 0.12)) if thing.counted else 1, thing)


def _count(rng: np.random.Generator, odds: tuple[float, ...]) -> int:
    return int(rng.choice(len(odds), p=odds)) + 1


def _nearness(rng: np.random.Generator) -> float:
    return float(1.0 - 0.65 * rng.random())


def _resized(scene: ThingScene, piece: PlacedThing, things: Things, side: int) -> tuple[NDArray[np.uint8], int, int]:
    """The pixels [n, n, 4] of a thing, and the row and column of the upper left one in the picture."""
    group = scene.groups[piece.group]
    assert isinstance(group, ThingGroup)
    size = max(1, round(2 * piece.r * side))
    picture = things.picture(group.thing, scene.drawing, size)
    return picture, round((piece.y - piece.r) * side), round((piece.x - piece.r) * side)


Window = tuple[slice, slice]


def _overlap(picture: tuple[int, ...], patch: tuple[int, ...], top: int, left: int) -> tuple[Window, Window]:
    """The windows, in a picture [H, W] and in a patch [h, w] at (top, left), of the pixels that they have in common."""
    target, source = [], []
    for length, size, start in zip(picture, patch, (top, left), strict=True):
        first, last = max(0, start), max(0, min(length, start + size))
        target.append(slice(first, last))
        source.append(slice(first - start, last - start))
    return (target[0], target[1]), (source[0], source[1])


def _cast_shadow(
    picture: FloatArray,
    alpha: FloatArray,
    top: int,
    left: int,
    piece: PlacedThing,
    side: int,
    strength: float,
    softness: float,
) -> None:
    """Darken the picture by a thing's shadow, which is further away and softer for nearer things, as for shapes."""
    shift, blur = (0.006 + 0.034 * piece.z) * side, softness * (0.008 + 0.032 * piece.z) * side
    padding = int(2 * blur) + 2
    mask = Image.fromarray((np.pad(alpha, padding) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur / 2))
    shade = np.asarray(mask, np.float32) * np.float32(0.8 * strength / 255)
    down, across = round(-shift * LIGHT[1]), round(-shift * LIGHT[0])
    target, source = _overlap(picture.shape[:2], shade.shape, top - padding + down, left - padding + across)
    picture[target] *= 1 - shade[source][..., None] * SHADE
