"""Whether a request fits: an estimate of what it needs beside the weights, against what is free."""

import os
from pathlib import Path

import torch

from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.unet import UNetConfig

MOVQ_TENSORS = (
    8  # of the widest level at full size that are alive at once while decoding; measured at 512x512, rounded up
)
UNET_TENSORS = 40  # of the first level, skips included, likewise
BYTES = 4


def needed(unet: UNetConfig, movq: MoVQConfig, num_images: int, height: int, width: int) -> int:
    """Bytes that a run needs at its peak beside the weights: decoding one picture, or a step of all of them, guided."""
    pixels = height * width
    decoding = MOVQ_TENSORS * max(movq.block_out_channels[:2]) * pixels * BYTES
    cells = pixels // movq.factor**2
    return (
        max(decoding, UNET_TENSORS * unet.block_out_channels[0] * cells * 2 * num_images * BYTES)
        + 16 * num_images * pixels
    )


def free(device: torch.device) -> int:
    """Bytes that can still be taken."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        with Path("/proc/meminfo").open() as lines:  # counts what the page cache would give back
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PHYS_PAGES")) * page


def check(unet: UNetConfig, movq: MoVQConfig, num_images: int, height: int, width: int, device: torch.device) -> None:
    """Raises `ValueError` for a request that memory cannot hold."""
    wanted, there = needed(unet, movq, num_images, height, width), free(device)
    if wanted > there:
        side = int((height * width * there / wanted) ** 0.5) // 64 * 64
        raise ValueError(
            f"{num_images} of {height}x{width} pixels would need about {wanted / 1e9:.0f} GB of memory and "
            f"{there / 1e9:.0f} GB is free; ask for fewer, or at most about {side}x{side}"
        )
