"""The oracle: recognises the scene in a picture from its pixels, and checks it against a description.

It uses nothing but pixels, so that pictures of a model are judged in the same way as rendered ones. It knows the
palette, the outlines and how far they lean, but not where anything should be.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.outlines import fit
from kandinsky22.compositions.segments import SIDE, Patch, at_reading_size, numbered, segment
from kandinsky22.compositions.style_classifier import classify_style
from kandinsky22.compositions.world import STYLES, Group, Scene

MARGIN = 24  # pixels around a patch in which its outline may continue beneath another patch
MIN_OFFSET = 0.05  # between the centres of two groups for a relation to hold, in units of the shorter side


@dataclass(frozen=True, slots=True)
class Seen:
    """One shape in a picture: centre (x, y) and area in units of the shorter side, y down.

    `overlap` in [0, 1] is the intersection over union of its outline with the named shape; correct ones have over 0.75.
    """

    color: str
    shape: str
    x: float
    y: float
    area: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The scene recognised in a picture: the name of its ground, its shapes from top to bottom, and its style."""

    ground: str
    pieces: tuple[Seen, ...]
    style: str = STYLES[0]


def read(pixels: NDArray[np.uint8]) -> Reading:
    """Recognise the scene of a picture, uint8 [H, W, 3], of any size. Raises `ValueError` for other arrays."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a picture must be uint8 [height, width, 3], got {pixels.dtype} {list(pixels.shape)}")
    picture = at_reading_size(pixels)
    ground, patches = segment(picture)
    numbers = numbered(patches, picture.shape[:2])
    pieces = tuple(_recognise(patch, numbers, number) for number, patch in enumerate(patches, start=1))
    return Reading(ground, pieces, classify_style(picture, ground, patches))


def judge(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Which parts of a scene's description a reading matches; the positions of the scene's pieces are not compared.

    `ground`; `style`; `present`: every described colour occurs; `colors`: no other does; `shape`: every piece of a
    described colour has its shape; `count`; `relation` (if the scene has one): by the centres of the groups; `whole`:
    all of these.
    """
    seen = [[piece for piece in reading.pieces if piece.color == group.color] for group in scene.groups]
    described = {group.color for group in scene.groups}
    pairs: list[tuple[Group, list[Seen]]] = list(zip(scene.groups, seen, strict=True))
    verdict = {
        "ground": reading.ground == scene.ground,
        "style": reading.style == scene.style,
        "present": all(seen),
        "colors": {piece.color for piece in reading.pieces} == described,
        "shape": all(pieces and all(piece.shape == group.shape for piece in pieces) for group, pieces in pairs),
        "count": all(len(pieces) == group.count for group, pieces in pairs),
    }
    if scene.relation is not None:
        verdict["relation"] = all(seen) and _holds(scene.relation, seen[0], seen[1])
    return verdict | {"whole": all(verdict.values())}


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a rate, by default at 95%.

    Raises `ValueError` unless 0 <= successes <= n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"wilson needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    rate, term = successes / n, z * z / n
    centre = (rate + term / 2) / (1 + term)
    half_width = math.sqrt(rate * (1 - rate) * term + term * term / 4) / (1 + term)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def _holds(relation: str, first: list[Seen], second: list[Seen]) -> bool:
    """Whether the mean centres of two groups are in this relation."""
    right = sum(piece.x for piece in second) / len(second) - sum(piece.x for piece in first) / len(first)
    down = sum(piece.y for piece in second) / len(second) - sum(piece.y for piece in first) / len(first)
    return {"above": down, "below": -down, "left of": right, "right of": -right}[relation] > MIN_OFFSET


def _recognise(patch: Patch, numbers: NDArray[np.int16], number: int) -> Seen:
    """The shape, centre and area of one patch; `numbers` [H, W] has the number of the patch at each pixel."""
    mask = np.pad(patch.mask, MARGIN)
    top, left = patch.top - MARGIN, patch.left - MARGIN
    window = np.pad(numbers, 2 * MARGIN)[top + 2 * MARGIN :, left + 2 * MARGIN :]
    near = window[: mask.shape[0], : mask.shape[1]]
    outline = fit(mask, (near != number) & (near > 0) & ~mask)
    return Seen(
        patch.color,
        outline.shape,
        x=(left + outline.x + 0.5) / SIDE,
        y=(top + outline.y + 0.5) / SIDE,
        area=int(mask.sum()) / SIDE**2,
        overlap=outline.overlap,
    )
