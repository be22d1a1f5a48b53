"""Pictures as tensors and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(values: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """An array [H, W, 3] in [0, 1] as pixels [1, 3, H, W] in [-1, 1]."""
    # contiguous: another memory layout selects other convolution kernels, which round differently
    return (torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None] * 2 - 1).to(device)


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels [3, H, W] in about [-1, 1] as a PIL image; values outside are clipped."""
    return Image.fromarray(((pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())
