"""How a picture becomes a feature network's pixels. FID depends on it more than on many a model (Parmar et al. 2022,
arXiv:2104.11222), so each way has a name that is kept with the number.

`clean` is clean-fid's default: filtered as it shrinks, and not rounded; numbers called clean-FID used it. `rounded` is the same
filter on 8-bit pixels: text2image-benchmark's "clean", which its statistics of COCO's 30,000 pictures go with.
`legacy` is pytorch-fid's, clean-fid's "legacy_pytorch": two neighbours, however much is left out between them; most numbers of
2018 to 2021 used it, or TensorFlow's own, which has other corners and is not offered here.
All take 8 bits of RGB: grey is repeated, transparency dropped, EXIF's turn ignored, as all three projects do.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class Way(NamedTuple):
    """A way to resize, and what 0 to 255 is mapped to by those who do so: (pixel - `centre`) / `centre`, about -1 to 1."""

    resize: Callable[[Image.Image, int], Tensor]
    centre: float


def centre_crop(picture: Image.Image) -> Image.Image:
    """The largest square in the middle; where it cannot be the middle, half a pixel up or left of it."""
    side = min(picture.size)
    left, top = ((edge - side) // 2 for edge in picture.size)
    return picture.crop((left, top, left + side, top + side))


def clean(picture: Image.Image, side: int) -> Tensor:
    """Float32 [3, side, side], clipped to [0, 255]: PIL's bicubic filter on each channel as float32, then not rounded."""
    channels = (Image.fromarray(channel.astype(np.float32)) for channel in _pixels(picture))
    resized = np.stack([np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in channels])
    return torch.from_numpy(resized.clip(0, 255))


def rounded(picture: Image.Image, side: int) -> Tensor:
    """Float32 [3, side, side] of whole numbers in [0, 255]: PIL's bicubic on 8 bits, rounded and clipped after each axis."""
    resized = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(_pixels(resized).astype(np.float32))


def legacy(picture: Image.Image, side: int) -> Tensor:
    """Float32 [3, side, side] in [0, 255]: torch's bilinear interpolation, corners not aligned, not filtered, not rounded."""
    pixels = torch.from_numpy(_pixels(picture).astype(np.float32))
    return F.interpolate(pixels[None], (side, side), mode="bilinear", align_corners=False)[0].clamp(0, 255)


WAYS: Mapping[str, Way] = {"clean": Way(clean, 128), "rounded": Way(rounded, 127.5), "legacy": Way(legacy, 127.5)}
"""By name. clean-fid runs the TensorFlow graph, which subtracts 128 and divides by 128; the others use pytorch-fid's network,
which maps 0 to 255 onto -1 to 1."""


def _pixels(picture: Image.Image) -> np.ndarray:
    """uint8 [3, H, W], contiguous."""
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
