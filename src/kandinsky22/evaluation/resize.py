"""Resizing pictures for a feature network.

FID can change more with the resizing than between models (Parmar et al. 2022, arXiv:2104.11222), so each method has a
name that is stored with the number.

`clean` is clean-fid's default: an antialiasing bicubic filter without rounding; numbers called clean-FID use it.
`rounded` is the same filter on 8-bit pixels: text2image-benchmark's "clean", with which its statistics of COCO's 30,000
pictures were made. `legacy` is pytorch-fid's, clean-fid's "legacy_pytorch": bilinear without antialiasing. Most numbers
of 2018 to 2021 use it, or TensorFlow's own, which aligns corners differently and is not offered here. All take 8-bit
RGB: grey is repeated, transparency dropped and EXIF orientation ignored, as in all three projects.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class Resizing(NamedTuple):
    """A resizing method, and the normalisation that goes with it: (pixel - `centre`) / `centre`, about -1 to 1."""

    resize: Callable[[Image.Image, int], Tensor]
    centre: float


def centre_crop(picture: Image.Image) -> Image.Image:
    """The largest central square; with an odd remainder it lies half a pixel above or left of the centre."""
    side = min(picture.size)
    left, top = ((edge - side) // 2 for edge in picture.size)
    return picture.crop((left, top, left + side, top + side))


def clean(picture: Image.Image, side: int) -> Tensor:
    """Float32 [3, side, side], clipped to [0, 255]: PIL's bicubic filter on float32 channels, without rounding."""
    channels = (Image.fromarray(channel.astype(np.float32)) for channel in _pixels(picture))
    resized = np.stack([np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in channels])
    return torch.from_numpy(resized.clip(0, 255))


def rounded(picture: Image.Image, side: int) -> Tensor:
    """Float32 [3, side, side], integers in [0, 255]: PIL's bicubic filter on 8 bits, rounded after each axis."""
    resized = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(_pixels(resized).astype(np.float32))


def legacy(picture: Image.Image, side: int) -> Tensor:
    """Float32 [3, side, side] in [0, 255]: torch's bilinear interpolation without antialiasing or aligned corners."""
    pixels = torch.from_numpy(_pixels(picture).astype(np.float32))
    return F.interpolate(pixels[None], (side, side), mode="bilinear", align_corners=False)[0].clamp(0, 255)


RESIZINGS: Mapping[str, Resizing] = {
    "clean": Resizing(clean, 128),
    "rounded": Resizing(rounded, 127.5),
    "legacy": Resizing(legacy, 127.5),
}
"""By name. clean-fid runs the TensorFlow graph, which subtracts 128 and divides by 128; the others use pytorch-fid's
network, which maps [0, 255] to [-1, 1].
"""


def _pixels(picture: Image.Image) -> np.ndarray:
    """uint8 [3, H, W], contiguous."""
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
