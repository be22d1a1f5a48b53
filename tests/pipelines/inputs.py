"""Inputs of the pipeline tests, and a record of the networks that run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.models_on_disk import DIM

FEW = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embeds(rows: int = 1) -> dict[str, Tensor]:
    return {"image_embeds": randn(rows, DIM, seed=1), "negative_image_embeds": randn(rows, DIM, seed=2)}


def photo(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def upper_half(size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.float32)
    mask[: size // 2] = 1
    return mask


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def record_networks() -> Iterator[list[str]]:
    """The class names of the networks that run, in order."""
    ran: list[str] = []

    def note(module: nn.Module, _: Any) -> None:
        if type(module).__name__ in {"UNet", "MoVQ", "PriorTransformer", "CLIPText", "CLIPVision", "Encoder"}:
            ran.append(type(module).__name__)

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        hook.remove()
