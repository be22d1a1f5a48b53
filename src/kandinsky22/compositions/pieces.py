"""Placed shapes: how much of each is visible, and how two groups are moved together until they overlap.

Areas are measured on a grid of points as dense as that of the oracle. Independent of words and pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.shapes import distance

POINTS = 128  # per unit
SEEN = 0.72  # minimum visible share of a piece that others overlap
MIN_HIDDEN = 0.03  # minimum hidden share of the most hidden piece, for an overlap to be noticeable
CLOSENESS = (0.6, 0.9)  # of two pieces that overlap: the distance of their centres over the sum of their radii
MIN_DISTANCE = 0.06  # between any two centres of different groups, along the direction of the relation
EDGE_DISTANCE = 0.03  # between a piece and the edge of the picture
ATTEMPTS = 14

Mask = NDArray[np.bool_]
Offset = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """One placed shape: centre (x, y) and enclosing radius r in units of the picture's shorter side, y down.

    `group` indexes the scene's groups, `angle` is in radians clockwise, z in (0.35, 1] is the nearness (1 is nearest).
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
    """The share of each piece, in (0, 1], that no later piece covers."""
    return tuple(float(shown.sum() / full.sum()) for full, shown in _masks(pieces))


def slide_together(
    pieces: Sequence[Piece], along: Offset, height: float, width: float, rng: np.random.Generator
) -> tuple[Piece, ...] | None:
    """The pieces after moving each group as a unit until some overlap; None if no position was found.

    `pieces` are sorted from far to near. `along` is the unit vector from the first group to the second; along it, the
    centres of the groups remain separated. At least 72% of each piece remains visible, in one connected part.
    """
    pairs = [(one, other) for one in pieces for other in pieces if (one.group, other.group) == (0, 1)]
    pairs.sort(key=lambda pair: math.hypot(pair[1].x - pair[0].x, pair[1].y - pair[0].y))
    for attempt in range(ATTEMPTS):
        one, other = pairs[(attempt // 4) % min(3, len(pairs))]
        distance_apart = math.hypot(other.x - one.x, other.y - one.y)
        part = (1 - rng.uniform(*CLOSENESS) * (one.r + other.r) / distance_apart) / 2
        shift = (part * (other.x - one.x), part * (other.y - one.y))
        moved = [_moved(piece, shift, 1 - 2 * piece.group) for piece in pieces]
        if part > 0 and _is_unambiguous(moved, along, height, width) and _is_recognisable(moved):
            return tuple(moved)
    return None


def _moved(piece: Piece, shift: Offset, times: int) -> Piece:
    return replace(piece, x=piece.x + times * shift[0], y=piece.y + times * shift[1])


def _is_unambiguous(pieces: Sequence[Piece], along: Offset, height: float, width: float) -> bool:
    """Whether all pieces are inside, and the groups are separated along `along` and offset mostly in that direction."""
    inside = all(
        piece.r + EDGE_DISTANCE < piece.x < width - piece.r - EDGE_DISTANCE
        and piece.r + EDGE_DISTANCE < piece.y < height - piece.r - EDGE_DISTANCE
        for piece in pieces
    )
    places = [[(piece.x, piece.y) for piece in pieces if piece.group == group] for group in (0, 1)]
    first, second = (np.array(group) @ np.array(along) for group in places)
    step = np.mean(places[1], axis=0) - np.mean(places[0], axis=0)
    forward = float(step @ np.array(along))
    return bool(
        inside and second.min() - first.max() > MIN_DISTANCE and forward > abs(step[0]) + abs(step[1]) - forward
    )


def _is_recognisable(pieces: Sequence[Piece]) -> bool:
    """Whether some piece is noticeably hidden, and enough of each is visible in one part."""
    masks = _masks(pieces)
    shares = [shown.sum() / full.sum() for full, shown in masks]
    if not (min(shares) >= SEEN and min(shares) <= 1 - MIN_HIDDEN):
        return False
    return all(_is_connected(shown) for (_, shown), share in zip(masks, shares, strict=True) if share < 1)


def _masks(pieces: Sequence[Piece]) -> list[tuple[Mask, Mask]]:
    """For each piece, masks of all its points and of its visible points, in a window around it."""
    masks = []
    for number, piece in enumerate(pieces):
        axis = np.arange(-math.ceil(piece.r * POINTS), math.ceil(piece.r * POINTS) + 1) / POINTS
        x, y = axis[None, :] + piece.x, axis[:, None] + piece.y
        full, covered = _inside(piece, x, y), np.zeros((axis.size, axis.size), np.bool_)
        for other in pieces[number + 1 :]:
            if math.hypot(other.x - piece.x, other.y - piece.y) < other.r + piece.r:
                covered |= _inside(other, x, y)
        masks.append((full, full & ~covered))
    return masks


def _inside(piece: Piece, x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
    return np.asarray(distance(piece.shape, x - piece.x, y - piece.y, piece.r, piece.angle) < 0)


def _is_connected(mask: Mask) -> bool:
    """Whether a mask without its rim is one part; the rim is left out since a narrow bridge does not survive a blur."""
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
