"""The compiled kernels of kernels.c, called by pointer; where there are none, plain torch computes the same.

They are built for two sets of instructions when the package is installed (hatch_build.py), and torch says which of them this
processor has. Threads are torch's: OpenMP's library is the one that torch has loaded, and its pool is shared.
"""

import ctypes
import platform
import sys
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kandinsky22.acceleration.flags import uses

LANES = 16  # channels that any kernel computes a multiple of: numbers of the widest registers
DTYPES = (torch.float32, torch.bfloat16)
ROWS = 8  # that are few
LARGE = 2 << 20  # numbers of a weight that comes from memory and not from a cache; with smaller ones nothing is gained
NAMES = {"AVX512": "avx512", "AVX2": "avx2"}
"""By what torch calls them, the sets of instructions that kernels are built for."""
TYPES = {"P": ctypes.c_void_p, "f": ctypes.c_float, "l": ctypes.c_long, "i": ctypes.c_int}
TAKES = {
    "moments": "PPP llll ii",
    "normalise": "PPPPPP f PP lllll llllll ii",
    "transform_in": "PP lllllll ff l i",
    "transform_out": "PPP llllll ff l i",
    "transform_filters": "PPP lll ii",
    "few_rows": "PPPP lll ii",
}
"""What each kernel takes, in letters of `TYPES`."""


def library() -> ctypes.CDLL | None:
    """The kernels for this processor, if they were built, and are not left out."""
    return _library() if uses("kernels") else None


@cache
def _library() -> ctypes.CDLL | None:
    name = instructions()
    if name is None:
        return None
    try:
        found = ctypes.CDLL(str(built(name)))
    except OSError:
        return None
    for kernel, letters in TAKES.items():
        getattr(found, kernel).argtypes = [TYPES[letter] for letter in letters.replace(" ", "")]
    return found


def instructions() -> str | None:
    """Which of the sets of instructions that kernels are built for this processor has, if any; torch's choice decides."""
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return NAMES.get(torch.backends.cpu.get_cpu_capability()) if here else None


def built(name: str) -> Path:
    """Where the kernels for a set of instructions are, if they are built of the source as it is."""
    source = Path(__file__).with_name("kernels.c")
    return source.with_name(f"kernels-{name}-{zlib.crc32(source.read_bytes()):08x}.so")


def concern(x: Tensor) -> bool:
    """Whether what is computed with x is for this package to compute: on a CPU, without gradients or autocast, and not being
    compiled."""
    others = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return not others and x.device.type == "cpu" and x.dtype in DTYPES


def fit(x: Tensor) -> bool:
    """Whether the kernels can compute with activations like x [B, C, H, W]."""
    return concern(x) and x.shape[1] % LANES == 0 and x.numel() > 0 and library() is not None


def moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of each picture of x [B, C, H, W], channels last: float32 [B, groups] each."""
    b, c, h, w = x.shape
    mean, variance = torch.empty(2, b, groups).unbind()
    _call("moments", x, mean, variance, b, h * w, c, groups, half=x.dtype)
    return mean, variance


def normalise(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    groups: int,
    silu: bool,
) -> Tensor:
    """silu(((x - mean) / sqrt(variance + eps) * weight + bias) * scale + shift) for x [B, C, H, W], channels last.

    mean and variance: float32 [B, groups]. scale and shift: [B, C, h, w], where H and W are multiples of h and w; laid out
    alike, channels next to each other.
    """
    (b, c, h, w), y = x.shape, torch.empty_like(x)
    coarse = (1, 1, 0, 0, 0) if scale is None else (*scale.shape[2:], scale.stride(0), scale.stride(2), scale.stride(3))
    _call(
        "normalise",
        x,
        y,
        mean,
        variance,
        weight.to(x.dtype),
        bias.to(x.dtype),
        eps,
        scale,
        shift,
        *coarse,
        b,
        h,
        w,
        c,
        groups,
        silu,
        half=x.dtype,
    )
    return y


def transform_in(
    x: Tensor, v: Tensor, rows: int, columns: int, first: int, points: tuple[float, float], *, doubled: bool
) -> None:
    """Winograd's transform of the tiles of x [B, C, H, W], channels last, or of x with its sides doubled, to v [points, B *
    rows * columns, C]. The first tiles begin at line `first`. points: p and q. float32, as is the way back."""
    b, c, h, w = x.shape
    _call("transform_in", x, v, b, h, w, c, rows, columns, first, *points, doubled)


def transform_out(
    v: Tensor, bias: Tensor, y: Tensor, rows: int, columns: int, points: tuple[float, float], *, doubled: bool
) -> None:
    """The way back: products [points, B * rows * columns, C] to y [B, C, H, W], channels last, plus the bias."""
    b, c, h, w = y.shape
    _call("transform_out", v, bias.float(), y, b, h, w, c, rows, columns, *points, doubled)


def transform_filters(weight: Tensor, u: Tensor, g: Tensor, line: int) -> None:
    """A line of points of Winograd's transform of a filter [O, C, 3, 3], float32 or bfloat16, to u [side, O * C] in float32. g:
    the matrix G, [side, 3]; line: which of its rows."""
    _call("transform_filters", weight, u, g, line, len(g), u.shape[1], half=weight.dtype)


def reads(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows` computes the linear map of x by a weight [O, C], and reads it faster than torch's libraries do."""
    rows = x.numel() // max(1, weight.shape[1])
    return (
        0 < rows <= ROWS
        and concern(x)
        and x.dtype == torch.float32
        and weight.dtype in DTYPES
        and weight.is_contiguous()
        and weight.numel() >= LARGE
        and weight.shape[1] % LANES == 0
        and weight.shape[0] % 4 == 0
        and library() is not None
    )


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear map of up to `ROWS` rows x [..., C] by a weight [O, C], float32 or bfloat16, which is read once; float32."""
    x, (outputs, inputs) = x.contiguous(), weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    bias = None if bias is None else bias.float().contiguous()
    _call("few_rows", weight, x, bias, y, x.numel() // inputs, outputs, inputs, half=weight.dtype)
    return y


def _call(name: str, *arguments: Tensor | int | float | None, half: torch.dtype | None = None) -> None:
    """half: the dtype of what may be either, for the kernels that are told."""
    told = () if half is None else (half == torch.bfloat16,)
    passed = [value.data_ptr() if isinstance(value, Tensor) else value for value in (*arguments, *told)]
    getattr(library(), name)(*passed, torch.get_num_threads())
