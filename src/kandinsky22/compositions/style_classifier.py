"""Classifies the style of a picture, from the brightness across the edges of its patches.

Each patch votes by a linear classifier on fifteen features, with weights for the five styles in `style_weights`, one
set for black patches and one for all others. Independent of scenes and of the renderer.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.segments import Patch
from kandinsky22.compositions.style_weights import BLACK, COLORED
from kandinsky22.compositions.world import COLORS, GROUNDS, STYLES

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
LUMA = np.array((0.299, 0.587, 0.114), np.float32) / 255
RINGS = 6  # one pixel wide each, on both sides of the edge of a patch
LIGHT = (-0.6, -0.8)  # the direction (x, y) from which the light comes, in styles with a light
SIDE = 0.25  # of a patch's spread: the distance from its middle line of points on its bright or dark side
STREAK = 2  # pixels, down and across, between points that are compared


def classify_style(pixels: NDArray[np.uint8], ground: str, patches: list[Patch]) -> str:
    """The style of a picture at reading size, uint8 [H, W, 3]; "paper" if it has no patches."""
    votes = np.zeros(len(STYLES), np.float32)
    light = (pixels @ LUMA).astype(np.float32)
    for patch in patches:
        weights = np.array(BLACK if patch.color == "black" else COLORED, np.float32)
        scores = np.append(patch_features(light, ground, patch), 1) @ weights
        votes += scores - scores.max() - math.log(np.exp(scores - scores.max()).sum())
    return STYLES[int(votes.argmax())]


def patch_features(light: Floats, ground: str, patch: Patch) -> Floats:
    """Fifteen features [15] of one patch, from the brightness of its picture, [H, W] in [0, 1].

    A dark line on the edge; a rim inside it (three); the brightness of the bright side minus the dark side, at the
    place of a shadow, on both sides of the edge, and inside (five); a halo; streaks (two); unevenness; how much lighter
    the middle is than the palette's colour; the slope of the edge.
    """
    mask = np.pad(patch.mask, RINGS + 1)
    rows = np.clip(np.arange(mask.shape[0]) + patch.top - RINGS - 1, 0, light.shape[0] - 1)
    columns = np.clip(np.arange(mask.shape[1]) + patch.left - RINGS - 1, 0, light.shape[1] - 1)
    near = light[rows[:, None], columns]
    depth = _depths(mask)
    bright, dark = _sides(mask)
    rings = _rings(near, depth, bright, dark)
    mean, contrast = rings.mean(axis=1), rings[:, 0] - rings[:, 1]
    middle = mean[-3:].mean()
    ground_light, color_light = (
        float(np.array(rgb, np.float32) @ LUMA) for rgb in (GROUNDS[ground], COLORS[patch.color])
    )
    along, across = _streaks(near, depth >= 2)
    inner = near[depth >= 3] if (depth >= 3).any() else near[mask]
    return np.array(
        (
            mean[5] - (mean[2] + mean[8]) / 2,
            *(mean[6:9] - middle),
            contrast[1:4].mean(),
            *contrast[[5, 6, 8]],
            contrast[10:].mean(),
            mean[1:4].mean() - ground_light,
            along - across,
            across,
            inner.std(),
            middle - color_light,
            mean[4] - mean[2],
        ),
        np.float32,
    )


def _depths(mask: Mask) -> NDArray[np.int8]:
    """The pixels by which a point is inside the edge (1: on it, 99: the middle) or outside (-1: next to it, 0: far)."""
    depth = np.where(mask, np.int8(99), np.int8(0))
    inside, outside = mask, mask
    for ring in range(1, RINGS + 1):
        smaller, larger = ~_dilated(~inside), _dilated(outside)
        depth[inside & ~smaller] = ring
        depth[larger & ~outside] = -ring
        inside, outside = smaller, larger
    return depth


def _dilated(mask: Mask) -> Mask:
    """The mask and the four neighbours of its points; the rim of the window is unchanged."""
    out = mask.copy()
    out[1:-1, 1:-1] |= mask[:-2, 1:-1] | mask[2:, 1:-1] | mask[1:-1, :-2] | mask[1:-1, 2:]
    return out


def _sides(mask: Mask) -> tuple[Mask, Mask]:
    """The points of the window that face the light, and those that face away from it, by the centre of the mask."""
    y, x = np.nonzero(mask)
    spread = math.sqrt(y.var() + x.var())
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    facing = ((columns - x.mean()) * LIGHT[0] + (rows - y.mean()) * LIGHT[1]) / spread
    return facing > SIDE, facing < -SIDE


def _rings(near: Floats, depth: NDArray[np.int8], bright: Mask, dark: Mask) -> Floats:
    """Mean brightness of each ring from outside to inside and of the middle, on the bright and the dark side, [13, 2].

    An empty ring repeats the one before.
    """
    rings = np.zeros((2 * RINGS + 1, 2), np.float32)
    for column, side in enumerate((bright, dark)):
        where = depth[side].astype(np.int64) + RINGS
        where[where > 2 * RINGS] = 2 * RINGS + 1
        counts = np.bincount(where, minlength=2 * RINGS + 2)
        sums = np.bincount(where, near[side], minlength=2 * RINGS + 2)
        last = float(near.mean())
        for row, place in enumerate((*range(RINGS), *range(RINGS + 1, 2 * RINGS + 2))):
            last = float(sums[place] / counts[place]) if counts[place] else last
            rings[row, column] = last
    return rings


def _streaks(near: Floats, inside: Mask) -> tuple[float, float]:
    """The mean change of brightness along and across the diagonal of right-handed strokes, inside a mask."""
    late, early = slice(STREAK, None), slice(None, -STREAK)
    changes = []
    for first, second in (((late, early), (early, late)), ((late, late), (early, early))):
        both = inside[first] & inside[second]
        changes.append(float(np.abs(near[first] - near[second])[both].mean()) if both.any() else 0.0)
    return changes[0], changes[1]
