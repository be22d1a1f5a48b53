"""The oracle: reads a picture of this world back and says which parts of a description came true.

It sees pixels only, so that a model's pictures can be judged as the renderer's are. It knows the palette, the outlines
and how far they lean; not where anything should be.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .segments import SIDE, Patch, at_reading_size, segment
from .shapes import distance
from .world import LEANS, SHAPES, Group, Scene

Floats = NDArray[np.float32]
CELLS = 32  # per side of a normalised mask
SPREAD = 2.1  # half its width, in root-mean-square radii: a cross just fits
TURNS = 9  # templates of each leaning shape
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
    """What a picture shows: the name of its ground and its shapes, from the top down."""

    ground: str
    pieces: tuple[Seen, ...]


def read(pixels: NDArray[np.uint8]) -> Reading:
    """Read a picture, uint8 [H, W, 3], of any size. Raises ValueError for other arrays."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [height, width, 3], got {pixels.dtype} {list(pixels.shape)}")
    ground, patches = segment(at_reading_size(pixels))
    return Reading(ground, tuple(_look(patch) for patch in patches))


def judge(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Which parts of the scene's description hold in a reading; the scene's pieces are not looked at.

    `ground`; `present`: all asked colours are there; `colors`: exactly those; `shape`: every piece of an asked colour
    has the asked shape; `count`; `relation` (only if the scene has one): told from the centres; `whole`: all of these.
    """
    seen = [[piece for piece in reading.pieces if piece.color == group.color] for group in scene.groups]
    asked = {group.color for group in scene.groups}
    pairs: list[tuple[Group, list[Seen]]] = list(zip(scene.groups, seen, strict=True))
    verdict = {
        "ground": reading.ground == scene.ground,
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


def _look(patch: Patch) -> Seen:
    y, x = (float(axis.mean()) for axis in np.nonzero(patch.mask))
    shapes, templates = _templates()
    mask = _normalised(patch.mask)
    shared = templates @ mask
    overlaps = shared / (templates.sum(axis=1) + mask.sum() - shared)
    best = int(overlaps.argmax())
    return Seen(
        patch.color,
        shapes[best],
        x=(patch.left + x + 0.5) / SIDE,
        y=(patch.top + y + 0.5) / SIDE,
        area=int(patch.mask.sum()) / SIDE**2,
        overlap=float(overlaps[best]),
    )


@cache
def _templates() -> tuple[list[str], Floats]:
    """The shapes in all their leans: their names, and normalised masks [templates, cells]."""
    axis = (np.arange(96, dtype=np.float32) + 0.5) / 40 - 1.2
    shapes, masks = [], []
    for shape in SHAPES:
        for lean in np.linspace(-1.2, 1.2, TURNS) * LEANS[shape] if LEANS[shape] else (0.0,):
            shapes.append(shape)
            masks.append(_normalised(distance(shape, axis[None, :], axis[:, None], angle=float(lean)) < 0))
    return shapes, np.array(masks)


def _normalised(mask: NDArray[np.bool_]) -> Floats:
    """A mask moved to its centre of mass and scaled to one spread: zeros and ones, flat [cells * cells]."""
    y, x = np.nonzero(mask)
    middle_y, middle_x = y.mean(), x.mean()
    reach = SPREAD * math.sqrt(((y - middle_y) ** 2 + (x - middle_x) ** 2).mean())
    steps = (np.arange(CELLS) + 0.5) * (2 / CELLS) - 1
    padded = np.pad(mask, 1)  # points outside the mask clip to its empty rim
    rows = np.clip(np.rint(middle_y + reach * steps).astype(int) + 1, 0, mask.shape[0] + 1)
    columns = np.clip(np.rint(middle_x + reach * steps).astype(int) + 1, 0, mask.shape[1] + 1)
    return np.asarray(padded[rows[:, None], columns].ravel(), np.float32)
