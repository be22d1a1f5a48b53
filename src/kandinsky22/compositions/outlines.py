"""Which outline a patch has: compared with all shapes in all their leans, moved to one place and scaled to one size.

Where another patch touches, the outline may go on beneath it: points there count neither for nor against. Knows outlines
and patches; nothing of colours and scenes.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.shapes import distance
from kandinsky22.compositions.world import LEANS, SHAPES

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
CELLS = 32  # per side of a normalised mask
SPREAD = 2.1  # half its width, in root-mean-square radii: a cross just fits
TURNS = 9  # templates of each leaning shape
SWELLS = (0.0, 0.09)  # how far the outline lies beyond the shape's own, over its radius: ink adds a line
TOUCHING = 5  # pixels of another patch beside this one: more, and this one may go on beneath
MOST_HIDDEN = 0.34  # of an outline
DOUBT = 0.15  # what hiding all of an outline would cost it, in overlap
SHIFTS = (-0.45, -0.3, -0.15, 0.0, 0.15, 0.3, 0.45)  # from the middle of what is seen, in its spreads
GROWTHS = (1.0, 1.08, 1.17, 1.27)  # over the spread of what is seen


@dataclass(frozen=True, slots=True)
class Fit:
    """The shape that fits best, how well in [0, 1] (intersection over union), and its middle in pixels of the window."""

    shape: str
    overlap: float
    y: float
    x: float


def fit(mask: Mask, others: Mask) -> Fit:
    """Fit an outline to a mask [h, w]; `others` marks the points of other patches, which may hide some of it."""
    y, x = (float(axis.mean()) for axis in np.nonzero(mask))
    reach = SPREAD * _spread(mask)
    found = _best(mask, np.zeros_like(mask), [(y, x, reach)])
    if int((_dilated(mask) & others).sum()) <= TOUCHING:
        return found
    step = reach / SPREAD
    places = [(y + a * step, x + b * step, reach * c) for a, b, c in product(SHIFTS, SHIFTS, GROWTHS)]
    return _best(mask, others & ~mask, places)


def _best(mask: Mask, hidden: Mask, places: list[tuple[float, float, float]]) -> Fit:
    shapes, templates = _templates()
    seen, free = _normalised(mask, places), _normalised(hidden, places)
    sizes = templates.sum(axis=1)[:, None]
    shared, beneath = templates @ seen.T, templates @ free.T
    overlaps = shared / (sizes - beneath + seen.sum(axis=1) - shared)
    worth = np.where(beneath <= MOST_HIDDEN * sizes, overlaps - DOUBT * beneath / sizes, 0)
    which, where = np.unravel_index(int(worth.argmax()), worth.shape)
    return Fit(shapes[which], float(overlaps[which, where]), *places[where][:2])


@cache
def _templates() -> tuple[list[str], Floats]:
    """The shapes in all their leans: their names, and normalised masks [templates, cells]."""
    axis = (np.arange(96, dtype=np.float32) + 0.5) / 40 - 1.2
    shapes, masks = [], []
    for shape in SHAPES:
        leans = np.linspace(-1.2, 1.2, TURNS) * LEANS[shape] if LEANS[shape] else (0.0,)
        for lean, swell in product(leans, SWELLS):
            mask = distance(shape, axis[None, :], axis[:, None], angle=float(lean)) < swell
            y, x = (float(values.mean()) for values in np.nonzero(mask))
            shapes.append(shape)
            masks.append(_normalised(mask, [(y, x, SPREAD * _spread(mask))])[0])
    return shapes, np.array(masks)


def _spread(mask: Mask) -> float:
    """The root-mean-square distance of a mask's points from their middle."""
    y, x = np.nonzero(mask)
    return math.sqrt(((y - y.mean()) ** 2 + (x - x.mean()) ** 2).mean())


def _normalised(mask: Mask, places: list[tuple[float, float, float]]) -> Floats:
    """A mask about each place (y, x, reach) at one scale: zeros and ones [places, cells * cells]."""
    y, x, reach = (np.array(values)[:, None] for values in zip(*places, strict=True))
    steps = (np.arange(CELLS) + 0.5) * (2 / CELLS) - 1
    padded = np.pad(mask, 1)  # points outside the mask clip to its empty rim
    rows = np.clip(np.rint(y + reach * steps).astype(int) + 1, 0, mask.shape[0] + 1)
    columns = np.clip(np.rint(x + reach * steps).astype(int) + 1, 0, mask.shape[1] + 1)
    return padded[rows[:, :, None], columns[:, None, :]].reshape(len(places), -1).astype(np.float32)


def _dilated(mask: Mask) -> Mask:
    grown = np.pad(mask, 1)
    for axis in (0, 1):
        grown = grown | np.roll(grown, 1, axis) | np.roll(grown, -1, axis)
    return grown[1:-1, 1:-1]
