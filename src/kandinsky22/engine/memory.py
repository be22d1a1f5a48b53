"""Whether requests fit into memory: an estimate of their peak beside the weights, compared with what is free."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from kandinsky22.models.movq import MAX_UNTILED_PIXELS, UNTILED_TENSORS, MoVQConfig
from kandinsky22.models.unet import UNetConfig

# With tiles: tensors at the input, or twice at the output, of the last level. Measured: 1.2 with the box at 1536 x
# 1536, 1.5 and 1.9 with the published configuration at 1024 and 512, where the tiles themselves weigh more.
TILED_TENSORS = 2
# Tensors of the first level alive at once in a step, and the condition. Measured: 46 with the published configuration
# at 512, 16 with the box, whose levels have one layer instead of three.
UNET_TENSORS = 48
PICTURE_BYTES = 16  # per pixel of a finished picture: decoded, cropped, and encoded
CPU_ERRORS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
Size: TypeAlias = tuple[int, int, int]  # pictures, height, width


def needed(unet: UNetConfig, movq: MoVQConfig, sizes: Sequence[Size], unread: int, itemsize: int) -> int:
    """The peak memory of requests in bytes: `unread` for weights still to be loaded, plus decoding one picture or one
    guided step of all (numbers of `itemsize` bytes), plus the finished pictures."""
    largest, (last, *before) = max(height * width for _, height, width in sizes), movq.block_out_channels[:2]
    decoding = UNTILED_TENSORS * max(last, *before) * min(largest, MAX_UNTILED_PIXELS)
    decoding += TILED_TENSORS * max(2 * last, *before) * max(largest - MAX_UNTILED_PIXELS, 0)
    cells = sum(2 * n * height * width // movq.factor**2 for n, height, width in sizes)
    pictures = sum(PICTURE_BYTES * n * height * width for n, height, width in sizes)
    return unread + max(decoding, UNET_TENSORS * unet.block_out_channels[0] * cells) * itemsize + pictures


def free(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        with Path("/proc/meminfo").open() as lines:  # counts what the page cache would give back
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PHYS_PAGES")) * page


def check(
    unet: UNetConfig, movq: MoVQConfig, sizes: Sequence[Size], unread: int, itemsize: int, device: torch.device
) -> None:
    """Raises `ValueError` for requests that do not fit into memory."""
    required, available = needed(unet, movq, sizes, unread, itemsize), free(device)
    if required > available:
        sizes_text = ", ".join(f"{n} of {width}x{height}" for n, height, width in sizes)
        raise ValueError(
            f"painting {sizes_text} pixels would need about {required / 1e9:.0f} GB of memory and "
            f"{available / 1e9:.0f} GB is free; ask for smaller pictures, or fewer at a time"
        )


def is_exhausted(error: Exception) -> bool:
    """Whether an error means that memory ran out: torch has a class for that on a GPU, and only a text on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_ERRORS)
    )
