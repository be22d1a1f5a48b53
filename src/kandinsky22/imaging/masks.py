"""The geometry of inpainting on pixels: which area is repainted, and what stays untouched.

An area is float32 [H, W] in [0, 1], where 1 is repainted. Any mask becomes an area first (`repaint_area`). From it
follow the window to compute (`window`), how the painted window is blended back (`feathered`, `paste_back`), and
extended pictures (`padded`). Knows numpy and Pillow; no network and no request.
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REPAINTS = ("white", "black")  # which colour of a mask means: paint here
MUCH = 0.6  # share of the picture above which the mask's colours may be swapped by mistake
MOST = 0.7  # share of the picture above which a window does not pay off: it is enlarged by less than a fifth
FAINT = 8 / 255  # how far JPEG of good quality moves black and white
ZOOM = 4  # how much a window is enlarged at most, so that it still shows some context

FloatArray: TypeAlias = NDArray[np.float32]


def repaint_area(mask: Image.Image | FloatArray, size: tuple[int, int], repaint: str = "white") -> FloatArray:
    """The area to repaint: float32 [H, W] in [0, 1]. Greys stay, except for values next to black and white (JPEG
    noise).

    mask: a picture of mode L, RGB or RGBA, or floats [H, W] in [0, 1]. Transparent pixels are never repainted,
    whichever colour repaints, and half-transparent ones half. It is resized to `size`, (height, width), with an
    antialiased triangle filter, which keeps 0 among zeros and 1 among ones exact. repaint: the colour that repaints,
    "white" or "black". Raises `ValueError` for another colour, and for floats of another shape or range.
    """
    if repaint not in REPAINTS:
        raise ValueError(f"mask_mode must be 'white' or 'black', the colour that is repainted, got {repaint!r}")
    values = _picture_values(mask) if isinstance(mask, Image.Image) else _array_values(mask)
    values[values <= FAINT], values[values >= 1 - FAINT] = 0, 1
    bright, opaque = values
    area: FloatArray = (bright if repaint == "white" else 1 - bright) * opaque
    if area.shape != size:  # after the product, lest the colour of what is transparent leaks
        height, width = size
        area = np.array(Image.fromarray(area).resize((width, height), Image.Resampling.BILINEAR))
    return area


def _picture_values(mask: Image.Image) -> FloatArray:
    """A picture's brightness and opacity, [2, H, W] in [0, 1]."""
    values: FloatArray = np.asarray(mask.convert("LA"), np.float32).transpose(2, 0, 1) / np.float32(255)
    return values


def _array_values(mask: FloatArray) -> FloatArray:
    """An array as the brightness of an opaque picture, [2, H, W] in [0, 1], a copy."""
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"the mask must have one value per pixel, [height, width], got the shape {list(mask.shape)}")
    if not (mask.min() >= 0 and mask.max() <= 1):  # also what is not a number
        raise ValueError(
            f"the mask must hold values from 0 to 1, got {mask.min():g} to {mask.max():g}; divide it by its largest"
        )
    return np.stack([mask, np.ones_like(mask)]).astype(np.float32)


def check(area: FloatArray, repaint: str = "white") -> None:
    """Raises `ValueError` if nothing is to be repainted."""
    if not area.any():
        other = "black" if repaint == "white" else "white"
        raise ValueError(
            f"the mask repaints nothing; make {repaint}, and not transparent, what should change, "
            f"or use mask_mode='{other}' if {other} should"
        )


def share(area: FloatArray) -> float:
    """The share of the picture that is repainted, in [0, 1]."""
    return float(area.mean(dtype=np.float64))


def reminder(share: float, repaint: str = "white") -> str | None:
    """A sentence on which colour repaints, if so much is repainted that the other may be meant; else None."""
    if share <= MUCH:
        return None
    other = "black" if repaint == "white" else "white"
    return (
        f"the mask repaints {share:.0%} of the picture, since {repaint} is repainted; "
        f"if {repaint} should stay, use mask_mode='{other}'"
    )


def feathered(area: FloatArray, pixels: int) -> FloatArray:
    """The blending weight of the painted picture, float32 [H, W]: 1 inside the area, 0 outside, smooth between.

    It falls over `pixels` inwards from the border of the area, so it is exactly 0 wherever the area is 0, and no pixel
    outside the area changes. The picture's own edge is no border. Where the area is too thin to reach 1, the weight
    falls from the area's middle instead, so a line is repainted too. Lower greys of the area stay. Raises `ValueError`
    for less than 0.
    """
    if pixels < 0:
        raise ValueError(f"feather must be a number of pixels from 0 up, got {pixels}; try 16")
    weight = area.copy()
    if pixels and area.any():
        (top, bottom), (left, right) = _span(area, 1), _span(area, 0)
        part = (slice(max(top - 1, 0), bottom + 1), slice(max(left - 1, 0), right + 1))  # all of it, and its border
        depth = _depth(area[part] > 0, pixels + 1)
        ramp = np.divide(depth, _deepest(depth, pixels + 1), out=np.zeros_like(depth), where=depth > 0)
        weight[part] = np.minimum(area[part], ramp * ramp * (3 - 2 * ramp))
    return weight


def _depth(inside: NDArray[np.bool_], reach: int) -> FloatArray:
    """The Euclidean distance of each pixel to the nearest one outside, at most `reach`; 0 outside.

    First along the columns, then the minimum over the row by Pythagoras (Saito and Toriwaki, 1994).
    """
    height, width = inside.shape
    row = np.arange(height)[:, None]
    above = np.maximum.accumulate(np.where(inside, -reach, row), axis=0)
    below = np.minimum.accumulate(np.where(inside, height + reach, row)[::-1], axis=0)[::-1]
    along = np.minimum(np.minimum(row - above, below - row), reach).astype(np.float32) ** 2
    nearest = along.copy()
    for k in range(1, min(reach, width)):
        np.minimum(nearest[:, k:], along[:, :-k] + k * k, out=nearest[:, k:])
        np.minimum(nearest[:, :-k], along[:, k:] + k * k, out=nearest[:, :-k])
    return np.sqrt(nearest)


def _deepest(depth: FloatArray, steps: int) -> FloatArray:
    """The largest depth within `steps` steps of each pixel, moving inside the area to any of the eight neighbours."""
    inside = depth > 0
    for _ in range(steps):
        wider = np.pad(depth, 1)
        rows = np.maximum(np.maximum(wider[:-2], wider[1:-1]), wider[2:])
        deeper = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]) * inside
        if np.array_equal(deeper, depth):  # so are all that follow
            break
        depth = deeper
    return depth


def paste_back(original: Image.Image, painted: Image.Image, weight: FloatArray) -> Image.Image:
    """The painted picture where `weight` [H, W] is 1 and the original where it is 0, bit for bit; blended between.

    Raises `ValueError` if the three differ in size.
    """
    if not original.size == painted.size == weight.shape[::-1]:
        sizes = ", ".join(f"{w}x{h}" for w, h in (original.size, painted.size, weight.shape[::-1]))
        raise ValueError(f"original, painted picture and weight must have one size, got {sizes}")
    before, after = (np.asarray(image.convert("RGB"), np.float32) for image in (original, painted))
    mixed = before + weight[..., None] * (after - before)
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


class Box(NamedTuple):
    """A part of a picture in pixels, right and bottom excluded: what `PIL.Image.Image.crop` takes."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.right - self.left


def window(area: FloatArray, height: int, width: int, *, margin: float = 0.5) -> Box | None:
    """The smallest window to compute at height x width instead of the whole picture; None if no window pays off.

    It contains the area with `margin` times the area's own height and width on each side, as far as the picture goes,
    has the ratio height : width to the pixel, and is enlarged at most `ZOOM` times, unless the picture itself is. There
    is none if it would be most of the picture, or if no window of that ratio contains the area. Raises `ValueError` if
    nothing is to be repainted, and for a negative margin.
    """
    check(area)
    if margin < 0:
        raise ValueError(f"the margin around the mask must be at least 0, got {margin}; try 0.5")
    (top, bottom), (left, right) = _span(area, 1), _span(area, 0)
    whole_height, whole_width = area.shape
    tall = max(math.ceil((bottom - top) * (1 + 2 * margin)), math.ceil(height / ZOOM))
    wide = max(math.ceil((right - left) * (1 + 2 * margin)), math.ceil(width / ZOOM))
    scale = min(max(tall / height, wide / width), whole_height / height, whole_width / width)
    tall = min(_nearest(height * scale), whole_height)
    wide = min(_nearest(width * scale), whole_width)
    if tall < bottom - top or wide < right - left or tall * wide > MOST * area.size:
        return None
    y, x = _place(top, bottom, tall, whole_height), _place(left, right, wide, whole_width)
    return Box(x, y, x + wide, y + tall)


def _nearest(side: float) -> int:
    return max(1, math.floor(side + 0.5))


def _span(area: FloatArray, across: int) -> tuple[int, int]:
    """The first and one past the last row that contains some of the area; columns if `across` is 0."""
    places = np.flatnonzero(area.max(axis=across))
    return int(places[0]), int(places[-1]) + 1


def _place(start: int, stop: int, length: int, whole: int) -> int:
    """The start of an interval of `length` that is centred on start..stop and shifted into 0..whole."""
    return min(max((start + stop - length) // 2, 0), whole - length)


def padded(
    image: Image.Image, top: int = 0, right: int = 0, bottom: int = 0, left: int = 0
) -> tuple[Image.Image, FloatArray]:
    """The picture with new pixels at its sides, RGB, and the new area: 1 there, 0 on the old picture.

    The new pixels repeat the picture's edge, the smoothest surroundings for MoVQ's encoder. Raises `ValueError` for a
    negative number of pixels.
    """
    if min(top, right, bottom, left) < 0:
        raise ValueError("a picture is extended by 0 pixels or more on each side; crop it first to lose some")
    room = ((top, bottom), (left, right))
    pixels = np.pad(np.asarray(image.convert("RGB")), (*room, (0, 0)), mode="edge")
    area = np.pad(np.zeros((image.height, image.width), np.float32), room, constant_values=1)
    return Image.fromarray(pixels), area
