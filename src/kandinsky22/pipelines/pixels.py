"""What code written against diffusers hands over as pictures and masks, as pixels; and pixels as what it is given back.

Pixels are float32 [B, 3, H, W] in about [-1, 1]. The conventions are those of its Kandinsky 2.2 pipelines (spec 1.5 and
1.6): which range a tensor is taken to be in, and which filter resizes what. Nothing that is handed over is written to.
Knows torch, numpy and PIL; no network and no request.
"""

import math
from collections.abc import Callable, Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

PICTURE = "a PIL picture, an array [H, W, 3] of whole numbers from 0 to 255, or a tensor [3, H, W] or [B, 3, H, W]"
OVER = 0.01  # what resizing with a filter may leave outside [0, 1]


def load_image(image: Any, convert_method: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """The picture in a file, at an http(s) address, or the PIL picture itself, upright; RGB unless `convert_method`
    says otherwise. Raises `ValueError` for what is none of these, and for what cannot be read."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        try:
            with urlopen(Request(image, headers={"User-Agent": "kandinsky22"}), timeout=60) as answer:
                read = answer.read()
        except (OSError, HTTPException, ValueError) as error:
            raise ValueError(f"cannot fetch {image}: {error}; save the picture and give its file") from error
        opened = _opened(lambda: read, image)
    elif isinstance(image, str | Path):
        if not Path(image).is_file():
            raise ValueError(
                f"there is no picture {image}; give a file, or an address that starts with http:// or https://"
            )
        opened = _opened(Path(image).read_bytes, image)
    elif isinstance(image, Image.Image):
        opened = image
    else:
        raise ValueError(f"a picture is a file, an http(s) address or a PIL picture, got {type(image).__name__}")
    upright = ImageOps.exif_transpose(opened)
    return convert_method(upright) if convert_method else upright.convert("RGB")


def pictures(images: Any, height: int, width: int, *, unit: bool, latent_channels: int = 0) -> Tensor:
    """Pixels [B, 3, height, width] of a picture or a list of pictures, in the order given.

    A PIL picture of any mode becomes RGB and is resized with a bicubic filter, a tensor with nearest neighbours. unit:
    whether tensors are in [0, 1], unless one holds negative numbers; else they are in [-1, 1]. Latents, tensors of
    `latent_channels` channels, stay as they are. Raises `ValueError`.
    """
    listed = list(images) if isinstance(images, list | tuple) else [images]
    if not listed:
        raise ValueError("the list of pictures is empty; give at least one")
    made = [_pixels(image, height, width, unit, latent_channels) for image in listed]
    if len({pixels.shape[1:] for pixels in made}) > 1:
        raise ValueError("pictures and latents cannot be mixed in one list; give one or the other")
    return torch.cat(made)


def repainted(masks: Any, height: int, width: int) -> Tensor:
    """Where to repaint, float32 [B, 1, H, W] of 0 and 1, of a mask or a list of masks: 1 is repainted (white).

    A PIL picture is resized to height x width; arrays [H, W] and tensors [H, W], [1 or B, H, W] or [B, 1, H, W], in [0,
    1], keep their size; of bytes all but 0 is white. From one half on is white. Raises `ValueError`.
    """
    listed = list(masks) if isinstance(masks, list | tuple) else [masks]
    if not listed:
        raise ValueError("the list of masks is empty; give at least one")
    made = [_values(mask, height, width) for mask in listed]
    if len({values.shape[1:] for values in made}) > 1:
        raise ValueError("the masks must be of one size; resize them")
    return (torch.cat(made) >= 0.5).float()


def in_unit(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], clamped."""
    return (pixels * 0.5 + 0.5).clamp(0, 1)


def to_arrays(pixels: Tensor) -> np.ndarray:
    """float32 [B, H, W, 3] in [0, 1]."""
    arrays: np.ndarray = in_unit(pixels).cpu().permute(0, 2, 3, 1).float().numpy()
    return arrays


def check_range(values: Tensor, name: str, low: float, high: float) -> None:
    """Raises `ValueError` for values outside a range, or not numbers."""
    least, most = float(values.min()), float(values.max())
    if not (low <= least and most <= high):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {least:g} to {most:g}; scale it first")


def check_unit(values: Tensor, name: str) -> None:
    """Raises `ValueError` for values that are not numbers or outside [0, 1], but for what resizing leaves there."""
    least, most = (float(end) for end in values.float().aminmax()) if values.numel() else (math.nan, math.nan)
    if not (least >= -OVER and most <= 1 + OVER):
        raise ValueError(f"{name} must lie in [0, 1], got {least:g} to {most:g}; if it is in 0 to 255, divide by 255")


def _opened(read: Callable[[], bytes], name: object) -> Image.Image:
    """The picture in a file, read whole. Raises `ValueError` with its name."""
    try:
        picture = Image.open(BytesIO(read()))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise ValueError(f"cannot read {name} as a picture: it is none, or damaged; give a PNG or JPEG") from error
    return picture


def _pixels(image: Any, height: int, width: int, unit: bool, latent_channels: int) -> Tensor:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a picture must be {PICTURE}; got an array {list(image.shape)} of {image.dtype}")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        _check_any(image.size)
        sized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=1)
        levels = np.ascontiguousarray(
            np.asarray(sized, np.float32).transpose(2, 0, 1)
        )  # another layout rounds otherwise
        values = torch.from_numpy(levels)[None]
        return (
            values / 255 * 2 - 1 if unit else values / 127.5 - 1
        )  # as each is published: inpainting amplifies rounding
    if not isinstance(image, Tensor):
        raise ValueError(
            f"a picture must be {PICTURE}, got {type(image).__name__}; load_image reads files and addresses"
        )
    rows = image[None] if image.ndim == 3 else image
    if rows.ndim != 4 or rows.shape[1] not in {3, latent_channels}:
        raise ValueError(f"a picture must be {PICTURE}; got a tensor {list(image.shape)}")
    _check_any(rows.shape)
    if latent_channels and rows.shape[1] == latent_channels:
        if not bool(rows.isfinite().all()):
            raise ValueError("latents to start from must be finite numbers; look at what made them")
        return rows.float()
    resized = F.interpolate(rows.float(), size=(height, width))
    check_range(resized, "image", -1, 1)
    return resized * 2 - 1 if unit and float(resized.min()) >= 0 else resized


def _values(mask: Any, height: int, width: int) -> Tensor:
    """A mask's values [B, 1, H, W], a copy."""
    if isinstance(mask, Image.Image):
        _check_any(mask.size)
        sized = mask.resize((width, height), Image.Resampling.LANCZOS).convert("L")
        return torch.from_numpy(np.asarray(sized, np.float32) / 255)[None, None]
    if isinstance(mask, np.ndarray):
        shape: Sequence[int] = [side for side in mask.shape if side != 1] if mask.ndim > 2 else mask.shape
        if mask.dtype == np.uint8:  # as there: all but 0 is from one half on, whichever of 1 and 255 is white
            mask = mask > 0
        values = torch.from_numpy(mask.astype(np.float32)).reshape(tuple(shape))
        if values.ndim != 2:
            raise ValueError(f"a mask's array must be [H, W], got {list(mask.shape)}")
    elif isinstance(mask, Tensor):
        values = mask.float()
    else:
        raise ValueError(f"a mask must be a PIL picture, an array or a tensor, got {type(mask).__name__}")
    _check_any(values.shape)
    check_unit(values, "mask_image")
    if values.ndim == 2:
        return values[None, None]
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[1] == 1:
        return values
    raise ValueError(f"a mask's tensor must be [H, W], [B, H, W] or [B, 1, H, W], got {list(values.shape)}")


def _check_any(shape: Sequence[int]) -> None:
    if not all(shape):
        raise ValueError(f"a picture or mask is empty, got {list(shape)}; give one that has pixels")
