"""How a request's picture lies on what is computed, and how what was computed becomes the picture.

Networks compute sides that are multiples of 64. A plain picture is cut from the middle of such a canvas; a picture that
is given is laid on one the same way, its edges repeated. Inpainting may compute only a window around what is repainted,
and puts it back into the whole. Knows PIL and numpy; nothing of networks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from PIL import Image

from kandinsky22.imaging import masks
from kandinsky22.imaging.masks import Box
from kandinsky22.request import Mask, Request
from kandinsky22.request.sizes import SMALLEST

LARGER = 1.5  # times the model's own area: from here on a small mask gets a window
MEAN = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Frame:
    """`height` x `width` pixels in the middle of a canvas; `inpainting` says what they are part of."""

    height: int
    width: int
    inpainting: "Inpainting | None" = None

    @classmethod
    def of(cls, request: Request, own: tuple[int, int]) -> Self:
        """The frame of a resolved request, for a model whose own size is `own`. Raises `ValueError` for a useless
        mask."""
        assert request.height is not None and request.width is not None
        size = request.height, request.width
        if request.mask is None:
            return cls(*size)
        inpainting = Inpainting.of(request.mask, size, own)
        return cls(*(size if inpainting.box is None else own_size(inpainting.box, own)), inpainting)

    @property
    def canvas(self) -> tuple[int, int]:
        """The sides that are computed."""
        return -(-self.height // SMALLEST) * SMALLEST, -(-self.width // SMALLEST) * SMALLEST

    @property
    def corner(self) -> tuple[int, int]:
        """Where the picture begins on the canvas: top and left."""
        return (self.canvas[0] - self.height) // 2, (self.canvas[1] - self.width) // 2

    def laid(self, image: Image.Image) -> np.ndarray:
        """A picture brought to this size and laid on the canvas: float32 [H, W] or [H, W, 3] in [0, 1]."""
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), MEAN)
        return self.padded(np.asarray(image, np.float32) / 255)

    def started(self, image: Image.Image) -> np.ndarray:
        """A picture to start from on the canvas: where inpainting computes a part, that part of it; where it added
        room, the room too, if the picture is without."""
        if self.inpainting is None:
            return self.laid(image)
        whole, box = self.inpainting.whole, self.inpainting.box
        page = image if image.size == whole.size else self.inpainting.extended(image)
        return self.laid(page if box is None else page.crop(box))

    def padded(self, values: np.ndarray) -> np.ndarray:
        """[height, width, ...] on the canvas, the edges repeated."""
        (top, left), (height, width) = self.corner, self.canvas
        around = [(top, height - top - self.height), (left, width - left - self.width)]
        return np.pad(values, around + [(0, 0)] * (values.ndim - 2), mode="edge")

    @cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray] | None:
        """For inpainting: the canvas [H, W, 3] in [0, 1], and what is repainted of it [H, W]: 0 or 1."""
        if self.inpainting is None:
            return None
        whole, area, box = self.inpainting.whole, self.inpainting.area, self.inpainting.box
        unknown = (area >= min(0.5, float(area.max()))).astype(np.float32)
        if box is not None:
            whole = whole.crop(box)
            window = Image.fromarray(unknown[box.top : box.bottom, box.left : box.right])
            resized = np.asarray(window.resize((self.width, self.height), Image.Resampling.BILINEAR))
            unknown = (resized > 0).astype(np.float32)  # a thin line survives being made smaller
        return self.laid(whole), self.padded(unknown)

    def finished(self, painted: Image.Image) -> Image.Image:
        """The picture, from the decoded canvas."""
        top, left = self.corner
        painted = painted.crop((left, top, left + self.width, top + self.height))
        return painted if self.inpainting is None else self.inpainting.finished(painted)


@dataclass(frozen=True)
class Inpainting:
    """The `whole` picture, the `area` of it that is painted ([H, W] in [0, 1]), how much of the new shows where
    (`weight`, None: the new alone), and the window that is computed (None: everything)."""

    whole: Image.Image
    area: np.ndarray
    weight: np.ndarray | None
    box: Box | None
    mask: Mask

    @classmethod
    def of(cls, mask: Mask, size: tuple[int, int], own: tuple[int, int]) -> Self:
        """From what was asked, at `size`; the model's `own` size decides whether a window pays."""
        whole, area = masks.padded(mask.image.rgb, *mask.pad)
        if mask.area is not None:
            top, _, _, left = mask.pad
            drawn = masks.repaint_area(mask.area.image, (mask.image.height, mask.image.width), mask.repaint)
            inner = area[top : top + mask.image.height, left : left + mask.image.width]
            np.maximum(inner, drawn, out=inner)
        if whole.size != size[::-1]:
            whole = whole.resize(size[::-1], MEAN)
            area = masks.repaint_area(area, size, "white")
        masks.check(area, mask.repaint)
        box = masks.window(area, *own) if _pays(mask, size, own) else None
        return cls(whole, area, masks.feathered(area, mask.feather) if mask.paste_back else None, box, mask)

    def extended(self, image: Image.Image) -> Image.Image:
        """Another picture brought to the place of this one."""
        if image.size == (self.mask.image.width, self.mask.image.height):
            image, _ = masks.padded(image, *self.mask.pad)
        return image.resize(self.whole.size, MEAN)

    def finished(self, painted: Image.Image) -> Image.Image:
        """The whole with what was painted in its place."""
        if self.box is not None:
            left, top, right, bottom = self.box
            page = self.whole.copy()
            page.paste(painted.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            painted = page
        return painted if self.weight is None else masks.paste_back(self.whole, painted, self.weight)


def own_size(box: Box, own: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a window is computed: the model's own area in the window's ratio."""
    height, width = box.bottom - box.top, box.right - box.left
    scale = (own[0] * own[1] / (height * width)) ** 0.5
    return max(SMALLEST, round(height * scale)), max(SMALLEST, round(width * scale))


def _pays(mask: Mask, size: tuple[int, int], own: tuple[int, int]) -> bool:
    """Whether to look for a window: as asked; else where the picture is much larger than what the model paints."""
    return size[0] * size[1] > LARGER * own[0] * own[1] if mask.crop is None else mask.crop
