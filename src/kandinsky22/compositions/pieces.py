"""One shape in its place, how much of it is seen, and how two groups slide together until they overlap a little.

Measures on a grid of points as dense as the oracle's. Knows outlines; nothing of colours, words or pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.shapes import distance

POINTS = 128  # per unit
SEEN = 0.72  # of a piece at least, when others lie upon it
HIDDEN = 0.03  # of some piece at least, or nobody would notice
CLOSENESS = (0.6, 0.9)  # of two pieces that overlap: the distance of their centres over the sum of their radii
APART = 0.06  # of any two centres in different groups along the relation's direction
SHY = 0.03  # between a piece and the picture's edge
ATTEMPTS = 14

Mask = NDArray[np.bool_]
Offset = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """One shape in its place: centre (x, y) and enclosing radius r in units of the picture's shorter side, y down.

    `group` indexes the scene's groups, `angle` is in radians clockwise, z in (.35, 1] is the nearness (1 is nearest).
    """

    group: int
    shape: str
    color: str
    x: float
    y: float
    r: float
    angle: float
    z: float


def visible(pieces: Sequence[Piece]) -> tuple[float, ...]:
    """The share of each piece, in (0, 1], that no later one covers."""
    return tuple(float(seen.sum() / whole.sum()) for whole, seen in _masks(pieces))


def slide_together(
    pieces: Sequence[Piece], along: Offset, height: float, width: float, rng: np.random.Generator
) -> tuple[Piece, ...] | None:
    """The pieces with both groups moved as they are, until some overlap; None if no place was found.

    `pieces` come far first. `along` is the unit vector from the first group to the second: the order of all centres
    along it stays plain. At least 72% of every piece stays visible, in one part.
    """
    pairs = [(one, other) for one in pieces for other in pieces if (one.group, other.group) == (0, 1)]
    pairs.sort(key=lambda pair: math.hypot(pair[1].x - pair[0].x, pair[1].y - pair[0].y))
    for attempt in range(ATTEMPTS):
        one, other = pairs[(attempt // 4) % min(3, len(pairs))]
        apart = math.hypot(other.x - one.x, other.y - one.y)
        part = (1 - rng.uniform(*CLOSENESS) * (one.r + other.r) / apart) / 2
        shift = (part * (other.x - one.x), part * (other.y - one.y))
        moved = [_moved(piece, shift, 1 - 2 * piece.group) for piece in pieces]
        if part > 0 and _is_plain(moved, along, height, width) and _shows(moved):
            return tuple(moved)
    return None


def _moved(piece: Piece, shift: Offset, times: int) -> Piece:
    return replace(piece, x=piece.x + times * shift[0], y=piece.y + times * shift[1])


def _is_plain(pieces: Sequence[Piece], along: Offset, height: float, width: float) -> bool:
    """Whether every piece is inside the picture, each centre on its group's side, and the groups more along than across."""
    inside = all(
        piece.r + SHY < piece.x < width - piece.r - SHY and piece.r + SHY < piece.y < height - piece.r - SHY
        for piece in pieces
    )
    places = [[(piece.x, piece.y) for piece in pieces if piece.group == group] for group in (0, 1)]
    first, second = (np.array(group) @ np.array(along) for group in places)
    step = np.mean(places[1], axis=0) - np.mean(places[0], axis=0)
    forward = float(step @ np.array(along))
    return bool(inside and second.min() - first.max() > APART and forward > abs(step[0]) + abs(step[1]) - forward)


def _shows(pieces: Sequence[Piece]) -> bool:
    masks = _masks(pieces)
    shares = [seen.sum() / whole.sum() for whole, seen in masks]
    if not (min(shares) >= SEEN and min(shares) <= 1 - HIDDEN):
        return False
    return all(_is_one(seen) for (_, seen), share in zip(masks, shares, strict=True) if share < 1)


def _masks(pieces: Sequence[Piece]) -> list[tuple[Mask, Mask]]:
    """The points inside each piece and those of them that are seen, in a window about the piece."""
    masks = []
    for number, piece in enumerate(pieces):
        axis = np.arange(-math.ceil(piece.r * POINTS), math.ceil(piece.r * POINTS) + 1) / POINTS
        x, y = axis[None, :] + piece.x, axis[:, None] + piece.y
        whole, covered = _inside(piece, x, y), np.zeros((axis.size, axis.size), np.bool_)
        for other in pieces[number + 1 :]:
            if math.hypot(other.x - piece.x, other.y - piece.y) < other.r + piece.r:
                covered |= _inside(other, x, y)
        masks.append((whole, whole & ~covered))
    return masks


def _inside(piece: Piece, x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
    return np.asarray(distance(piece.shape, x - piece.x, y - piece.y, piece.r, piece.angle) < 0)


def _is_one(mask: Mask) -> bool:
    """Whether the mask, without its rim, is one part: a narrow bridge would not survive a blur."""
    thick = np.pad(mask, 1)
    for axis in (0, 1):
        thick = thick & np.roll(thick, 1, axis) & np.roll(thick, -1, axis)
    reached = np.zeros_like(thick)
    reached.flat[int(thick.argmax())] = thick.any()
    size = 0
    while (grown := int(reached.sum())) != size:
        size = grown
        for axis in (0, 1):
            reached |= np.roll(reached, 1, axis) | np.roll(reached, -1, axis)
            reached &= thick
    return size == int(thick.sum()) > 0
