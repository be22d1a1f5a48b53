"""The oracle: reads a picture of this world back and says which parts of a description came true.

It sees pixels only, so that a model's pictures can be judged as the renderer's are. It knows the palette, the outlines
and how far they lean; not where anything should be.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.outlines import fit
from kandinsky22.compositions.segments import SIDE, Patch, at_reading_size, numbered, segment
from kandinsky22.compositions.style_classifier import tell
from kandinsky22.compositions.world import STYLES, Group, Scene

AROUND = 24  # pixels beyond a patch in which its outline may go on beneath another
PLAIN = 0.05  # by how much group centres must differ for a relation, in units of the shorter side


@dataclass(frozen=True, slots=True)
class Seen:
    """One shape in a picture: centre (x, y) and area in units of the shorter side, y down.

    `overlap` in [0, 1] is how well the outline fits the named shape (intersection over union): a true one has over .75.
    """

    color: str
    shape: str
    x: float
    y: float
    area: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a picture shows: the name of its ground, its shapes from the top down, and the style it is made in."""

    ground: str
    pieces: tuple[Seen, ...]
    style: str = STYLES[0]


def read(pixels: NDArray[np.uint8]) -> Reading:
    """Read a picture, uint8 [H, W, 3], of any size. Raises ValueError for other arrays."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [height, width, 3], got {pixels.dtype} {list(pixels.shape)}")
    picture = at_reading_size(pixels)
    ground, patches = segment(picture)
    numbers = numbered(patches, picture.shape[:2])
    pieces = tuple(_look(patch, numbers, number) for number, patch in enumerate(patches, start=1))
    return Reading(ground, pieces, tell(picture, ground, patches))


def judge(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Which parts of the scene's description hold in a reading; the scene's pieces are not looked at.

    `ground`; `style`; `present`: all asked colours are there; `colors`: exactly those; `shape`: every piece of an asked colour
    has the asked shape; `count`; `relation` (only if the scene has one): told from the centres; `whole`: all of these.
    """
    seen = [[piece for piece in reading.pieces if piece.color == group.color] for group in scene.groups]
    asked = {group.color for group in scene.groups}
    pairs: list[tuple[Group, list[Seen]]] = list(zip(scene.groups, seen, strict=True))
    verdict = {
        "ground": reading.ground == scene.ground,
        "style": reading.style == scene.style,
        "present": all(seen),
        "colors": {piece.color for piece in reading.pieces} == asked,
        "shape": all(pieces and all(piece.shape == group.shape for piece in pieces) for group, pieces in pairs),
        "count": all(len(pieces) == group.count for group, pieces in pairs),
    }
    if scene.relation is not None:
        verdict["relation"] = all(seen) and _holds(scene.relation, seen[0], seen[1])
    return verdict | {"whole": all(verdict.values())}


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a rate, by default at 95%; ValueError unless 0 <= successes <= n > 0."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    rate, slack = successes / n, z * z / n
    middle = (rate + slack / 2) / (1 + slack)
    half = math.sqrt(rate * (1 - rate) * slack + slack * slack / 4) / (1 + slack)
    return max(0.0, middle - half), min(1.0, middle + half)


def _holds(relation: str, first: list[Seen], second: list[Seen]) -> bool:
    right = sum(piece.x for piece in second) / len(second) - sum(piece.x for piece in first) / len(first)
    down = sum(piece.y for piece in second) / len(second) - sum(piece.y for piece in first) / len(first)
    return {"above": down, "below": -down, "left of": right, "right of": -right}[relation] > PLAIN


def _look(patch: Patch, numbers: NDArray[np.int16], number: int) -> Seen:
    mask = np.pad(patch.mask, AROUND)
    top, left = patch.top - AROUND, patch.left - AROUND
    beyond = np.pad(numbers, 2 * AROUND)[top + 2 * AROUND :, left + 2 * AROUND :]
    near = beyond[: mask.shape[0], : mask.shape[1]]
    found = fit(mask, (near != number) & (near > 0) & ~mask)
    return Seen(
        patch.color,
        found.shape,
        x=(left + found.x + 0.5) / SIDE,
        y=(top + found.y + 0.5) / SIDE,
        area=int(mask.sum()) / SIDE**2,
        overlap=found.overlap,
    )
