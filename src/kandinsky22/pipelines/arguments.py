"""The arguments of code written against diffusers, checked one by one and made plain: numbers, texts, tensors.

Numbers may be Python's, numpy's or a tensor's; a boolean is none. Knows no network and no run.
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


def canvas(height: Any, width: Any) -> tuple[int, int]:
    """The sides that are computed, multiples of 64. Raises `ValueError`."""
    return Canvas(whole("height", height, 512), whole("width", width, 512)).size


def whole(name: str, value: Any, example: int) -> int:
    """A whole number from 1 up, numpy's too, as Python's. Raises `ValueError` for anything else, booleans too."""
    given: Any = None if isinstance(value, bool) or not hasattr(value, "__index__") else value
    try:
        plain = operator.index(given)
    except TypeError:  # an array has __index__ too
        plain = 0
    if plain < 1:
        raise ValueError(f"{name} must be a whole number from 1 up, got {value!r}; try {example}")
    return plain


def number(name: str, value: Any, example: float) -> float:
    """A finite number, numpy's or a tensor's too, as Python's. Raises `ValueError` for anything else, booleans too."""
    plain = value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, Real) or not math.isfinite(plain):
        raise ValueError(f"{name} must be a number, got {value!r}; try {example:g}")
    return float(plain)


def mixture(parts: Any, weights: Any) -> list[float]:
    """The weights of texts, pictures and pixels. Raises `ValueError` where they cannot be mixed."""
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"images_and_prompts must be a list of at least one text or picture, got {parts!r:.40}")
    if not hasattr(weights, "__len__") or len(weights) != len(parts):
        given = len(weights) if hasattr(weights, "__len__") else repr(weights)
        raise ValueError(f"{len(parts)} images_and_prompts need as many weights, got {given}")
    if wrong := [one for one in parts if not isinstance(one, str | Image.Image | Tensor)]:
        raise ValueError(f"images_and_prompts takes texts, PIL pictures and tensors, not {type(wrong[0])}")
    for one in parts:
        if isinstance(one, Tensor) and (one.ndim != 4 or one.shape[1] != 3):
            raise ValueError(f"tensors to mix must be pixels [1, 3, S, S] as CLIP sees them, got {list(one.shape)}")
        if isinstance(one, Tensor):
            check_finite("images_and_prompts", one)
    if len({len(one) if isinstance(one, Tensor) else 1 for one in parts}) > 1:
        raise ValueError("tensors to mix must be pixels of one picture each, [1, 3, S, S]; split them")
    return [number("each of weights", weight, 0.5) for weight in weights]


def check_finite(name: str, part: Tensor) -> None:
    """Raises `ValueError` for a tensor that is empty, or holds what is not a number."""
    if not part.numel() or not bool(part.isfinite().all()):
        raise ValueError(f"{name} must be finite numbers, at least one; look at what made it")


def joined(name: str, given: Any) -> Tensor:
    """A tensor [B, ...], or a list of them as one. Raises `ValueError` for anything else."""
    listed = list(given) if isinstance(given, list | tuple) else [given]
    try:
        parts = [torch.as_tensor(part) for part in listed]
        if not parts or not all(part.ndim >= 2 and part.shape[1:] == parts[0].shape[1:] for part in parts):
            raise ValueError(f"got shapes {[list(part.shape) for part in parts]}")
        made = repeat_rows(parts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor [B, ...] or a list of such tensors: {error}") from error
    check_finite(name, made)
    return made


def texts(given: Any) -> list[str]:
    """A list of one text or several; None is none. Raises `ValueError` for anything else."""
    listed = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"a prompt must be a text or a list of texts, got {type(given).__name__}")
    return listed


def to_start_from(image: Any) -> list[Image.Image] | Tensor:
    """Pictures, or the rows of tensors, for a prior to start from. Raises `ValueError` for anything else."""
    listed = list(image) if isinstance(image, list | tuple) else [image]
    if listed and all(isinstance(one, Image.Image) and min(one.size) for one in listed):
        return listed
    if listed and all(isinstance(one, Tensor) and one.ndim in (2, 4) for one in listed):
        return joined("image", listed)
    raise ValueError("image must be PIL pictures, tensors of pixels [B, 3, S, S], or embeddings [B, D]")


def dealt(given: Any, total: int) -> Any:
    """One picture for each row, of several; what is one for all stays one. Raises `ValueError` where they cannot be
    shared out."""
    several = isinstance(given, list | tuple) or (isinstance(given, Tensor) and given.ndim == 4)
    if not several or len(given) == 1:
        return given
    if not len(given) or total % len(given):
        raise ValueError(f"{len(given)} pictures cannot be shared out among {total}")
    return [given[row * len(given) // total] for row in range(total)]
