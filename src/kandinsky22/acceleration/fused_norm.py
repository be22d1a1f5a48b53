"""Group normalisation with its scale, shift and SiLU on a GPU, channels last, in half precision: kernels in Triton.

torch's own group normalisation converts the picture to channels first, and the convolution after it converts it back;
scale and shift, and the SiLU, read and write it once more each. Here it is read for the moments, read again and
written, in its own layout. Sums are float32, and so is everything until the result is rounded. Triton comes with
torch's builds for NVIDIA and AMD GPUs.
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
# for their resolution, a sum of squares in float32 is exact enough at any mean
DTYPES = (torch.float16, torch.bfloat16)
CELLS, CHANNELS = 32, 64  # a program's tile of the picture
TOLERANCE = 0.02  # relative rms from torch's result, below which a kernel is accepted
MAX_PARTS = 128  # into which a picture's cells are divided for the moments


def kernels() -> ModuleType | None:
    """The kernels, where there is Triton and they are enabled."""
    return _import_kernels() if uses("kernels") else None


@cache
def _import_kernels() -> ModuleType | None:
    try:
        from kandinsky22.acceleration import triton_kernels
    except ImportError:
        return None
    return triton_kernels


@cache
def matches_torch(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compute on a device what torch does; tried once.

    A compiler of another version, or another GPU, may not accept them. Then a warning says so, and torch computes.
    """
    cells = torch.randn(2, 64, 6, 10, generator=torch.Generator().manual_seed(0))
    x, scale, shift = (part.to(device, dtype) for part in (cells, cells[:, :, :1, :1], cells[:, :, :3, :5]))
    weight, bias = scale[0, :, 0, 0].contiguous(), shift[0, :, 0, 0].contiguous()  # as parameters are
    try:
        for a, b in ((None, None), (scale, scale), (shift, shift)):
            expected = F.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-5)
            if a is not None and b is not None:
                enlarged = [F.interpolate(value.float(), size=x.shape[-2:]) for value in (a, b)]
                expected = expected * enlarged[0] + enlarged[1]
            result = group_norm(x, weight, bias, 1e-5, a, b, groups=32, silu=True).float()
            if not (result - F.silu(expected)).norm() < TOLERANCE * F.silu(expected).norm():
                raise RuntimeError("another result than torch's")
    except Exception as error:  # whatever a compiler raises
        message = first_line(error)
        warnings.warn(f"the fused normalisation does not run on {device}, and torch's does: {message}", stacklevel=2)
        return False
    return True


def supports(x: Tensor, scale: Tensor | None) -> bool:
    """Whether the kernels can normalise x [B, C, H, W] with a scale [B, C, h, w].

    They enlarge a scale by whole factors only, to the nearest.
    """
    coarse = (1, 1) if scale is None else scale.shape[-2:]
    divides = not any(size % cells for size, cells in zip(x.shape[-2:], coarse, strict=True))
    return (
        x.device.type in DEVICES
        and x.dtype in DTYPES
        and x.numel() > 0
        and divides
        and kernels() is not None
        and matches_torch(x.device, x.dtype)
    )


def group_norm(
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
    """silu(group_norm(x) * scale + shift) for x [B, C, H, W] -> the same shape, channels last.

    scale and shift: [B, C, h, w], or None.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    b, c, h, w = x.shape
    cells, y = h * w, torch.empty_like(x)
    each = CELLS * -(-cells // (CELLS * MAX_PARTS))  # cells of a part
    parts = -(-cells // each)
    sums = torch.empty(b, 2, parts, c, dtype=torch.float32, device=x.device)
    affine = torch.empty(b, 2, c, dtype=torch.float32, device=x.device)
    triton: Any = kernels()
    triton.sums[(b, parts, -(-c // CHANNELS))](x, sums, cells, c, parts, EACH=each, CELLS=CELLS, CHANNELS=CHANNELS)
    triton.affine[(b, groups)](
        sums,
        weight,
        bias,
        affine,
        cells,
        c,
        parts,
        c // groups,
        eps,
        PARTS=_next_power_of_two(parts),
        WIDTH=_next_power_of_two(c // groups),
    )
    fine, coarse = (1, 1, 1), 1
    if scale is not None and shift is not None:
        scale, shift = (value.contiguous(memory_format=torch.channels_last) for value in (scale, shift))
        (tall, wide), coarse = scale.shape[2:], scale.shape[2] * scale.shape[3]
        fine = h // tall, w // wide, wide
    triton.apply[(b, -(-cells // CELLS), -(-c // CHANNELS))](
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
        MODULATED=scale is not None,
        SILU=silu,
        CELLS=CELLS,
        CHANNELS=CHANNELS,
    )
    return y


def _next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n: the sizes of Triton's blocks."""
    return 1 << (n - 1).bit_length()
