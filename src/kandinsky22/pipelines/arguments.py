"""Checks of single arguments of pipeline calls, and their conversion to plain numbers, lists and tensors.

Numbers may be Python's, numpy's or 0-dimensional tensors; booleans are refused. Knows no network and no run.
"""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.engine.runs import repeat_rows
from kandinsky22.imaging.canvas import Canvas
from kandinsky22.pipelines.pixels import eight_bit
from kandinsky22.request import Text, limits


def computed_size(height: Any, width: Any) -> tuple[int, int]:
    """Height and width rounded up to multiples of 64.

    Raises `ValueError` if either is not a positive integer, and for a size outside the limits.
    """
    height, width = positive_int("height", height, 512), positive_int("width", width, 512)
    limits.check_size("the picture to paint", height, width)
    return Canvas(height, width).size


def positive_int(name: str, value: Any, example: int) -> int:
    """An integer from 1 up, as Python's int. Raises `ValueError` for anything else, booleans and floats included."""
    candidate: Any = None if isinstance(value, bool) or not hasattr(value, "__index__") else value
    try:
        integer = operator.index(candidate)
    except TypeError:  # arrays have __index__ too
        integer = 0
    if integer < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, got {value!r}; try {example}")
    return integer


def finite_number(name: str, value: Any, example: float) -> float:
    """A finite number, as Python's float. Raises `ValueError` for anything else, booleans included."""
    number = value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
        raise ValueError(f"{name} must be a number, got {value!r}; try {example:g}")
    return float(number)


def interpolation_weights(items: Any, weights: Any) -> list[float]:
    """The weights of prompts, pictures and pixels to interpolate between.

    Raises `ValueError` for items of other types or shapes, and for weights that are not one number for each.
    """
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(f"images_and_prompts must be a list of at least one text or picture, got {items!r:.40}")
    if not hasattr(weights, "__len__") or len(weights) != len(items):
        actual = len(weights) if hasattr(weights, "__len__") else repr(weights)
        raise ValueError(f"{len(items)} images_and_prompts need as many weights, got {actual}")
    if wrong := [item for item in items if not isinstance(item, str | Image.Image | Tensor)]:
        raise ValueError(f"images_and_prompts takes texts, PIL pictures and tensors, not {type(wrong[0])}")
    tensors = [item for item in items if isinstance(item, Tensor)]
    for item in tensors:
        if item.ndim != 4 or item.shape[1] != 3:
            shape = list(item.shape)
            raise ValueError(f"tensors to interpolate must be CLIP processor's pixels [1, 3, S, S], got {shape}")
        check_finite("images_and_prompts", item)
    if len({len(item) if isinstance(item, Tensor) else 1 for item in items}) > 1:
        raise ValueError("tensors to interpolate must be pixels of one picture each, [1, 3, S, S]; split them")
    return [finite_number("each of weights", weight, 0.5) for weight in weights]


def check_finite(name: str, values: Tensor) -> None:
    """Raises `ValueError` for a tensor that is empty or has values that are not finite."""
    if not values.numel() or not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite numbers, at least one; check what computed it")


def as_batch(name: str, value: Any) -> Tensor:
    """A tensor [B, ...], from one or a list of them concatenated. Raises `ValueError` for anything else."""
    listed = list(value) if isinstance(value, list | tuple) else [value]
    try:
        tensors = [torch.as_tensor(item) for item in listed]
        if not tensors or not all(item.ndim >= 2 and item.shape[1:] == tensors[0].shape[1:] for item in tensors):
            raise ValueError(f"got shapes {[list(item.shape) for item in tensors]}")
        batch = repeat_rows(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor [B, ...] or a list of such tensors: {error}") from error
    check_finite(name, batch)
    return batch


def prompt_list(prompt: Any) -> list[str]:
    """A list of one prompt or several; empty for None. Raises `ValueError` for anything else."""
    listed = [] if prompt is None else [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"a prompt must be a text or a list of texts, got {type(prompt).__name__}")
    for text in listed:
        Text(text)  # raises for one that cannot be read
    return listed


def prior_images(image: Any) -> list[Image.Image] | Tensor:
    """What a prior starts from: a list of PIL pictures, or a tensor of pixels [B, 3, S, S] or embeddings [B, D].

    Raises `ValueError` for anything else.
    """
    listed = list(image) if isinstance(image, list | tuple) else [image]
    if listed and all(isinstance(item, Image.Image) and min(item.size) for item in listed):
        return list(map(eight_bit, listed))
    if listed and all(isinstance(item, Tensor) and item.ndim in (2, 4) for item in listed):
        return as_batch("image", listed)
    raise ValueError("image must be PIL pictures, tensors of pixels [B, 3, S, S], or embeddings [B, D]")


def one_per_row(images: Any, rows: int) -> Any:
    """A list of one picture for each row from several pictures, each repeated in a row; a single one stays as it is.

    Raises `ValueError` if the number of pictures does not divide the number of rows.
    """
    several = isinstance(images, list | tuple) or (isinstance(images, Tensor) and images.ndim == 4)
    if not several or len(images) == 1:
        return images
    if not len(images) or rows % len(images):
        raise ValueError(f"{len(images)} pictures cannot be divided evenly among {rows} images; pass one, or {rows}")
    return [images[row * len(images) // rows] for row in range(rows)]
