"""Group normalisation with its scale, shift and SiLU on a GPU, channels last, in half precision: kernels in Triton.

torch's own lays the picture out channel by channel for it, and the convolution after it lays it out anew; scale and shift,
and the SiLU, read and write it once more each. Here it is read for the moments, read again and written, as it lies. Sums are
float32, and so is everything until the result is rounded. Triton comes with torch's builds for NVIDIA and AMD GPUs.
"""

import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.acceleration.cuda_graphs import first_line
from kandinsky22.acceleration.flags import uses

DEVICES = ("cuda",)
DTYPES = (torch.float16, torch.bfloat16)  # with their resolution, no sum of squares in float32 loses what a mean drowns
CELLS, CHANNELS = 32, 64  # a program's tile of the picture
ALIKE = 0.02  # relative rms up to which a result is torch's
PARTS = 128  # at most, into which a picture's cells are cut for the moments


def kernels() -> ModuleType | None:
    """The kernels, where there is Triton and they are not left out."""
    return _kernels() if uses("kernels") else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from kandinsky22.acceleration import triton_kernels
    except ImportError:
        return None
    return triton_kernels


@cache
def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compute on a device what torch does: tried once, since a compiler of another version or another GPU
    may not take them. Where they do not, a warning says so, and torch computes."""
    cells = torch.randn(2, 64, 6, 10, generator=torch.Generator().manual_seed(0))
    x, scale, shift = (part.to(device, dtype) for part in (cells, cells[:, :, :1, :1], cells[:, :, :3, :5]))
    weight, bias = scale[0, :, 0, 0].contiguous(), shift[0, :, 0, 0].contiguous()  # as parameters are
    try:
        for a, b in ((None, None), (scale, scale), (shift, shift)):
            plain = F.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-5)
            if a is not None and b is not None:
                large = [F.interpolate(value.float(), size=x.shape[-2:]) for value in (a, b)]
                plain = plain * large[0] + large[1]
            found = normalised(x, weight, bias, 1e-5, a, b, groups=32, silu=True).float()
            if not (found - F.silu(plain)).norm() < ALIKE * F.silu(plain).norm():
                raise RuntimeError("another result than torch's")
    except Exception as error:  # whatever a compiler raises
        said = first_line(error)
        warnings.warn(f"the fused normalisation does not run on {device}, and torch's does: {said}", stacklevel=2)
        return False
    return True


def fits(x: Tensor, scale: Tensor | None) -> bool:
    """Whether the kernels can normalise x [B, C, H, W], told by a scale [B, C, h, w]: nearest enlarging by whole numbers is
    all that they know."""
    coarse = (1, 1) if scale is None else scale.shape[-2:]
    whole = not any(size % cells for size, cells in zip(x.shape[-2:], coarse, strict=True))
    return (
        x.device.type in DEVICES
        and x.dtype in DTYPES
        and x.numel() > 0
        and whole
        and kernels() is not None
        and agrees(x.device, x.dtype)
    )


def normalised(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    groups: int,
    silu: bool,
) -> Tensor:
    """silu(group_norm(x) * scale + shift) for x [B, C, H, W] -> the same shape, channels last. scale and shift: [B, C, h, w]."""
    x = x.contiguous(memory_format=torch.channels_last)
    b, c, h, w = x.shape
    cells, y = h * w, torch.empty_like(x)
    each = CELLS * -(-cells // (CELLS * PARTS))  # cells of a part
    parts = -(-cells // each)
    sums = torch.empty(b, 2, parts, c, dtype=torch.float32, device=x.device)
    affine = torch.empty(b, 2, c, dtype=torch.float32, device=x.device)
    found: Any = kernels()
    found.sums[(b, parts, -(-c // CHANNELS))](x, sums, cells, c, parts, EACH=each, CELLS=CELLS, CHANNELS=CHANNELS)
    found.affine[(b, groups)](
        sums, weight, bias, affine, cells, c, parts, c // groups, eps, PARTS=_power(parts), WIDTH=_power(c // groups)
    )
    fine, coarse = (1, 1, 1), 1
    if scale is not None and shift is not None:
        scale, shift = (value.contiguous(memory_format=torch.channels_last) for value in (scale, shift))
        (tall, wide), coarse = scale.shape[2:], scale.shape[2] * scale.shape[3]
        fine = h // tall, w // wide, wide
    found.apply[(b, -(-cells // CELLS), -(-c // CHANNELS))](
        x,
        affine,
        x if scale is None else scale,
        x if shift is None else shift,
        y,
        cells,
        c,
        w,
        *fine,
        coarse,
        TOLD=scale is not None,
        SILU=silu,
        CELLS=CELLS,
        CHANNELS=CHANNELS,
    )
    return y


def _power(n: int) -> int:
    """The power of two from n up, which Triton's blocks are of."""
    return 1 << (n - 1).bit_length()
