"""Recognises the shape of a patch, by comparing its mask with templates of all shapes and rotations at one position and
size.

If another patch touches it, the outline may continue beneath that patch; points there count neither for nor against a
shape. Independent of colours and scenes.
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
REACH = 2.1  # half the width of a normalised mask, in root-mean-square radii: a cross just fits
ROTATIONS = 9  # templates of each shape that may lean
MARGINS = (0.0, 0.09)  # by which a template is larger than its shape, over its radius: ink adds an outline
TOUCHING = 5  # pixels of another patch next to this one; with more, this one may continue beneath it
MAX_HIDDEN = 0.34  # of a template
HIDDEN_PENALTY = 0.15  # subtracted from the overlap of a template, times its hidden share
SHIFTS = (-0.45, -0.3, -0.15, 0.0, 0.15, 0.3, 0.45)  # of the centre, in root-mean-square radii of the visible part
SCALES = (1.0, 1.08, 1.17, 1.27)  # of the radius of the visible part


@dataclass(frozen=True, slots=True)
class Fit:
    """The best shape, its overlap in [0, 1] (intersection over union), and its centre in pixels of the window."""

    shape: str
    overlap: float
    y: float
    x: float


def fit(mask: Mask, others: Mask) -> Fit:
    """Find the shape of a mask [h, w]; `others` marks points of other patches, which may hide a part of it."""
    y, x = (float(axis.mean()) for axis in np.nonzero(mask))
    reach = REACH * _rms_radius(mask)
    best = _best(mask, np.zeros_like(mask), [(y, x, reach)])
    if int((_dilated(mask) & others).sum()) <= TOUCHING:
        return best
    step = reach / REACH
    places = [(y + a * step, x + b * step, reach * c) for a, b, c in product(SHIFTS, SHIFTS, SCALES)]
    return _best(mask, others & ~mask, places)


def _best(mask: Mask, hidden: Mask, places: list[tuple[float, float, float]]) -> Fit:
    """The best template over all places (y, x, reach); points in `hidden` are ignored."""
    shapes, templates = _templates()
    visible, hideable = _normalised(mask, places), _normalised(hidden, places)
    sizes = templates.sum(axis=1)[:, None]
    shared, covered = templates @ visible.T, templates @ hideable.T
    overlaps = shared / (sizes - covered + visible.sum(axis=1) - shared)
    scores = np.where(covered <= MAX_HIDDEN * sizes, overlaps - HIDDEN_PENALTY * covered / sizes, 0)
    template, place = np.unravel_index(int(scores.argmax()), scores.shape)
    return Fit(shapes[template], float(overlaps[template, place]), *places[place][:2])


@cache
def _templates() -> tuple[list[str], Floats]:
    """The names of the shapes in all rotations, and their normalised masks [templates, cells * cells]."""
    axis = (np.arange(96, dtype=np.float32) + 0.5) / 40 - 1.2
    shapes, masks = [], []
    for shape in SHAPES:
        leans = np.linspace(-1.2, 1.2, ROTATIONS) * LEANS[shape] if LEANS[shape] else (0.0,)
        for lean, margin in product(leans, MARGINS):
            mask = distance(shape, axis[None, :], axis[:, None], angle=float(lean)) < margin
            y, x = (float(values.mean()) for values in np.nonzero(mask))
            shapes.append(shape)
            masks.append(_normalised(mask, [(y, x, REACH * _rms_radius(mask))])[0])
    return shapes, np.array(masks)


def _rms_radius(mask: Mask) -> float:
    """The root-mean-square distance of the points of a mask from their centre."""
    y, x = np.nonzero(mask)
    return math.sqrt(((y - y.mean()) ** 2 + (x - x.mean()) ** 2).mean())


def _normalised(mask: Mask, places: list[tuple[float, float, float]]) -> Floats:
    """A mask resampled around each place (y, x, reach) to one scale: 0 or 1, [places, cells * cells]."""
    y, x, reach = (np.array(values)[:, None] for values in zip(*places, strict=True))
    steps = (np.arange(CELLS) + 0.5) * (2 / CELLS) - 1
    padded = np.pad(mask, 1)  # points outside the mask are clipped to its empty rim
    rows = np.clip(np.rint(y + reach * steps).astype(int) + 1, 0, mask.shape[0] + 1)
    columns = np.clip(np.rint(x + reach * steps).astype(int) + 1, 0, mask.shape[1] + 1)
    return padded[rows[:, :, None], columns[:, None, :]].reshape(len(places), -1).astype(np.float32)


def _dilated(mask: Mask) -> Mask:
    """The mask and the eight neighbours of its points."""
    grown = np.pad(mask, 1)
    for axis in (0, 1):
        grown = grown | np.roll(grown, 1, axis) | np.roll(grown, -1, axis)
    return grown[1:-1, 1:-1]
