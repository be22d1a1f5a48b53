"""The canvas that networks compute, and how a request's picture is placed on it and cut from it.

Networks compute sides that are multiples of 64. A picture is the middle of such a canvas; a given picture is placed
there, its edges repeated around it. Inpainting may compute only a window around the repainted area, which is then put
back into the whole picture. Knows PIL and numpy, no network.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from PIL import Image

from kandinsky22.imaging import masks
from kandinsky22.imaging.masks import Box
from kandinsky22.request import Mask, Request
from kandinsky22.request.sizes import MIN_SIDE, canvas_side

WINDOW_FROM = 1.5  # times the model's own area: in larger pictures a small mask gets a window
RESAMPLING = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Canvas:
    """A picture of `height` x `width` pixels in the middle of a canvas. `inpainting`: what the picture is a part of."""

    height: int
    width: int
    inpainting: "Inpainting | None" = None

    @classmethod
    def of(cls, request: Request, model_size: tuple[int, int]) -> Self:
        """The canvas of a resolved request, for a model with the default size (height, width).

        Raises `ValueError` for a mask that repaints nothing.
        """
        assert request.height is not None and request.width is not None
        size = request.height, request.width
        if request.mask is None:
            return cls(*size)
        inpainting = Inpainting.of(request.mask, size, model_size)
        return cls(*(size if inpainting.window is None else window_size(inpainting.window, model_size)), inpainting)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that are computed: the picture's, rounded up to multiples of 64."""
        return canvas_side(self.height), canvas_side(self.width)

    @property
    def offset(self) -> tuple[int, int]:
        """The picture's top left corner on the canvas, (top, left)."""
        return (self.size[0] - self.height) // 2, (self.size[1] - self.width) // 2

    def place(self, image: Image.Image) -> np.ndarray:
        """A picture resized and placed on the canvas: float32 [H, W] or [H, W, 3] in [0, 1]."""
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), RESAMPLING)
        return self.pad(np.asarray(image, np.float32) / 255)

    def place_start(self, image: Image.Image) -> np.ndarray:
        """The picture of img2img on the canvas. With inpainting it is cut and extended like the inpainted picture."""
        if self.inpainting is None:
            return self.place(image)
        whole, window = self.inpainting.whole, self.inpainting.window
        page = image if image.size == whole.size else self.inpainting.extend(image)
        return self.place(page if window is None else page.crop(window))

    def pad(self, values: np.ndarray) -> np.ndarray:
        """An array [height, width, ...] on the canvas, its edges repeated."""
        (top, left), (height, width) = self.offset, self.size
        around = [(top, height - top - self.height), (left, width - left - self.width)]
        return np.pad(values, around + [(0, 0)] * (values.ndim - 2), mode="edge")

    @cached_property
    def inpaint_input(self) -> tuple[np.ndarray, np.ndarray] | None:
        """For inpainting: the picture on the canvas [H, W, 3] in [0, 1], and the repainted area [H, W] of 0 and 1."""
        if self.inpainting is None:
            return None
        whole, area, window = self.inpainting.whole, self.inpainting.area, self.inpainting.window
        repainted = (area >= min(0.5, float(area.max()))).astype(np.float32)
        if window is not None:
            whole = whole.crop(window)
            part = Image.fromarray(repainted[window.top : window.bottom, window.left : window.right])
            resized = np.asarray(part.resize((self.width, self.height), Image.Resampling.BILINEAR))
            repainted = (resized > 0).astype(np.float32)  # a thin line stays when the window is made smaller
        return self.place(whole), self.pad(repainted)

    def cut(self, computed: Image.Image) -> Image.Image:
        """The final picture, from the decoded canvas."""
        top, left = self.offset
        picture = computed.crop((left, top, left + self.width, top + self.height))
        return picture if self.inpainting is None else self.inpainting.composite(picture)


@dataclass(frozen=True)
class Inpainting:
    """The geometry of inpainting.

    whole: the picture at its final size. area: where it is repainted, float32 [H, W] in [0, 1]. weight: how much of the
    new picture shows, [H, W] in [0, 1] (None: only the new picture). window: the part that is computed (None:
    everything).
    """

    whole: Image.Image
    area: np.ndarray
    weight: np.ndarray | None
    window: Box | None
    mask: Mask

    @classmethod
    def of(cls, mask: Mask, size: tuple[int, int], model_size: tuple[int, int]) -> Self:
        """From a request's mask, at `size` (height, width); `model_size` decides whether a window pays off."""
        whole, area = masks.padded(mask.image.rgb, *mask.pad)
        if mask.area is not None:
            top, _, _, left = mask.pad
            drawn = masks.repaint_area(mask.area.image, (mask.image.height, mask.image.width), mask.repaint)
            inner = area[top : top + mask.image.height, left : left + mask.image.width]
            np.maximum(inner, drawn, out=inner)
        if whole.size != size[::-1]:
            whole = whole.resize(size[::-1], RESAMPLING)
            area = masks.repaint_area(area, size, "white")
        masks.check(area, mask.repaint)
        window = masks.window(area, *model_size) if _wants_window(mask, size, model_size) else None
        return cls(whole, area, masks.feathered(area, mask.feather) if mask.paste_back else None, window, mask)

    def extend(self, image: Image.Image) -> Image.Image:
        """Another picture, extended like this one and at its size."""
        if image.size == (self.mask.image.width, self.mask.image.height):
            image, _ = masks.padded(image, *self.mask.pad)
        return image.resize(self.whole.size, RESAMPLING)

    def composite(self, painted: Image.Image) -> Image.Image:
        """The whole picture with the painted part in its place."""
        if self.window is not None:
            left, top, right, bottom = self.window
            page = self.whole.copy()
            page.paste(painted.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            painted = page
        return painted if self.weight is None else masks.paste_back(self.whole, painted, self.weight)


def window_size(window: Box, model_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a window is computed: the model's own area in the window's aspect ratio."""
    height, width = window.bottom - window.top, window.right - window.left
    scale = (model_size[0] * model_size[1] / (height * width)) ** 0.5
    return max(MIN_SIDE, round(height * scale)), max(MIN_SIDE, round(width * scale))


def _wants_window(mask: Mask, size: tuple[int, int], model_size: tuple[int, int]) -> bool:
    """Whether to look for a window: as requested, else if the picture is much larger than the model's own size."""
    if mask.crop is not None:
        return mask.crop
    return size[0] * size[1] > WINDOW_FROM * model_size[0] * model_size[1]
