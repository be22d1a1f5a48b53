"""The compiled kernels of kernels.c, called by pointer; where there are none, plain torch computes the same.

They are built for two instruction sets when the package is installed (hatch_build.py), and torch says which of them
this processor has. They use torch's threads: OpenMP's library is the one that torch has loaded, and its pool is
shared.
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

LANES = 16  # float32 numbers in the widest register: kernels need channels to be a multiple of this
DTYPES = (torch.float32, torch.bfloat16)
MAX_ROWS = 8  # of `few_rows`
LARGE_WEIGHT = 2 << 20  # elements of a weight that comes from memory and not from a cache: smaller ones gain nothing
INSTRUCTION_SETS = {"AVX512": "avx512", "AVX2": "avx2"}
"""The instruction sets that kernels are built for: torch's name, and the name in the library's file name."""
TYPES = {"P": ctypes.c_void_p, "f": ctypes.c_float, "l": ctypes.c_long, "i": ctypes.c_int}
SIGNATURES = {
    "moments": "PPP llll ii",
    "normalise": "PPPPPP f PP lllll llllll ii",
    "transform_in": "PP lllllll ff l i",
    "transform_out": "PPP llllll ff l i",
    "transform_filters": "PPP lll ii",
    "few_rows": "PPPP lll ii",
}
"""The argument types of each kernel, in letters of `TYPES`."""


def library() -> ctypes.CDLL | None:
    """The kernels for this processor, if they were built and are enabled."""
    return _load_library() if uses("kernels") else None


@cache
def _load_library() -> ctypes.CDLL | None:
    name = instruction_set()
    if name is None:
        return None
    try:
        loaded = ctypes.CDLL(str(library_path(name)))
    except OSError:
        return None
    for kernel, letters in SIGNATURES.items():
        getattr(loaded, kernel).argtypes = [TYPES[letter] for letter in letters.replace(" ", "")]
    return loaded


def instruction_set() -> str | None:
    """Which of `INSTRUCTION_SETS` this processor has, by torch's choice; None if there are no kernels for it."""
    is_supported = sys.platform == "linux" and platform.machine() == "x86_64"
    return INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability()) if is_supported else None


def library_path(name: str, source: Path | None = None) -> Path:
    """The file of the kernels for an instruction set, beside their source (None: kernels.c).

    A checksum of the source is part of its name, so that outdated kernels are never called.
    """
    source = source or Path(__file__).with_name("kernels.c")
    return source.with_name(f"kernels-{name}-{zlib.crc32(source.read_bytes()):08x}.so")


def is_applicable(x: Tensor) -> bool:
    """Whether this package computes with x: on a CPU, without gradients or autocast, not while being compiled."""
    excluded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return not excluded and x.device.type == "cpu" and x.dtype in DTYPES


def supports(x: Tensor) -> bool:
    """Whether the kernels can compute with activations like x [B, C, H, W]."""
    return is_applicable(x) and x.shape[1] % LANES == 0 and x.numel() > 0 and library() is not None


def group_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of each picture of x [B, C, H, W], channels last: float32 [B, groups] each."""
    b, c, h, w = x.shape
    mean, variance = torch.empty(2, b, groups).unbind()
    _call("moments", x, mean, variance, b, h * w, c, groups, dtype=x.dtype)
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
    out: Tensor | None = None,
) -> Tensor:
    """silu(((x - mean) / sqrt(variance + eps) * weight + bias) * scale + shift) for x [B, C, H, W], channels last.

    mean and variance: float32 [B, groups]. scale and shift: [B, C, h, w], where H and W are multiples of h and w; both
    with the same strides, channels last. out: is written to, like x and without gaps; None: a new tensor.
    """
    (b, c, h, w), y = x.shape, torch.empty_like(x) if out is None else out
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
        dtype=x.dtype,
    )
    return y


def transform_in(
    x: Tensor, v: Tensor, rows: int, columns: int, first: int, points: tuple[float, float], *, upsample: bool
) -> None:
    """Winograd's transform of the tiles of x [B, C, H, W], channels last, to v [points, B * rows * columns, C].

    Both are float32. The first tiles begin at line `first`. points: p and q. upsample: of x with its sides doubled.
    """
    b, c, h, w = x.shape
    _call("transform_in", x, v, b, h, w, c, rows, columns, first, *points, upsample)


def transform_out(
    v: Tensor, bias: Tensor, y: Tensor, rows: int, columns: int, points: tuple[float, float], *, upsample: bool
) -> None:
    """The inverse transform: products v [points, B * rows * columns, C] to y [B, C, H, W], channels last, plus bias."""
    b, c, h, w = y.shape
    _call("transform_out", v, bias.float(), y, b, h, w, c, rows, columns, *points, upsample)


def transform_filters(weight: Tensor, u: Tensor, g: Tensor, line: int) -> None:
    """One line of points of Winograd's transform of a filter [O, C, 3, 3], float32 or bfloat16.

    It is written to u [side, O * C], float32. g: the matrix G, [side, 3]; line: which of its rows.
    """
    _call("transform_filters", weight, u, g, line, len(g), u.shape[1], dtype=weight.dtype)


def few_rows_apply(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows` can compute x times a weight [O, C], and reads it faster than torch's libraries do."""
    rows = x.numel() // max(1, weight.shape[1])
    return (
        0 < rows <= MAX_ROWS
        and is_applicable(x)
        and x.dtype == torch.float32
        and weight.dtype in DTYPES
        and weight.is_contiguous()
        and weight.numel() >= LARGE_WEIGHT
        and weight.shape[1] % LANES == 0
        and weight.shape[0] % 4 == 0
        and library() is not None
    )


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of up to `MAX_ROWS` rows x [..., C] by a weight [O, C], float32 or bfloat16, read once; float32."""
    x, (outputs, inputs) = x.contiguous(), weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    bias = None if bias is None else bias.float().contiguous()
    _call("few_rows", weight, x, bias, y, x.numel() // inputs, outputs, inputs, dtype=weight.dtype)
    return y


def _call(name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype | None = None) -> None:
    """Call a kernel. dtype: of what may be float32 or bfloat16, for the kernels that take both."""
    is_half = () if dtype is None else (dtype == torch.bfloat16,)
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in (*arguments, *is_half)]
    getattr(library(), name)(*values, torch.get_num_threads())
