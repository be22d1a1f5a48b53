"""Segmentation of a picture: the palette colour of each pixel, and the connected patches of one colour.

Works at one size (a shorter side of 128 pixels), at which ink lines are thinner than three pixels and pieces are not.
Uses the palettes only; independent of scenes, shapes and the renderer.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kandinsky22.compositions.world import COLORS, GROUNDS

Floats = NDArray[np.float32]
Core = tuple[NDArray[np.bool_], int, int]  # a mask, with the row and column of its corner
T = TypeVar("T", np.int8, np.bool_)
SIDE = 128  # pixels of the shorter side
MIN_AREA = 60  # pixels: a smaller patch is a crossing of lines or a speck
TIP = 4  # pixels: how far a tip that is too narrow for the core of a patch extends beyond it
EDGE = 2  # pixels: how far a rim of mixed colour does
MARGIN, INSIDE = 4, 0.75  # a core is inside another patch if this share of the pixels around it has one other colour
INK = np.array((33, 31, 38), np.float32)
LIGHTNESS = 0.55  # weight of Lab's L relative to a and b, since light and shadow change L most
COLOR_LIGHTS = (0.65, 0.8, 1.0, 1.15)  # brightness factors of a piece
PIGMENTS = (0.58, 0.75)  # thickness of a wash of paint
GROUND_LIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6)  # brightness factors of the ground in shadow
INK_SHARES = (0.2, 0.35, 0.5)  # share of ink in a pixel of a thin line

_LINEAR = np.array(
    [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.arange(256) / 255], np.float32
)
_XYZ = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)), np.float32)
_XYZ_OVER_WHITE = _XYZ / np.array(((0.95047,), (1.0,), (1.08883,)), np.float32)


@dataclass(frozen=True, slots=True)
class Patch:
    """Connected pixels of one colour: its name, their mask [h, w], and row and column of the mask's top left corner."""

    color: str
    mask: NDArray[np.bool_]
    top: int
    left: int


def lab(pixels: NDArray[np.uint8]) -> Floats:
    """CIE Lab (D65) of sRGB uint8 [..., 3], as float32."""
    x, y, z = np.moveaxis(np.cbrt(_LINEAR[pixels] @ _XYZ_OVER_WHITE.T), -1, 0)
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1).astype(np.float32)


def at_reading_size(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with a shorter side of 128 pixels, resized bicubically if necessary."""
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    if scale == 1:
        return pixels
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def segment(pixels: NDArray[np.uint8]) -> tuple[str, list[Patch]]:
    """The ground's name and the coloured patches of a picture at reading size, uint8 [H, W, 3]."""
    colors_lab = lab(pixels) * np.array((LIGHTNESS, 1, 1), np.float32)
    ground, ground_color = _find_ground(pixels, colors_lab)
    names = list(COLORS)
    colors = [np.concatenate((_lit(rgb, COLOR_LIGHTS), _washed(rgb))) for rgb in COLORS.values()]
    blends = np.array([ground_color * (1 - share) + INK * share for share in INK_SHARES])
    classes = _nearest(colors_lab, [np.concatenate((_lit(ground_color, GROUND_LIGHTS), blends)), *colors])
    cores = _components(_opened(classes))
    if _fill_highlights(classes, cores):
        cores = _components(_opened(classes))
    patches = [Patch(names[kind - 1], *core) for kind, core in cores]
    owners = numbered(patches, classes.shape)
    grown = [
        _grown(patch, classes == kind, (classes != 0) & ((owners == 0) | (owners == number)))
        for number, (patch, (kind, _)) in enumerate(zip(patches, cores, strict=True), start=1)
    ]
    return ground, grown


def numbered(patches: list[Patch], shape: tuple[int, ...]) -> NDArray[np.int16]:
    """A map [H, W] of the number of the patch at each pixel, counted from 1; 0 is the ground."""
    owners = np.zeros(shape, np.int16)
    for number, patch in enumerate(patches, start=1):
        y, x = np.nonzero(patch.mask)
        y, x = y + patch.top, x + patch.left
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        owners[y[inside], x[inside]] = number
    return owners


def foreground(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture, uint8 [H, W, 3], has shapes: a bool mask at reading size."""
    picture = at_reading_size(pixels)
    return np.asarray(numbered(segment(picture)[1], picture.shape[:2]) > 0)


def _fill_highlights(classes: NDArray[np.int8], cores: list[tuple[int, Core]]) -> bool:
    """Give each core that is inside a patch of one colour the class of that patch, in place; returns whether there was
    one.

    No shape is inside another in this world, so that such a core is a highlight on a round surface.
    """
    changed = False
    for kind, (mask, top, left) in cores:
        core = np.pad(mask, MARGIN)
        near = core.copy()
        for _ in range(MARGIN):
            near[1:-1, 1:-1] |= _extreme(near, np.maximum)
        rows, columns = (axis - MARGIN + start for axis, start in zip(np.nonzero(near), (top, left), strict=True))
        inside = (rows >= 0) & (rows < classes.shape[0]) & (columns >= 0) & (columns < classes.shape[1])
        rows, columns, in_core = rows[inside], columns[inside], core[near][inside]
        kinds = np.bincount(classes[rows[~in_core], columns[~in_core]], minlength=1)
        host = int(kinds.argmax())
        if host not in (0, kind) and kinds[host] > INSIDE * (kinds.sum() - kinds[kind : kind + 1].sum()):
            classes[rows, columns] = host
            changed = True
    return changed


def _grown(patch: Patch, same_class: NDArray[np.bool_], free: NDArray[np.bool_]) -> Patch:
    """A core with what opening removed: narrow tips of the same class, then rims of mixed colour (any free pixels)."""
    reach = TIP + EDGE
    height, width = patch.mask.shape
    mask = np.pad(patch.mask, reach)
    for steps, allowed in ((TIP, same_class), (EDGE, free)):
        around = np.pad(allowed, reach)[patch.top : patch.top + height + 2 * reach, :]
        around = around[:, patch.left : patch.left + width + 2 * reach]
        for _ in range(steps):
            mask[1:-1, 1:-1] |= _extreme(mask, np.maximum) & around[1:-1, 1:-1]
    return Patch(patch.color, mask, patch.top - reach, patch.left - reach)


def _find_ground(pixels: NDArray[np.uint8], colors_lab: Floats) -> tuple[str, Floats]:
    """The ground that is nearest for most pixels, and the median colour of those pixels."""
    palette = [_lit(rgb, COLOR_LIGHTS[:2] + COLOR_LIGHTS[3:]) for rgb in COLORS.values()]
    classes = _nearest(colors_lab, [_lit(rgb, GROUND_LIGHTS[:2]) for rgb in GROUNDS.values()] + palette)
    best = int(np.bincount(classes.ravel(), minlength=len(GROUNDS))[: len(GROUNDS)].argmax())
    mask = classes == best
    name = tuple(GROUNDS)[best]
    color = np.median(pixels[mask], axis=0) if mask.any() else np.array(GROUNDS[name])
    return name, color.astype(np.float32)


def _lit(rgb: tuple[int, int, int] | Floats, lights: tuple[float, ...]) -> Floats:
    """A colour at each of these brightnesses, [n, 3]."""
    return np.asarray(lights, np.float32)[:, None] * np.asarray(rgb, np.float32)


def _washed(rgb: tuple[int, int, int]) -> Floats:
    """A paint on white in thinner layers, [n, 3]: each layer transmits the same share of the light."""
    shares = np.asarray(rgb, np.float32) / 255
    return np.asarray(255 * shares ** np.array(PIGMENTS, np.float32)[:, None])


def _nearest(colors_lab: Floats, choices: list[Floats]) -> NDArray[np.int8]:
    """For each pixel the index of the choice (rows of RGB prototypes) that has the nearest prototype."""
    prototypes = lab(np.clip(np.concatenate(choices), 0, 255).astype(np.uint8)) * np.array(
        (LIGHTNESS, 1, 1), np.float32
    )
    owners = np.repeat(np.arange(len(choices), dtype=np.int8), [len(choice) for choice in choices])
    scores = colors_lab @ (2 * prototypes.T) - (prototypes**2).sum(axis=1)  # the nearest maximises 2 p.x - |p|^2
    return np.asarray(owners[scores.argmax(axis=-1)])


def _opened(classes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Morphological opening: pixels in no 3 x 3 block of a single class become ground (0)."""
    core = np.zeros_like(classes)
    low, high = _extreme(classes, np.minimum), _extreme(classes, np.maximum)
    core[1:-1, 1:-1] = np.where(low == high, high, 0)
    padded = np.pad(core, 1)
    return _extreme(padded, np.maximum)


def _extreme(values: NDArray[T], pick: np.ufunc) -> NDArray[T]:
    """The minimum or maximum over every 3 x 3 block, [H - 2, W - 2]."""
    rows = pick(pick(values[:-2], values[1:-1]), values[2:])
    return np.asarray(pick(pick(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def _components(classes: NDArray[np.int8]) -> list[tuple[int, Core]]:
    """The 4-connected components of equal class other than 0, as (class, (mask, top, left)), without small ones."""
    width = classes.shape[1] + 1  # a column of ground at the end separates the rows
    flat = np.pad(classes, ((0, 0), (0, 1))).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    ends = np.append(starts[1:], flat.size)
    full = flat[starts] != 0
    starts, ends = starts[full], ends[full]
    kinds, roots = flat[starts], _joined(starts, ends, flat[starts], width)
    components = []
    for root in np.unique(roots):
        runs = np.flatnonzero(roots == root)
        if (ends[runs] - starts[runs]).sum() >= MIN_AREA:
            components.append((int(kinds[root]), _cut(starts[runs], ends[runs], width)))
    return components


def _joined(starts: NDArray[np.intp], ends: NDArray[np.intp], kinds: NDArray[np.int8], width: int) -> NDArray[np.intp]:
    """The representative of each run, after joining runs of one class that overlap in adjacent rows (union-find)."""
    firsts = np.searchsorted(ends, starts + width, side="right").tolist()
    lasts = np.searchsorted(starts, ends + width, side="left").tolist()
    parents = list(range(len(starts)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for run, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        for below in range(first, last):
            if kinds[below] == kinds[run]:
                parents[root(below)] = root(run)
    return np.array([root(run) for run in range(len(parents))], np.intp)


def _cut(starts: NDArray[np.intp], ends: NDArray[np.intp], width: int) -> Core:
    """Runs as a mask of their bounding box, with its top and left."""
    rows, lefts = np.divmod(starts, width)
    rights = lefts + ends - starts
    top, left = int(rows.min()), int(lefts.min())
    columns = np.arange(left, int(rights.max()))
    mask = np.zeros((int(rows.max()) - top + 1, columns.size), np.bool_)
    inside = (columns >= lefts[:, None]) & (columns < rights[:, None])
    np.logical_or.at(mask, rows - top, inside)
    return mask, top, left
