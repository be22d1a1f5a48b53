"""Pictures and masks passed to pipelines, converted to pixels; and pixels converted to what pipelines return.

Pixels are float32 [B, 3, H, W] in about [-1, 1]. The conventions are those of diffusers' Kandinsky 2.2 pipelines: the
value range that a tensor is taken to have, and the filter that resizes it. What is passed in is never modified. Knows
torch, numpy and PIL; no network and no request.
"""

import math
import re
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.request.limits import MAX_FILE_BYTES, check_size
from kandinsky22.request.picture import to_eight_bit
from kandinsky22.request.picture_file import PictureError, read_picture

ACCEPTED_IMAGES = (
    "a PIL picture, an array [H, W, 3] of whole numbers from 0 to 255, or a tensor [3, H, W] or [B, 3, H, W]"
)
OVERSHOOT = 0.01  # how far resizing with a filter may go outside [0, 1]
DECODED_OVERSHOOT = 1.0  # how far a decoded picture may go outside [-1, 1]


def load_image(image: Any, convert_method: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """The picture in a file, at an http(s) address, or a PIL picture, rotated upright by its EXIF orientation.

    It is converted to RGB, or by `convert_method`. Raises `ValueError` for what is none of these, and for what cannot
    be read.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        try:
            with urlopen(Request(image, headers={"User-Agent": "kandinsky22"}), timeout=60) as response:
                data = response.read(MAX_FILE_BYTES)
        except (OSError, HTTPException, ValueError) as error:
            raise ValueError(f"cannot fetch {image}: {error}; save the picture and give its file") from error
        opened = _open(data, image)
    elif isinstance(image, str | Path):
        if lost := re.match(r"(https?):/(?=[^/])", str(image)):
            raise ValueError(f"the address {image} lacks a slash; it starts with {lost[1]}://, and must be no Path")
        if not Path(image).exists():
            raise ValueError(
                f"there is no picture {image}; give a file, or an address that starts with http:// or https://"
            )
        opened = _open(Path(image), str(image))
    elif isinstance(image, Image.Image):
        opened = image
    else:
        raise ValueError(f"a picture is a file, an http(s) address or a PIL picture, got {type(image).__name__}")
    upright = eight_bit(ImageOps.exif_transpose(opened))
    return convert_method(upright) if convert_method else upright.convert("RGB")


def eight_bit(image: Image.Image, *, mask: bool = False) -> Image.Image:
    """A picture of integers or of real numbers in eight bits, which other conversions clip; others as they are."""
    return to_eight_bit(image, mask) if image.mode == "F" or image.mode.startswith("I") else image


def to_pixels(images: Any, height: int, width: int, *, unit_range: bool, latent_channels: int = 0) -> Tensor:
    """Pixels [B, 3, height, width] of a picture or a list of pictures, in their order.

    A PIL picture of any mode is converted to RGB and resized with a bicubic filter, a tensor with nearest neighbours.
    unit_range: whether tensors are in [0, 1], unless one has negative numbers; otherwise they are in [-1, 1]. Latents,
    which are tensors with `latent_channels` channels, stay as they are. Raises `ValueError` for anything else.
    """
    listed = list(images) if isinstance(images, list | tuple) else [images]
    if not listed:
        raise ValueError("the list of pictures is empty; give at least one")
    converted = [_image_pixels(image, height, width, unit_range, latent_channels) for image in listed]
    if len({pixels.shape[1:] for pixels in converted}) > 1:
        raise ValueError("pictures and latents cannot be mixed in one list; give one or the other")
    return torch.cat(converted)


def repaint_mask(masks: Any, height: int, width: int) -> Tensor:
    """Where to repaint, from a mask or a list of masks: float32 [B, 1, H, W], 1 where it is white and 0 elsewhere.

    A PIL picture is resized to height x width; arrays [H, W] and tensors [H, W], [1 or B, H, W] or [B, 1, H, W], in [0,
    1], keep their size. Values from one half up are white; in uint8 arrays, all values but 0 are. Raises `ValueError`.
    """
    listed = list(masks) if isinstance(masks, list | tuple) else [masks]
    if not listed:
        raise ValueError("the list of masks is empty; give at least one")
    converted = [_mask_values(mask, height, width) for mask in listed]
    if len({values.shape[1:] for values in converted}) > 1:
        raise ValueError("the masks must be of one size; resize them")
    return (torch.cat(converted) >= 0.5).float()


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels mapped from [-1, 1] to [0, 1], clamped."""
    return (pixels * 0.5 + 0.5).clamp(0, 1)


def to_arrays(pixels: Tensor) -> np.ndarray:
    """Pixels as a float32 array [B, H, W, 3] in [0, 1]."""
    arrays: np.ndarray = to_unit_range(pixels).cpu().permute(0, 2, 3, 1).float().numpy()
    return arrays


def check_range(values: Tensor, name: str, low: float, high: float, overshoot: float) -> None:
    """Raises `ValueError` for values further outside [low, high] than `overshoot`, and for NaN."""
    smallest, largest = float(values.min()), float(values.max())
    if not (low - overshoot <= smallest and largest <= high + overshoot):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {smallest:g} to {largest:g}; scale it first")


def check_unit_range(values: Tensor, name: str) -> None:
    """Raises `ValueError` for values outside [0, 1], by more than resizing with a filter goes outside, and for NaN."""
    smallest, largest = (float(end) for end in values.float().aminmax()) if values.numel() else (math.nan, math.nan)
    if not (smallest >= -OVERSHOOT and largest <= 1 + OVERSHOOT):
        raise ValueError(
            f"{name} must lie in [0, 1], got {smallest:g} to {largest:g}; if it is in 0 to 255, divide by 255"
        )


def _open(source: Path | bytes, name: str) -> Image.Image:
    """The picture in a file or its bytes, decoded. Raises `ValueError` with its name."""
    try:
        return read_picture(source, name=name)
    except PictureError as error:
        raise ValueError(f"{error}; give a PNG or JPEG that is not damaged") from error


def _image_pixels(image: Any, height: int, width: int, unit_range: bool, latent_channels: int) -> Tensor:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a picture must be {ACCEPTED_IMAGES}; got an array {list(image.shape)} of {image.dtype}")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        check_size("the picture", image.height, image.width)
        sized = eight_bit(image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1)
        levels = np.asarray(sized, np.float32).transpose(2, 0, 1)
        values = torch.from_numpy(np.ascontiguousarray(levels))[None]  # another memory layout rounds differently
        # Each as in the published pipeline: the two round differently, and inpainting amplifies that.
        return values / 255 * 2 - 1 if unit_range else values / 127.5 - 1
    if not isinstance(image, Tensor):
        raise ValueError(
            f"a picture must be {ACCEPTED_IMAGES}, got {type(image).__name__}; load_image reads files and addresses"
        )
    rows = image[None] if image.ndim == 3 else image
    if rows.ndim != 4 or rows.shape[1] not in {3, latent_channels}:
        raise ValueError(f"a picture must be {ACCEPTED_IMAGES}; got a tensor {list(image.shape)}")
    _check_not_empty(rows.shape)
    if latent_channels and rows.shape[1] == latent_channels:
        if not bool(rows.isfinite().all()):
            raise ValueError("latents to start from must be finite numbers; check what computed them")
        return rows.float()
    resized = F.interpolate(rows.float(), size=(height, width))
    check_range(resized, "image", -1, 1, DECODED_OVERSHOOT)
    return resized * 2 - 1 if unit_range and float(resized.min()) >= 0 else resized


def _mask_values(mask: Any, height: int, width: int) -> Tensor:
    """A mask's values [B, 1, H, W], a copy."""
    if isinstance(mask, Image.Image):
        check_size("the mask", mask.height, mask.width)
        sized = eight_bit(mask, mask=True).resize((width, height), Image.Resampling.LANCZOS).convert("L")
        return torch.from_numpy(np.asarray(sized, np.float32) / 255)[None, None]
    if isinstance(mask, np.ndarray):
        shape: Sequence[int] = [side for side in mask.shape if side != 1] if mask.ndim > 2 else mask.shape
        if mask.dtype == np.uint8:  # as diffusers does, whether white is 1 or 255
            mask = mask > 0
        values = torch.from_numpy(mask.astype(np.float32)).reshape(tuple(shape))
        if values.ndim != 2:
            raise ValueError(f"a mask's array must be [H, W], got {list(mask.shape)}")
    elif isinstance(mask, Tensor):
        values = mask.float()
    else:
        raise ValueError(f"a mask must be a PIL picture, an array or a tensor, got {type(mask).__name__}")
    _check_not_empty(values.shape)
    check_unit_range(values, "mask_image")
    if values.ndim == 2:
        return values[None, None]
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[1] == 1:
        return values
    raise ValueError(f"a mask's tensor must be [H, W], [B, H, W] or [B, 1, H, W], got {list(values.shape)}")


def _check_not_empty(shape: Sequence[int]) -> None:
    if not all(shape):
        raise ValueError(f"a picture or mask has no pixels, got {list(shape)}; give one that has some")
